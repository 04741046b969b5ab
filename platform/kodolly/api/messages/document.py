"""What the OpenAPI document says of the paths below /v1/messages. No request reaches these functions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Header
from fastapi.openapi.models import Example
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict

from kodolly.api.document import add_direct
from kodolly.api.messages.request import CountTokensRequest, MessagesRequest

EVENTS = {
    "description": "A whole message or, with `stream: true`, its events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
QUESTION = {
    "model": "kodolly-ko-8m",
    "messages": [{"role": "user", "content": "대한민국의 수도는 어디인가요?"}],
}
MESSAGE_EXAMPLES = {
    "message": Example(summary="A question", value=QUESTION | {"max_tokens": 128}),
}
COUNT_EXAMPLES = {"count": Example(summary="A question", value=QUESTION)}

api_key = APIKeyHeader(
    name="x-api-key", auto_error=False, description="A client key, if the operator set any."
)
Version = Annotated[
    str | None, Header(alias="anthropic-version", description="Accepted, and not needed.")
]


class MessageUsage(BaseModel):
    """Tokens that were read and made."""

    input_tokens: int
    output_tokens: int


class AnsweredMessage(BaseModel):
    """A whole answer. Its blocks are texts, thoughts and calls of tools."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """How many tokens the prompt would have."""

    input_tokens: int


class MessageErrorDetail(BaseModel):
    """What is wrong."""

    type: str
    message: str


class MessageError(BaseModel):
    """Body of every answer with a 4XX or 5XX status, and of an error event."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": MessageError, "description": "The request cannot be answered."},
    "5XX": {"model": MessageError, "description": "No worker could answer."},
}


async def messages(
    body: Annotated[MessagesRequest, Body(openapi_examples=MESSAGE_EXAMPLES)],
    version: Version = None,
) -> AnsweredMessage:
    """The answer to a chat, as Anthropic's Messages API has it. The key may also be a Bearer token."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


async def count_tokens(
    body: Annotated[CountTokensRequest, Body(openapi_examples=COUNT_EXAMPLES)],
    version: Version = None,
) -> TokenCount:
    """The tokens of the prompt that such a request becomes."""
    raise NotImplementedError(f"ApiApp answers {body.model} itself")


def add_messages(app: FastAPI) -> None:
    """Puts both paths into the document of `app`."""
    add_direct(
        app,
        "/v1/messages",
        messages,
        "Answer a chat (Anthropic's form)",
        events=EVENTS,
        errors=ERRORS,
        key=api_key,
    )
    add_direct(
        app,
        "/v1/messages/count_tokens",
        count_tokens,
        "Count a prompt's tokens (Anthropic's form)",
        errors=ERRORS,
        key=api_key,
    )
