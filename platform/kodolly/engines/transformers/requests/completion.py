"""Text completions: POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from kodolly.engines.transformers.requests.base import Ids, refuse
from kodolly.engines.transformers.requests.sampling import MAX_LOGPROBS, Sampling
from kodolly.protocol import parameters
from kodolly.protocol.openai import MAX_PROMPTS


class CompletionRequest(Sampling):
    """POST /v1/completions. `prompt`: one or several prompts, as text or as token ids."""

    unhonoured = parameters.COMPLETION

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: int | None = Field(16, ge=0)
    add_special_tokens: bool = True
    echo: bool = False
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _refuse_unsupported_in_completions(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            refuse("max_tokens", "must be at least 1 without echo")
        if self.suffix:
            refuse("suffix", "is not supported by the transformers engine")
        if isinstance(self.prompt, list) and len(self.prompts()) > MAX_PROMPTS:
            refuse("prompt", f"may be a list of at most {MAX_PROMPTS} prompts")
        return self

    @property
    def alternatives(self) -> int | None:
        """`logprobs`: a number, and 0 asks for the chosen tokens alone."""
        return self.logprobs

    @property
    def prompt_alternatives(self) -> int | None:
        """An echoed prompt is scored like the answer."""
        if self.prompt_logprobs is None and self.echo:
            return self.logprobs
        return self.prompt_logprobs

    def prompts(self) -> list[str | list[int]]:
        """The list of prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]
