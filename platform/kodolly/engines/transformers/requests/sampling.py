"""The fields that chat and text completions share, and the sampling parameters they make."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kodolly.engines.transformers.requests.base import EngineRequest, Ids, refuse
from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.engines.transformers.structured.constraint import (
    Constraint,
    StructuredOutputs,
    constraint_of,
)
from kodolly.protocol.openai import MAX_CHOICES

MIN_TEMPERATURE = 0.01  # a smaller one above 0 is raised to this, as in vLLM
MAX_LOGPROBS = 20  # alternatives of a token, as in OpenAI's API and vLLM
MAX_BAD_WORDS = 500

Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value or []),
    Field(max_length=16),
]
BadWords = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=MAX_BAD_WORDS)
]


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ExtraArguments(BaseModel):
    """The field `vllm_xargs`. `kd_ids`: tokens with which the answer begins, as one already given did."""

    model_config = ConfigDict(extra="forbid")

    kd_ids: Ids = []


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
    allowed_token_ids: Annotated[Ids, Field(min_length=1)] | None = None
    bad_words: BadWords = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = Field(default_factory=list)
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    vllm_xargs: ExtraArguments = ExtraArguments()

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        _ = self.constraint
        if self.prompt_logprobs and self.stream:
            refuse("prompt_logprobs", "are not available when stream is true")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens an answer may have; None if the client did not say."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to each token the client wants scored; None: no log probabilities."""
        raise NotImplementedError

    @property
    def prompt_alternatives(self) -> int | None:
        """The same for the prompt's tokens."""
        return self.prompt_logprobs

    @cached_property
    def constraint(self) -> Constraint | None:
        """The form that every answer must have, if the client asks for one. Raises BadRequest."""
        return constraint_of(self.response_format, self.structured_outputs)

    @property
    def hides_special(self) -> bool:
        """Whether special tokens are left out of the text."""
        return self.skip_special_tokens

    def truncated(self, prompt: list[int], longest: int) -> list[int]:
        """The part of a prompt that truncate_prompt_tokens keeps: its end, unless truncation_side is right.

        -1 keeps as much as the context (`longest`) has place for beside the answer.
        """
        keep = self.truncate_prompt_tokens
        if keep is None:
            return prompt
        if keep == -1:
            keep = max(1, longest - (self.limit or 1))
        if len(prompt) <= keep:
            return prompt
        return prompt[:keep] if self.truncation_side == "right" else prompt[len(prompt) - keep :]

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
        limit = room if self.limit is None else self.limit
        if self.min_tokens > limit:
            refuse("min_tokens", f"must be at most max_tokens ({limit})")
        bias, forced = self.logit_bias or {}, tuple(self.vllm_xargs.kd_ids)
        for field, tokens in (
            ("logit_bias", bias),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("vllm_xargs", forced),
        ):
            if any(not 0 <= token < vocabulary for token in tokens):
                refuse(field, f"names a token outside the vocabulary of {vocabulary}")
        return SamplingParams(
            max_tokens=limit,
            forced=forced,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=bias,
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            seed=self.seed,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop=tuple(self.stop),
            stop_token_ids=frozenset(
                token for token in self.stop_token_ids or () if token < vocabulary
            ),
            include_stop=self.include_stop_str_in_output,
            logprobs=self.alternatives,
            prompt_logprobs=self.prompt_alternatives,
            **merged,
        )
