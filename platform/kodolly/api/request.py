"""A client's request, checked, as every other part of the API passes it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ApiRequest:
    """One client's request. `path` is the engine's own, such as /v1/chat/completions.

    `size`: bytes of the body as it came, so that its texts have no more; 0 if it was not counted.
    """

    path: str
    body: dict[str, Any]
    request_id: str
    chat: bool
    size: int = 0

    @property
    def model(self) -> str:
        """Name of the model that is to answer."""
        return str(self.body["model"])

    @property
    def choices(self) -> int:
        """How many answers it gets: `n` for each prompt."""
        n = int(self.body.get("n") or 1)
        return n * len(self.body["prompt"]) if self._has_several_prompts else n

    @property
    def _has_several_prompts(self) -> bool:
        prompt = None if self.chat else self.body.get("prompt")
        return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)

    @property
    def least_tokens(self) -> int:
        """Tokens that it needs room for at the least: a prompt of ids, and the answer's bound."""
        prompt = None if self.chat else self.body.get("prompt")
        answer = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 1
        ids = isinstance(prompt, list) and not self._has_several_prompts
        return answer + (len(prompt) if prompt and ids else 1)

    def prompt_of(self, index: int) -> Any:
        """The prompt, as the client wrote it, of the answer number `index` to a completion."""
        prompt = self.body["prompt"]
        if not self._has_several_prompts:
            return prompt
        return prompt[index // int(self.body.get("n") or 1)]

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with an event that counts tokens."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def wants_token_ids(self) -> bool:
        """Whether the client itself set `return_token_ids`."""
        return bool(self.body.get("return_token_ids"))
