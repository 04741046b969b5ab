"""Requests of Anthropic's Messages API that a client may send, and the fields of them that are ignored.

The bounds are those of Anthropic's reference, and of our chats. A field that stands neither here nor in
the reference is refused by its name; docs/clients.md lists those that change no answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from kodolly.protocol.faults import bad_request
from kodolly.protocol.openai import MAX_MESSAGES, MAX_PARTS

MAX_NAME = 128  # characters of a tool's name

# Caching, billing, clearing of old tool results: no answer depends on them.
Ignored = Annotated[Any, Field(default=None, description="Changes no answer.")]


class _Part(BaseModel):
    """A part of a request. What it holds beside these fields, such as `cache_control`, is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextBlock(_Part):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(_Part):
    """What the model thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(_Part):
    """A thought that only Anthropic can read; it is left out of the prompt."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(_Part):
    """A call of a tool that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=MAX_NAME)
    input: dict[str, Any]


Texts = Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)]


class ToolResultBlock(_Part):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: str | Texts | None = None
    is_error: bool | None = None


def _kind(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return kind if isinstance(kind, str) else None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="must be a block of the type text, thinking, redacted_thinking, tool_use or"
        " tool_result: images and documents are not supported",
    ),
]


class MessageParam(_Part):
    """One turn. `tool_use` and thoughts belong to the assistant, `tool_result` to the user."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_PARTS, fail_fast=True)]


class Tool(_Part):
    """A function that the model may call. Tools that Anthropic itself runs are refused."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=MAX_NAME)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(_Part):
    """Whether the model calls a tool: as it likes, one of them, `name`, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, max_length=MAX_NAME)
    disable_parallel_tool_use: bool | None = None


class OutputFormat(_Part):
    """A JSON schema that the answer has to fit."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Part):
    """How the answer is made. `effort` is a template's `reasoning_effort`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Thinking(_Part):
    """Whether the model thinks first, if it can. `adaptive` leaves it to the model."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1)


class Metadata(_Part):
    """Whom a request is for."""

    user_id: str | None = Field(default=None, max_length=512)


class CountTokensRequest(BaseModel):
    """Body of POST /v1/messages/count_tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=512)
    messages: list[MessageParam] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: str | Texts | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Ignored
    context_management: Ignored
    speed: Ignored

    @field_validator("tool_choice")
    @classmethod
    def _require_name(cls, choice: ToolChoice | None) -> ToolChoice | None:
        if choice is not None and choice.type == "tool" and not choice.name:
            raise PydanticCustomError("name", "needs the name of a tool")
        return choice


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1024)]],
            Field(max_length=16, fail_fast=True),
        ]
        | None
    ) = None
    metadata: Metadata | None = None
    service_tier: Ignored
    inference_geo: Ignored
    diagnostics: Ignored


R = TypeVar("R", bound=CountTokensRequest)


def check(kind: type[R], body: dict[str, Any]) -> R:
    """`body` as a request of this kind. Raises BadRequest, which names the first wrong field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise bad_request(error, body) from error
