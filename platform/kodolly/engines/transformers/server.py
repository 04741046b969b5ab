"""The engine's HTTP endpoints: OpenAI's, vLLM's for tokens, health, load and metrics."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.engines.transformers import answers as responses
from kodolly.engines.transformers.choices import Choices, response_meta
from kodolly.engines.transformers.engine import NO_RULES, Answers, Engine, Rules
from kodolly.engines.transformers.metrics import exposition
from kodolly.engines.transformers.requests.base import check, refuse
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.requests.completion import CompletionRequest
from kodolly.engines.transformers.requests.sampling import Sampling
from kodolly.engines.transformers.requests.tokens import DetokenizeRequest, TokenizeRequest
from kodolly.errors import ApiError, ModelNotFound, Unauthorized
from kodolly.http.bodies import read_object
from kodolly.http.server import (
    CLIENT_CLOSED,
    JsonResponse,
    cancel_and_wait,
    unless_gone,
    until_disconnect,
)
from kodolly.http.site_guard import GuardedApp, SiteGuard
from kodolly.http.token_guard import presented_token, same_secret

MAX_BODY = 16 << 20  # bytes of a request
MAX_CONTEXTS = 16  # of the model, that a text may fill whose tokens are only counted
MAX_ID = 128  # characters of X-Request-Id that go into the response


class Endpoints:
    """The endpoints of one engine, whose model may be asked for by any of `names`."""

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
        """Requests that are tokenized, run or wait."""
        return JsonResponse({"server_load": self._engine.load})

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        return PlainTextResponse(
            exposition(self._engine.scheduler, self._engine.tokenizing, self._names[0]),
            media_type="text/plain; version=0.0.4",
        )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = check(ChatRequest, await read_object(request, MAX_BODY))
        name = self._model_name(body.model)
        messages = [message.plain(index) for index, message in enumerate(body.messages)]
        contexts = _contexts(body)
        encoding = self._engine.encode_chat(messages, contexts=contexts, **body.template_options)
        prompt = await unless_gone(encoding, request.scope)
        if prompt is None:
            return Response(status_code=CLIENT_CLOSED)
        echoes = [body.echoed] if body.echo else []
        return await self._answer(request, name, body, [prompt], echoes)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = check(CompletionRequest, await read_object(request, MAX_BODY))
        name = self._model_name(body.model)
        encoding = self._engine.encode(
            body.prompts(), special=body.add_special_tokens, contexts=_contexts(body)
        )
        prompts = await unless_gone(encoding, request.scope)
        if prompts is None:
            return Response(status_code=CLIENT_CLOSED)
        echoes = []
        if body.echo and not body.return_token_ids:  # vLLM leaves the text out beside the ids
            echoes = [
                prompt if isinstance(prompt, str) else await self._engine.decode_plain(prompt)
                for prompt in body.prompts()
            ]
        return await self._answer(request, name, body, prompts, echoes)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body = check(TokenizeRequest, await read_object(request, MAX_BODY))
        self._model_name(body.model)
        tokens = await unless_gone(self._tokens(body), request.scope)
        if tokens is None:
            return Response(status_code=CLIENT_CLOSED)
        longest = self._engine.longest
        strs = await self._engine.pieces(tokens) if body.return_token_strs else None
        return JsonResponse(
            {"count": len(tokens), "max_model_len": longest, "tokens": tokens, "token_strs": strs}
        )

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body = check(DetokenizeRequest, await read_object(request, MAX_BODY))
        self._model_name(body.model)
        return JsonResponse({"prompt": await self._engine.decode(body.tokens)})

    async def _tokens(self, body: TokenizeRequest) -> list[int]:
        if body.messages is None:
            special = body.add_special_tokens is not False
            prompts: list[str | list[int]] = [body.prompt or ""]
            encoded = await self._engine.encode(prompts, special=special, contexts=MAX_CONTEXTS)
            return encoded[0]
        messages = [message.plain(index) for index, message in enumerate(body.messages)]
        continue_final = body.continue_final_message
        if body.add_special_tokens:
            refuse("add_special_tokens", "is not supported for messages by the transformers engine")
        return await self._engine.encode_chat(
            messages,
            contexts=MAX_CONTEXTS,
            tools=[tool.plain() for tool in body.tools or ()],
            calls=bool(body.tools),
            variables=body.chat_template_kwargs,
            add_generation_prompt=body.add_generation_prompt and not continue_final,
            continue_final_message=continue_final,
        )

    def _model_name(self, name: str | None) -> str:
        if name is not None and name not in self._names:
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        return name or self._names[0]

    async def _answer(
        self,
        request: Request,
        name: str,
        body: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        echoes: list[str],
    ) -> Response:
        request_id = request.headers.get("x-request-id", "")[:MAX_ID]
        meta = response_meta(request_id or uuid.uuid4().hex, name, body)
        rules: Rules | None = NO_RULES
        if body.bad_words or body.constraint is not None:
            rules = await unless_gone(self._engine.rules(body), request.scope)
        if rules is None:
            return Response(status_code=CLIENT_CLOSED)
        answers = self._engine.submit(meta.id, prompts, body, rules)
        answers.echoes = [echo for echo in echoes for _ in range(body.n)]
        choices = Choices(answers, meta, body, self._engine.texts)
        if body.stream:
            return EventStream(answers, responses.stream(choices, body.stream_options))
        work = asyncio.ensure_future(responses.whole(choices))
        disconnect = asyncio.ensure_future(until_disconnect(request.receive))
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=CLIENT_CLOSED)
            result = work.result()
        finally:
            answers.abort()
            await cancel_and_wait(work, disconnect)
        return JsonResponse(result)


def _contexts(body: Sampling) -> int:
    """Contexts of the model that a prompt may fill: more than one if it is cut afterwards."""
    return 1 if body.truncate_prompt_tokens is None else MAX_CONTEXTS


class EventStream(Response):
    """A streamed response. It aborts its answers as soon as the client has gone."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._answers = answers
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        disconnect = asyncio.ensure_future(until_disconnect(receive))
        # An aborted answer has a last event, so this also ends the loop below.
        disconnect.add_done_callback(lambda _: self._answers.abort())
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._answers.abort()
            await cancel_and_wait(disconnect)


class KeyGuard:
    """ASGI middleware: 401 without the key, for every path but /health, also for one that is none."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            headers = dict(scope["headers"])
            key = presented_token(headers.get(b"authorization", b"").decode("latin-1"))
            if not same_secret(key, self._key):
                refusal = _refusal(Unauthorized("missing or wrong API key"))
                return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


def create_app(
    engine: Engine, names: list[str], *, key: str | None = None, guard: SiteGuard | None = None
) -> ASGIApp:
    """The ASGI application. The caller starts and stops the engine."""
    endpoints = Endpoints(engine, names)
    app: ASGIApp = Starlette(
        routes=[
            Route("/health", endpoints.health),
            Route("/load", endpoints.load),
            Route("/metrics", endpoints.metrics),
            Route("/v1/models", endpoints.models),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/detokenize", endpoints.detokenize, methods=["POST"]),
        ],
        exception_handlers={ApiError: _on_error, ClientDisconnect: _on_disconnect},
    )
    return GuardedApp(app if key is None else KeyGuard(app, key), guard or SiteGuard())


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    """The client went before its request was whole, which is no failure of ours."""
    return Response(status_code=CLIENT_CLOSED)


def _refusal(error: ApiError) -> Response:
    body = responses.engine_envelope(error)
    return JsonResponse(body, status_code=error.status, headers=error.headers)
