"""One client's request on its way through the API, and the ways a worker can fail it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kodolly.errors import ApiError


@dataclass(frozen=True)
class Call:
    """One client's request, checked. `path` is the engine's own, such as /v1/chat/completions."""

    path: str
    body: dict[str, Any]
    request_id: str
    chat: bool

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body["model"])

    @property
    def choices(self) -> int:
        """How many answers come back: `n` for each prompt."""
        n = int(self.body.get("n") or 1)
        return n * len(self.body["prompt"]) if self._several else n

    @property
    def _several(self) -> bool:
        prompt = None if self.chat else self.body.get("prompt")
        return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)

    def prompt_of(self, index: int) -> Any:
        """The prompt, as the client gave it, of one answer to a completion."""
        prompt = self.body["prompt"]
        return prompt[index // int(self.body.get("n") or 1)] if self._several else prompt

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with an event that counts tokens."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def wants_token_ids(self) -> bool:
        """Whether the client itself asked for token ids."""
        return bool(self.body.get("return_token_ids"))


class WorkerGone(Exception):
    """The worker failed; another may be tried.

    `told` is what the client hears when no other is left, if it is more than "come again".
    `worked`: the worker had taken the request, so that trying again costs an engine's work.
    `died`: the engine broke down while it worked on the request, which may be the cause.
    `our_fault`: it could not be asked for a reason that lies here.
    """

    def __init__(
        self,
        message: str,
        told: ApiError | None = None,
        *,
        worked: bool = True,
        died: bool = False,
        our_fault: bool = False,
    ) -> None:
        super().__init__(message)
        self.told = told
        self.worked = worked
        self.died = died
        self.our_fault = our_fault
