"""Requests of OpenAI's API that a client may send. Unknown fields go to the engine unchanged.

The bounds are those of OpenAI's reference. They are checked here where the engine would fail late,
or with an unclear message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kodolly.errors import BadRequest

MAX_CHOICES = 16
MAX_MESSAGES = 2048
MAX_PARTS = 2048
MAX_PROMPTS = 2048
MAX_TOKENS = 2**20

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
# `fail_fast`: checking stops at the first bad item. A long list of bad items would otherwise make
# one error each, and building those blocks the event loop.
Stop = StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)]
Parts = Annotated[list[dict[str, Any]], Field(max_length=MAX_PARTS, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
TokenIds = Annotated[list[int], Field(max_length=MAX_TOKENS, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True)]


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class _Sampling(BaseModel):
    """Fields that chat and text completions share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=512)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | None = None


class Message(BaseModel):
    """One message of a chat. `context`, a field of Dolly's: text that the instruction is about."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Parts | None = None
    context: str | None = None


class ChatRequest(_Sampling):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(_Sampling):
    """Body of POST /v1/completions. `prompt`: one or several prompts, as text or as token ids."""

    prompt: str | Texts | TokenIds | TokenLists


R = TypeVar("R", ChatRequest, CompletionRequest)


def check(cls: type[R], data: dict[str, Any]) -> R:
    """`data` as a `cls`. Raises BadRequest, which names the first wrong field."""
    try:
        request = cls.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        # Pydantic also puts names of union members into `loc`. They mean nothing to a client.
        path = [p for p in fault["loc"] if isinstance(p, int) or p in data or str(p).islower()]
        field = _field_name(path, data)
        raise BadRequest(f"{field}: {fault['msg']}", param=field) from error
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: only allowed when stream is true", param="stream_options")
    return request


def _field_name(path: list[int | str], data: Any) -> str:
    """The path of a field such as `messages[0].role`, as far as it exists in the request."""
    name, here = "", data
    for depth, part in enumerate(path):
        if isinstance(part, int):
            if not isinstance(here, list):
                break
            name += f"[{part}]"
            here = here[part] if part < len(here) else None
        elif depth == 0 or isinstance(here, dict):
            name += f".{part}" if name else part
            here = here.get(part) if isinstance(here, dict) else None
        else:
            break
    return name
