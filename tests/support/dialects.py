"""Engines of other makers, as their public documentation describes them: what they lack, how they refuse.

Each is an aiohttp application with one-token answers. `calls` counts requests by path.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Dialect:
    """What one kind of engine has and how it answers. A status of 404 means: no such path."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "demo"}])
    models_status: int = 200
    health_status: int = 200
    health_body: bytes = b""
    completions_status: int = 200
    chat_status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # of a refusal
    refusal: bytes = b'{"error": {"message": "refused", "type": "x", "code": 1}}'
    refuses: tuple[str, ...] = ()  # fields that it does not know
    extra: dict[str, Any] = field(default_factory=dict)  # GET path -> JSON answer
    calls: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> web.Application:
        """The server."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/{path:.*}", self._other)
        app.router.add_post("/{path:.*}", self._other)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        self.calls["/health"] += 1
        return web.Response(status=self.health_status, body=self.health_body)

    async def _models(self, _: web.Request) -> web.Response:
        self.calls["/v1/models"] += 1
        data = {"object": "list", "data": self.models}
        return web.json_response(data, status=self.models_status)

    async def _other(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        if request.path in self.extra:
            return web.json_response(self.extra[request.path])
        return web.Response(status=404, text="404 page not found")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self.completions_status, {"text": "네"}, {"text": "네"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        message = {"role": "assistant", "content": "네"}
        return await self._answer(
            request, self.chat_status, {"message": message}, {"delta": message}
        )

    async def _answer(
        self, request: web.Request, status: int, whole: dict[str, Any], part: dict[str, Any]
    ) -> web.StreamResponse:
        self.calls[request.path] += 1
        body = await request.json()
        self.bodies.append(body)
        for name in self.refuses:
            if name in body:
                detail = [
                    {"type": "extra_forbidden", "loc": ["body", name], "msg": "not permitted"}
                ]
                return web.json_response({"detail": detail}, status=422)
        if status != 200:
            return web.Response(status=status, body=self.refusal, headers=self.headers)
        choice = {"index": 0, "finish_reason": "stop"}
        if not body.get("stream"):
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return web.json_response({"choices": [choice | whole], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in (choice | part | {"finish_reason": None}, choice | {"delta": {}, "text": ""}):
            text = json.dumps({"choices": [event]}, ensure_ascii=False)
            await response.write(f"data: {text}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def ollama(**fields: Any) -> Dialect:
    """No /health, no /metrics, several models."""
    names = ("llama3.2:latest", "exaone:7b", "qwen3:4b")
    models = [{"id": name, "object": "model", "owned_by": "library"} for name in names]
    body = b"404 page not found"
    return Dialect(models=models, health_status=404, health_body=body, **fields)


def tgi(**fields: Any) -> Dialect:
    """Its context length is in /info, and an unknown field is an error of its own form."""
    info = {"/info": {"model_id": "demo", "max_total_tokens": 4096}}
    return Dialect(extra=info, **fields)


def llama_cpp(**fields: Any) -> Dialect:
    """Its context length is in /props; the card has the training's only."""
    card = {"id": "demo", "meta": {"n_ctx_train": 131072, "n_vocab": 32000}}
    props = {"/props": {"default_generation_settings": {"n_ctx": 8192}}}
    return Dialect(models=[card], extra=props, **fields)
