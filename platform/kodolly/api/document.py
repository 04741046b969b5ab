"""/openapi.json, and the two completion paths as it describes them.

No request reaches the functions of the two paths: `ApiApp` gives the paths to `Completions` before FastAPI, whose
error handling would cost something a token. The models of the bodies are those that `Completions`
checks requests with.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Header, Request, Response, Security
from fastapi.openapi.models import Example
from fastapi.security import HTTPBearer

from kodolly.api.auth import KeyRing
from kodolly.http.server import JsonResponse
from kodolly.protocol.openai import ChatRequest, CompletionRequest
from kodolly.protocol.openai_results import ChatCompletion, ErrorEnvelope, TextCompletion

DESCRIPTION = """\
Chat and text completions by the models of KoDolly's workers, as OpenAI's API serves them.

Fields that are not listed here are passed on to the engine. A client key, where the operator set
any, is sent as `Authorization: Bearer KEY`.\
"""
EVENTS = {
    "description": "A whole answer or, with `stream: true`, its pieces as server-sent events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorEnvelope, "description": "The request cannot be answered."},
    "5XX": {"model": ErrorEnvelope, "description": "No worker could answer."},
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "No model has a ready worker, or the process is ending."}
}
CHAT_EXAMPLES = {
    "chat": Example(
        summary="A question",
        value={
            "model": "kodolly-ko-8m",
            "messages": [{"role": "user", "content": "대한민국의 수도는 어디인가요?"}],
        },
    )
}
COMPLETION_EXAMPLES = {
    "completion": Example(
        summary="A text to go on with",
        value={"model": "kodolly-ko-8m", "prompt": "옛날 옛적에", "max_tokens": 64},
    )
}

bearer = HTTPBearer(auto_error=False, description="A client key, if the operator set any.")

RequestId = Annotated[
    str | None, Header(alias="X-Request-Id", description="An id for the request, in the logs too.")
]
QueueEvents = Annotated[
    Literal["events"] | None,
    Header(
        alias="X-KoDolly-Queue",
        description="Events that say where a waiting stream stands in line.",
    ),
]


async def chat_completions(
    body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)],
    request_id: RequestId = None,
    queue_events: QueueEvents = None,
) -> ChatCompletion:
    """The answer to a chat, whole or streamed."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


async def completions(
    body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)],
    request_id: RequestId = None,
    queue_events: QueueEvents = None,
) -> TextCompletion:
    """What follows a plain prompt, whole or streamed. No template is put around it."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


def add_document(app: FastAPI, keys: KeyRing) -> None:
    """Serves the document of `app` to whoever has a client key."""

    async def document(request: Request) -> Response:
        keys.admit(request.headers.get("authorization", ""))
        return JsonResponse(app.openapi())

    app.add_route("/openapi.json", document, include_in_schema=False)


def add_completions(app: FastAPI) -> None:
    """Puts both paths into the document of `app`, and lets it refuse other methods on them."""
    for path, endpoint, summary in (
        ("/v1/chat/completions", chat_completions, "Answer a chat"),
        ("/v1/completions", completions, "Continue a text"),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            responses={200: EVENTS, **ERRORS},
            dependencies=[Security(bearer)],
        )
