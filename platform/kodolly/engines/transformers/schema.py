"""The requests of the transformers engine. A bad value is a 400 that names the field.

A null means that a field is not given. What this engine cannot do is refused by the field's name, as
`kodolly.protocol.parameters` lists it; a field that nobody knows is ignored, as by vLLM.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.errors import BadRequest
from kodolly.protocol import parameters
from kodolly.protocol.faults import bad_request
from kodolly.protocol.openai import MAX_CHOICES, MAX_MESSAGES, MAX_PROMPTS
from kodolly_templates import TemplateError
from kodolly_templates.messages import plain_text

MIN_TEMPERATURE = 0.01  # a smaller one above 0 is raised to this, as in vLLM

Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value or []),
    Field(max_length=16),
]
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class EngineRequest(BaseModel):
    """A body of this engine. `unhonoured`: fields that it has no use for (see parameters.py)."""

    unhonoured: ClassVar[Mapping[str, Container[object]]] = {}


class Sampling(EngineRequest):
    """Fields that chat and text completions share."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = []
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    return_token_ids: bool | None = None
    logprobs: int | bool | None = None
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        # None, False and a chat's top_logprobs=0 ask for no log probabilities. A completion's
        # logprobs=0 asks for those of the chosen tokens.
        if self.logprobs is not None and self.logprobs is not False:
            refuse("logprobs", "is not supported by the transformers engine")
        if self.top_logprobs:
            refuse("top_logprobs", "is not supported by the transformers engine")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens an answer may have; None if the client did not say."""
        return self.max_tokens

    def params(self, room: int, defaults: dict[str, Any], vocabulary: int) -> SamplingParams:
        """The sampling parameters. Those the client did not set are the model's `defaults`, or vLLM's.

        `room`: tokens left in the context after the prompt. `vocabulary`: its size in tokens.
        Raises BadRequest.
        """
        chosen = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if (value := getattr(self, name)) is not None
        }
        merged = {**defaults, **chosen}
        if merged.get("temperature"):
            merged["temperature"] = max(merged["temperature"], MIN_TEMPERATURE)
        limit = self.limit or room
        if self.min_tokens > limit:
            refuse("min_tokens", f"must be at most max_tokens ({limit})")
        bias = self.logit_bias or {}
        if any(not 0 <= token < vocabulary for token in bias):
            refuse("logit_bias", f"names a token outside the vocabulary of {vocabulary}")
        return SamplingParams(
            max_tokens=limit,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=bias,
            seed=self.seed,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop=tuple(self.stop),
            stop_token_ids=frozenset(
                token for token in self.stop_token_ids or () if token < vocabulary
            ),
            include_stop=self.include_stop_str_in_output,
            **merged,
        )


class Message(BaseModel):
    """One message of a chat. Its content may be a list of parts, if all of them are text."""

    role: str = Field(min_length=1, max_length=32)
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """The message as chat templates expect it: its parts one text, arguments of calls as objects.

        Raises BadRequest for a part that is no text and for arguments that are no JSON object.
        """
        try:
            content = plain_text(self.content, index)
        except TemplateError as error:
            raise BadRequest(
                f"messages[{index}].content: parts must be text: this model reads nothing else",
                param="messages",
            ) from error
        message: dict[str, Any] = {"role": self.role, "content": content}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [_call(call, index) for call in self.tool_calls]
        return message


def _call(call: dict[str, Any], index: int) -> dict[str, Any]:
    """A tool call with its arguments as an object, which vLLM gives to templates too."""
    function = call.get("function")
    arguments: Any = None
    if isinstance(function, dict):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            arguments = json.loads(function.get("arguments") or "{}")
    if not isinstance(function, dict) or not isinstance(arguments, dict):
        raise BadRequest(
            f"messages[{index}].tool_calls: function.arguments must be a JSON object as text",
            param="messages",
        )
    return call | {"function": function | {"arguments": arguments}}


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    unhonoured = parameters.CHAT

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """max_completion_tokens, or max_tokens, its older name."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _refuse_unsupported_in_chat(self) -> Self:
        if self.tools and self.tool_choice != "none":
            refuse("tools", "are not supported by the transformers engine")
        if self.tool_choice not in (None, "none", "auto"):
            refuse("tool_choice", "is not supported by the transformers engine")
        if self.response_format and self.response_format.get("type") != "text":
            refuse("response_format", "other than text is not supported by this engine")
        if self.continue_final_message and self.add_generation_prompt:
            refuse("continue_final_message", "needs add_generation_prompt to be false")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions. `prompt`: one or several prompts, as text or as token ids."""

    unhonoured = parameters.COMPLETION

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: int | None = Field(16, ge=0)
    add_special_tokens: bool = True
    echo: bool = False
    suffix: str | None = None

    @model_validator(mode="after")
    def _refuse_unsupported_in_completions(self) -> Self:
        if self.echo:
            refuse("echo", "is not supported by the transformers engine")
        if self.max_tokens == 0:
            refuse("max_tokens", "must be at least 1 without echo")
        if self.suffix:
            refuse("suffix", "is not supported by the transformers engine")
        if isinstance(self.prompt, list) and len(self.prompts()) > MAX_PROMPTS:
            refuse("prompt", f"may be a list of at most {MAX_PROMPTS} prompts")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The list of prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


class TokenizeRequest(EngineRequest):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            refuse("prompt", "or messages must be given, and not both")
        return self


class DetokenizeRequest(EngineRequest):
    """POST /detokenize."""

    model: str | None = None
    tokens: Ids


R = TypeVar("R", bound=EngineRequest)


def check(kind: type[R], data: dict[str, Any]) -> R:
    """`data` as a request of this kind. Raises BadRequest, which names the first wrong field."""
    given = {name: value for name, value in data.items() if value is not None}
    parameters.refuse_unhonoured(given, kind.unhonoured, "transformers")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise bad_request(error, given) from error


def refuse(field: str, reason: str) -> None:
    """Raises BadRequest with a message that begins with `field`."""
    raise BadRequest(f"{field} {reason}", param=field)
