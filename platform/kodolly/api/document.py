"""/openapi.json, and the two completion paths as it describes them.

No request reaches the functions of the paths here: `ApiApp` serves them before FastAPI, whose
error handling would cost something a token. The models of the bodies are those that `Completions`
checks requests with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Header, Request, Response, Security
from fastapi.openapi.models import Example
from fastapi.security import HTTPBearer

from kodolly.api.auth import KeyRing, authorization_of
from kodolly.http.server import JsonResponse
from kodolly.protocol.embeddings import (
    Detokenized,
    DetokenizeRequest,
    EmbeddingList,
    EmbeddingRequest,
    TokenizeRequest,
    Tokens,
)
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
        keys.admit(authorization_of(request.headers))
        return JsonResponse(app.openapi() if keys.are_needed else without_keys(app.openapi()))

    app.add_route("/openapi.json", document, include_in_schema=False)


def without_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document where no key is needed: each operation may go without one."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if {} not in operation.get("security", [{}]):
                operation["security"].append({})
    return document


def add_completions(app: FastAPI) -> None:
    """Puts both paths into the document of `app`, and lets it refuse other methods on them."""
    add_direct(app, "/v1/chat/completions", chat_completions, "Answer a chat", events=EVENTS)
    add_direct(app, "/v1/completions", completions, "Continue a text", events=EVENTS)


def add_direct(
    app: FastAPI,
    path: str,
    endpoint: Callable[..., Any],
    summary: str,
    *,
    events: dict[str, Any] | None = None,
    errors: dict[int | str, dict[str, Any]] = ERRORS,
    key: Callable[..., Any] = bearer,
) -> None:
    """Puts POST on a path that `app` serves directly into its document.

    `endpoint` is never called: its annotations and its docstring are what the document says of the path.
    `events`: of an answer that may be streamed. `key`: how a client sends its key.
    """
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        responses={200: events, **errors} if events else errors,
        dependencies=[Security(key)],
    )


EMBEDDING_EXAMPLES = {
    "embedding": Example(
        summary="Two texts",
        value={"model": "my-embedding-model", "input": ["서울의 봄", "부산의 여름"]},
    )
}


async def embeddings(
    body: Annotated[EmbeddingRequest, Body(openapi_examples=EMBEDDING_EXAMPLES)],
    request_id: RequestId = None,
) -> EmbeddingList:
    """A vector for each text, by a model that makes embeddings."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


async def tokenize(body: TokenizeRequest, request_id: RequestId = None) -> Tokens:
    """The tokens of a text, or of the prompt that a chat becomes."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


async def detokenize(body: DetokenizeRequest, request_id: RequestId = None) -> Detokenized:
    """The text of tokens."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


def add_textless(app: FastAPI) -> None:
    """The same for the paths whose answers are no text."""
    add_direct(app, "/v1/embeddings", embeddings, "Embed texts")
    add_direct(app, "/tokenize", tokenize, "Turn a text into tokens")
    add_direct(app, "/detokenize", detokenize, "Turn tokens into a text")
