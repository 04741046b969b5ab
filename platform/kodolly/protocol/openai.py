"""OpenAI's wire: what a client may send. Fields we do not know are passed on untouched.

Bounds follow OpenAI's published reference where the engine would otherwise fail late or unclearly.
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
# Lists stop at their first fault: collecting a fault an item would block the event loop.
Stop = StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)]
Parts = Annotated[list[dict[str, Any]], Field(max_length=MAX_PARTS, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
TokenIds = Annotated[list[int], Field(max_length=MAX_TOKENS, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True)]


class StreamOptions(BaseModel):
    """`stream_options`."""

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
    """One message of a chat. `context` is Dolly's field: text the instruction refers to."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Parts | None = None
    context: str | None = None


class ChatRequest(_Sampling):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(_Sampling):
    """Body of POST /v1/completions. `prompt`: a text, texts, token ids, or lists of token ids."""

    prompt: str | Texts | TokenIds | TokenLists


R = TypeVar("R", ChatRequest, CompletionRequest)


def check(cls: type[R], data: dict[str, Any]) -> R:
    """`data` checked as a `cls`. Raises BadRequest that names the field at fault."""
    try:
        request = cls.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        # Names of union members in the location mean nothing to a client.
        path = [p for p in fault["loc"] if isinstance(p, int) or p in data or str(p).islower()]
        field = _field_name(path, data)
        raise BadRequest(f"{field}: {fault['msg']}", param=field) from error
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: only allowed when stream is true", param="stream_options")
    return request


def _field_name(path: list[int | str], data: Any) -> str:
    """`messages[0].role` for the part of a location that exists in what was sent."""
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
