"""FastChat's worker endpoints, served by calls to the engine's OpenAI endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from kodolly.engines.stream import StreamClient
from kodolly.errors import BadRequest, EngineCallError
from kodolly.http import bodies, server
from kodolly.http.fastapi_app import JsonApp, JsonRoute, add_routes
from kodolly.http.server import JsonResponse
from kodolly.protocol.wire import WorkerStatus, frame
from kodolly.worker.agent import Agent
from kodolly.worker.model import ServedModel

DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_CONTEXT = 2048  # tokens; FastChat's own default
# Values of fastchat.constants.ErrorCode
VALIDATION, INVALID_MODEL, CONTEXT_OVERFLOW, OVERLOADED, INTERNAL = (
    40001,
    40301,
    40303,
    42903,
    50001,
)

# Parameters that have the same name and meaning in FastChat and in the completions API.
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "stop_token_ids",
    "seed",
)


# What FastAPI cannot read off an endpoint's annotations.
STREAM_DOC = {
    200: {
        "content": {"application/octet-stream": {}},
        "description": "JSON objects with the text so far, each ended by a NUL byte.",
    }
}
PARAMS_DOC = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


class FailureFrame(BaseModel):
    """FastChat's form of an error."""

    text: str
    error_code: int


class ModelDetails(BaseModel):
    """Response of /model_details. `context_length`: tokens of prompt and answer together."""

    context_length: int


class WorkerRoute(JsonRoute):
    """A route of the worker. Bodies may hold whole prompts."""

    max_body = 16 * 2**20


class FastChatEndpoints:
    """The endpoints that a FastChat controller or API server calls."""

    def __init__(self, agent: Agent, streams: StreamClient, model: ServedModel) -> None:
        """`streams`: of the agent's engine."""
        self.agent = agent
        self.streams = streams
        self.model = model

    def add_to(self, app: JsonApp) -> None:
        """Adds the endpoints, by FastChat's names, to an app whose route class is `WorkerRoute`."""
        stream: dict[str, Any] = {"response_class": StreamingResponse, "responses": STREAM_DOC}
        add_routes(app, "POST", [self.worker_generate_stream], **stream)
        add_routes(app, "POST", [self.worker_generate], openapi_extra=PARAMS_DOC)
        add_routes(app, "POST", [self.worker_get_status, self.count_token, self.model_details])
        add_routes(app, "POST", [self.worker_get_conv_template, self.worker_get_embeddings])
        app.serve_directly("/worker_generate_stream", "/worker_generate")

    async def worker_generate_stream(self, params: dict[str, Any]) -> Response:
        """Each frame holds the whole text so far. The last one repeats it with the finish reason."""
        return StreamingResponse(self._stream(params), media_type="application/octet-stream")

    async def worker_generate(self, request: Request) -> dict[str, Any]:
        """Only the last frame of the stream."""
        params = await bodies.read_object(request, WorkerRoute.max_body)
        last = await server.unless_gone(self._last_frame(params), request.scope)
        return last or {}  # nothing if the client has gone: nobody reads it

    async def worker_get_status(self) -> WorkerStatus:
        """The worker's models, weight and load."""
        return await self.agent.status()

    async def worker_get_conv_template(self) -> Response:
        """The fields of the model's conversation template; 501 if it has none."""
        if self.model.template is None:
            return JsonResponse(_error("this model has no conversation template", VALIDATION), 501)
        try:
            conversation = self.model.template.conversation()
        except ValueError as error:
            return JsonResponse(_error(str(error), VALIDATION), 501)
        fields = dataclasses.asdict(conversation)
        return JsonResponse({"conv": {**fields, "sep_style": int(fields["sep_style"])}})

    async def worker_get_embeddings(self) -> FailureFrame:
        """Always an error: no engine here makes embeddings."""
        return FailureFrame(text="this worker serves no embeddings", error_code=VALIDATION)

    async def count_token(self, params: dict[str, Any]) -> dict[str, Any]:
        """`count`: the tokens of `prompt`. `error_code`: 0, or FastChat's code beside a `text`."""
        prompt = str(params.get("prompt", ""))
        try:
            count = await self.agent.engine.count_tokens(self.model.name, prompt)
        except EngineCallError as error:
            # FastChat's API server crashes without a `count`. With one it goes on to generate, and
            # passes the error frame that it then gets to its client.
            return {"count": 0, **_error(str(error), _code_of(error))}
        return {"count": count, "error_code": 0}

    async def model_details(self) -> ModelDetails:
        """The model's context length in tokens."""
        # FastChat's API server calculates with it, so there must be a number.
        return ModelDetails(context_length=self.agent.context_length or DEFAULT_CONTEXT)

    async def _last_frame(self, params: dict[str, Any]) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for payload in self._frames(params):
            last = payload
        return last

    async def _stream(self, params: dict[str, Any]) -> AsyncIterator[bytes]:
        async for payload in self._frames(params):
            yield frame(payload)

    async def _frames(self, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            body = self._completion_body(params)
            prefix = params["prompt"] if params.get("echo", True) else ""
            async for payload in self._translate(body, prefix):
                yield payload
        except BadRequest as error:
            yield _error(str(error), INVALID_MODEL if error.param == "model" else VALIDATION)
        except EngineCallError as error:
            yield _error(str(error), _code_of(error))

    def _completion_body(self, params: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(params.get("prompt"), str):
            raise BadRequest("prompt: a string is required", param="prompt")
        model = params.get("model")
        if model is not None and model not in self.agent.announcement.model_names:
            raise BadRequest(f"model {model!r} is not served here", param="model")
        body: dict[str, Any] = {k: params[k] for k in SAMPLING if params.get(k) is not None}
        limit = params.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
        return body | {
            "model": self.model.name if model is None else model,
            "prompt": params["prompt"],
            "max_tokens": limit,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }

    async def _translate(self, body: dict[str, Any], text: str) -> AsyncIterator[dict[str, Any]]:
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        reason: str | None = None
        async with aclosing(self.streams.events(body)) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    text += choice.get("text") or ""
                    reason = choice.get("finish_reason") or reason
                    yield _frame(text, usage, None)
        yield _frame(text, usage, reason or "stop")


def _frame(text: str, usage: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": reason}


def _error(message: str, code: int) -> dict[str, Any]:
    return {"text": message, "error_code": code}


def _code_of(error: EngineCallError) -> int:
    if "context" in str(error).lower() and error.status == 400:
        return CONTEXT_OVERFLOW
    return {400: VALIDATION, 404: INVALID_MODEL, 429: OVERLOADED, 503: OVERLOADED}.get(
        error.status or 0, INTERNAL
    )
