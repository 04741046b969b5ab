"""FastChat's worker wire on a scripted engine: NUL-framed JSON that carries the whole text so far."""

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aiohttp import web
from support.script import ScriptedError

if TYPE_CHECKING:
    from support.scripted_engine import ScriptedEngine

ADD_COLON_SINGLE = 1  # SeparatorStyle travels as an int

INTERNAL_ERROR = 50001


class FastChatFace:
    """The endpoints a FastChat controller and API server ask of a worker."""

    def __init__(self, engine: "ScriptedEngine") -> None:
        self.engine = engine

    def add_routes(self, app: web.Application) -> None:
        for name, handler in (
            ("worker_generate_stream", self._generate_stream),
            ("worker_generate", self._generate),
            ("worker_get_status", self._status),
            ("count_token", self._count_token),
            ("worker_get_conv_template", self._conversation),
            ("model_details", self._details),
        ):
            app.router.add_post("/" + name, handler)

    def status(self) -> dict[str, Any]:
        script = self.engine.script
        load = self.engine.running if script.load is None else script.load
        return {"model_names": [script.model], "speed": 1, "queue_length": load}

    async def _frames(self, request: web.Request) -> AsyncIterator[bytes]:
        """Frames without their NUL; the last text comes twice, the second time with the reason."""
        body = await request.json()
        engine, seen = self.engine, self.engine.see(request, body)
        prompt, stop = body["prompt"], body.get("stop") or []
        answer = engine.script.answer(
            int(body.get("max_new_tokens") or 256),
            [stop] if isinstance(stop, str) else stop,
            engine.script.resume_point_in_text(prompt),
        )
        told = prompt if body.get("echo", True) else ""
        text, asked = json.dumps(told)[1:-1].encode(), len(engine.script.encode(prompt))
        made = 0
        async for _, step in engine.steps(request, seen, answer):
            if step.text:
                text += json.dumps(step.text)[1:-1].encode()
            made += 1
            yield _frame(text, asked, made, b"null")
        yield _frame(text, asked, made, json.dumps(answer.finish_reason).encode())

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            async for frame in self._frames(request):
                await response.write(frame + b"\0")
        except ScriptedError as failure:
            error = {"text": str(failure), "error_code": INTERNAL_ERROR}
            await response.write(json.dumps(error).encode() + b"\0")
        return response

    async def _generate(self, request: web.Request) -> web.Response:
        last = b""
        try:
            async for frame in self._frames(request):
                last = frame
        except ScriptedError as failure:
            return web.json_response({"text": str(failure), "error_code": INTERNAL_ERROR})
        return web.Response(body=last, content_type="application/json")

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _count_token(self, request: web.Request) -> web.Response:
        body = await request.json()
        count = len(self.engine.script.encode(body["prompt"]))
        return web.json_response({"count": count, "error_code": 0})

    async def _conversation(self, request: web.Request) -> web.Response:
        conversation = {
            "name": "scripted",
            "system_template": "{system_message}",
            "system_message": "",
            "roles": ["USER", "ASSISTANT"],
            "messages": [],
            "offset": 0,
            "sep_style": ADD_COLON_SINGLE,
            "sep": "\n",
            "sep2": None,
            "stop_str": None,
            "stop_token_ids": None,
        }
        return web.json_response({"conv": conversation})

    async def _details(self, request: web.Request) -> web.Response:
        return web.json_response({"context_length": self.engine.script.context_length})


def _frame(text: bytes, asked: int, made: int, reason: bytes) -> bytes:
    return (
        b'{"text": "%b", "error_code": 0, "usage": {"prompt_tokens": %d, "completion_tokens": %d, '
        b'"total_tokens": %d}, "finish_reason": %b}' % (text, asked, made, asked + made, reason)
    )
