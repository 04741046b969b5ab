"""Requests of OpenAI's API that a client may send. Unknown fields go to the engine unchanged.

The bounds are those of OpenAI's reference. They are checked here where the engine would fail late,
or with an unclear message. A null means that a field is not given, on every engine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kodolly.errors import BadRequest
from kodolly.protocol.faults import bad_request

MAX_CHOICES = 128  # answers to one prompt, as in OpenAI's API
MAX_ANSWERS = 2048  # of all prompts of a request together
MAX_MESSAGES = 2048
MAX_PARTS = 2048
MAX_PROMPTS = 2048
MAX_TOKENS = 2**20

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
# `fail_fast`: checking stops at the first bad item. A long list of bad items would otherwise make
# one error each, and building those blocks the event loop.
Stop = StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)]
Parts = Annotated[list[dict[str, Any]], Field(max_length=MAX_PARTS, fail_fast=True)]
Tools = Annotated[list[dict[str, Any]], Field(max_length=MAX_PARTS, fail_fast=True)]
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
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    cache_salt: str | None = None


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
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=-1)
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(_Sampling):
    """Body of POST /v1/completions. `prompt`: one or several prompts, as text or as token ids."""

    prompt: str | Texts | TokenIds | TokenLists
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=-1)


R = TypeVar("R", ChatRequest, CompletionRequest)


def check(cls: type[R], data: dict[str, Any]) -> R:
    """`data` as a `cls`. Raises BadRequest, which names the first wrong field."""
    try:
        request = cls.model_validate(data)
    except ValidationError as error:
        raise bad_request(error, data) from error
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: only allowed when stream is true", param="stream_options")
    if isinstance(request, CompletionRequest):
        _check_completion(request)
    return request


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """The body without the fields that are null, which engines take for one thing or another."""
    if None not in body.values():
        return body
    return {name: value for name, value in body.items() if value is not None}


def _check_completion(request: CompletionRequest) -> None:
    if request.max_tokens == 0 and not request.echo:
        raise BadRequest("max_tokens: 0 is allowed only with echo", param="max_tokens")
    prompt = request.prompt
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)):
        if not prompt or [] in prompt:
            raise BadRequest("prompt: holds no text or token", param="prompt")
        if (request.n or 1) * len(prompt) > MAX_ANSWERS:
            limit = f"n times the number of prompts may be at most {MAX_ANSWERS}"
            raise BadRequest(f"n: {limit}", param="n")
