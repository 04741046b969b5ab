"""The body of POST /v1/responses: what is honoured, what is ignored, and what is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodolly.errors import BadRequest
from kodolly.protocol.faults import bad_request
from kodolly.protocol.openai import MAX_MESSAGES, Tools, without_nulls

MAX_METADATA = 16
Json = dict[str, Any]
Items = Annotated[list[Json], Field(max_length=MAX_MESSAGES, fail_fast=True)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]

# Fields that change no answer of ours: they only ask for caching, labels or counts of another server.
IGNORED = frozenset(
    {
        "max_tool_calls",  # counts built-in tools, and there are none
        "moderation",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
# Field -> why it is refused.
REFUSED = {
    "prompt": "stored prompts are not supported: send instructions and input",
    "context_management": "is not supported: use truncation, or send a shorter input",
    "messages": "is a field of chat completions: use input",
    "max_tokens": "is a field of chat completions: use max_output_tokens",
    "max_completion_tokens": "is a field of chat completions: use max_output_tokens",
    "response_format": "is a field of chat completions: use text.format",
    "functions": "is a field of chat completions: use tools",
    "function_call": "is a field of chat completions: use tool_choice",
    "logprobs": 'is a field of chat completions: use include: ["message.output_text.logprobs"]',
    "reasoning_effort": "is a field of chat completions: use reasoning.effort",
    "n": "a response has one answer",
    "echo": "is a field of completions",
    "return_token_ids": "is not supported in a response",
    "prompt_logprobs": "is not supported in a response",
}
LOGPROBS = "message.output_text.logprobs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TextFormat(_Part):
    """What text has to be: anything, a JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Json | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(_Part):
    """The field `text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(_Part):
    """The field `reasoning`. Of `summary` there is none: a model's reasoning is given as it is."""

    effort: str | None = None
    summary: str | None = None


class ConversationParam(_Part):
    """A conversation by its id."""

    id: str


class ResponseRequest(_Part):
    """Body of POST /v1/responses. Fields that are not listed go to the engine, as in a chat."""

    model: str = Field(min_length=1, max_length=512)
    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationParam | None = None
    stream: bool | None = None
    stream_options: Json | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = Field(default=None, max_length=64)
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    user: str | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, however it was given."""
        if isinstance(self.conversation, ConversationParam):
            return self.conversation.id
        return self.conversation

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text's tokens come with their log probabilities."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


def check_request(body: Json) -> ResponseRequest:
    """The request in `body`. Raises BadRequest, which names the first field at fault."""
    body = without_nulls(body)
    for name in REFUSED.keys() & body.keys():
        raise BadRequest(f"{name}: {REFUSED[name]}", param=name)
    try:
        request = ResponseRequest.model_validate(body)
    except ValidationError as error:
        raise bad_request(error, body) from error
    if request.previous_response_id and request.conversation_id:
        raise BadRequest(
            "previous_response_id: cannot be used together with conversation",
            param="previous_response_id",
        )
    if request.input is None and not (request.previous_response_id or request.conversation_id):
        raise BadRequest("input: is missing", param="input")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: only allowed when stream is true", param="stream_options")
    return request


def engine_fields(request: ResponseRequest) -> Json:
    """The fields beside those of OpenAI's Responses API, which go to the engine as in a chat."""
    extra = request.model_extra or {}
    return {name: value for name, value in extra.items() if name not in IGNORED}
