"""The engine's HTTP face: OpenAI's endpoints, vLLM's token endpoints, health, load, metrics."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.engines.transformers import answers as shapes
from kodolly.engines.transformers.engine import Answers, Engine
from kodolly.engines.transformers.metrics import exposition
from kodolly.engines.transformers.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    check,
)
from kodolly.engines.transformers.text import Text
from kodolly.errors import ApiError, ModelNotFound, Unauthorized
from kodolly.http.server import (
    JsonResponse,
    cancel_and_wait,
    presented_token,
    read_object,
    same_secret,
    until_disconnect,
)

MAX_BODY = 16 << 20  # bytes of a request
MAX_ID = 128  # characters of X-Request-Id that are kept
CLIENT_CLOSED = 499  # nobody reads it; it is for the log


class Face:
    """The endpoints of one engine, which answers to any of `names`."""

    def __init__(self, engine: Engine, names: list[str]) -> None:
        self._engine = engine
        self._names = names

    async def health(self, _: Request) -> Response:
        """200 once requests are taken."""
        ready = self._engine.ready
        return JsonResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    async def models(self, _: Request) -> Response:
        """The model under each of its names."""
        longest, created = self._engine.longest, self._engine.created
        cards = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "kodolly",
                "root": name,
                "parent": None,
                "max_model_len": longest,
            }
            for name in self._names
        ]
        return JsonResponse({"object": "list", "data": cards})

    async def load(self, _: Request) -> Response:
        """Requests running and waiting."""
        scheduler = self._engine.scheduler
        return JsonResponse({"server_load": scheduler.running + scheduler.waiting})

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        return PlainTextResponse(
            exposition(self._engine.scheduler, self._names[0]),
            media_type="text/plain; version=0.0.4",
        )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = check(ChatRequest, await read_object(request, MAX_BODY))
        name = self._known(asked.model)
        messages = [message.plain() for message in asked.messages]
        opened, going_on = asked.add_generation_prompt, asked.continue_final_message
        prompt = await self._engine.text(
            lambda text: text.encode_chat(messages, opened=opened, going_on=going_on)
        )
        return await self._answer(request, name, asked, [prompt])

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = check(CompletionRequest, await read_object(request, MAX_BODY))
        name = self._known(asked.model)
        prompts = await self._engine.text(lambda text: _encode_all(text, asked))
        return await self._answer(request, name, asked, prompts)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        asked = check(TokenizeRequest, await read_object(request, MAX_BODY))
        self._known(asked.model)
        tokens = await self._engine.text(lambda text: _encode(text, asked))
        longest = self._engine.longest
        return JsonResponse({"count": len(tokens), "max_model_len": longest, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        asked = check(DetokenizeRequest, await read_object(request, MAX_BODY))
        self._known(asked.model)
        text = await self._engine.text(lambda text: text.decode(asked.tokens, special=True))
        return JsonResponse({"prompt": text})

    def _known(self, name: str | None) -> str:
        if name is not None and name not in self._names:
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        return name or self._names[0]

    async def _answer(
        self,
        request: Request,
        name: str,
        asked: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
    ) -> Response:
        given = request.headers.get("x-request-id", "")[:MAX_ID]
        shape = shapes.shape(given or uuid.uuid4().hex, name, asked)
        answers = self._engine.submit(shape.id, prompts, asked)
        if asked.stream:
            return EventStream(answers, shapes.stream(answers, shape, asked.stream_options))
        work = asyncio.ensure_future(shapes.whole(answers, shape))
        gone = asyncio.ensure_future(until_disconnect(request.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=CLIENT_CLOSED)
            body = work.result()
        finally:
            answers.abort()
            await cancel_and_wait(work, gone)
        return JsonResponse(body)


class EventStream(Response):
    """A stream that aborts its answers as soon as the client is gone."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._answers = answers
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.ensure_future(until_disconnect(receive))
        # Aborting ends the events too, so a client that is gone ends the loop below.
        gone.add_done_callback(lambda _: self._answers.abort())
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._answers.abort()
            await cancel_and_wait(gone)


class KeyGuard:
    """ASGI middleware: 401 under /v1 unless the key is presented."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            headers = dict(scope["headers"])
            given = presented_token(headers.get(b"authorization", b"").decode("latin-1"))
            if not same_secret(given, self._key):
                refusal = _refusal(Unauthorized("missing or wrong API key"))
                return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


def create_app(engine: Engine, names: list[str], *, key: str | None = None) -> ASGIApp:
    """The ASGI application; the engine is started and ended by its owner."""
    face = Face(engine, names)
    app = Starlette(
        routes=[
            Route("/health", face.health),
            Route("/load", face.load),
            Route("/metrics", face.metrics),
            Route("/v1/models", face.models),
            Route("/v1/chat/completions", face.chat, methods=["POST"]),
            Route("/v1/completions", face.completions, methods=["POST"]),
            Route("/tokenize", face.tokenize, methods=["POST"]),
            Route("/detokenize", face.detokenize, methods=["POST"]),
        ],
        exception_handlers={ApiError: _on_error},
    )
    return app if key is None else KeyGuard(app, key)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


def _refusal(error: ApiError) -> Response:
    body = shapes.engine_envelope(error)
    return JsonResponse(body, status_code=error.status, headers=error.headers)


def _encode_all(text: Text, asked: CompletionRequest) -> list[list[int]]:
    return [
        prompt
        if isinstance(prompt, list)
        else text.encode(prompt, special=asked.add_special_tokens)
        for prompt in asked.prompts()
    ]


def _encode(text: Text, asked: TokenizeRequest) -> list[int]:
    if asked.messages is None:
        return text.encode(asked.prompt or "", special=asked.add_special_tokens is not False)
    messages = [message.plain() for message in asked.messages]
    opened = asked.add_generation_prompt and not asked.continue_final_message
    return text.encode_chat(messages, opened=opened, going_on=asked.continue_final_message)
