"""One answer while it is generated: its tokens, its text, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kodolly.engines.transformers.detokenize import Decode, Detokenizer
from kodolly.engines.transformers.sampling import SamplingParams, adjust, draw
from kodolly.stop_strings import StopFinder


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step adds to an answer. Only the last one has a finish reason.

    `finish_reason`: stop, length, abort, error (the engine failed) or fault (the request's values
    made it fail). `stop_reason`: the stop string or stop token id that ended the answer.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: str | int | None = None


Sink = Callable[[Delta], None]


class Sequence:
    """One prompt and its answer. Once it is submitted, only the scheduler's thread changes it."""

    def __init__(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        decode: Decode,
        eos: frozenset[int],
        sink: Sink,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.output: list[int] = []  # token ids of the answer so far
        self.prefill_end = 0  # prompt tokens that are in the cache
        self.last_prefill = 0  # step in which the last part of its prompt was run
        self.aborted = False
        self._sink = sink
        self._eos = frozenset() if params.ignore_eos else eos
        self._generator: Any = None
        self._detokenizer = Detokenizer(decode, prompt)
        self._stops = StopFinder(params.stop, include=params.include_stop)

    @property
    def length(self) -> int:
        """Tokens in the cache when all but the newest one have been run."""
        return len(self.prompt) + max(0, len(self.output) - 1)

    @property
    def in_cache(self) -> int:
        """Tokens in the cache now."""
        return self.length if self.output else self.prefill_end

    def choose(self, logits: Any) -> int:
        """The next token's id, chosen by the logits (V,)."""
        forbidden = self._ends if len(self.output) < self.params.min_tokens else None
        if self.params.plain and forbidden is None:
            return int(logits.argmax())
        logits = adjust(logits, self.params, self.prompt, self.output, forbidden)
        return draw(logits, self.params, self._random(logits))

    @cached_property
    def _ends(self) -> Any:
        """The ids of all tokens that end the answer, as a tensor; None if there is none."""
        import torch

        ends = self._eos | self.params.stop_token_ids
        return torch.tensor([*ends]) if ends else None

    def accept(self, token: int) -> bool:
        """Adds a token and passes it to the sink; returns whether the answer is finished."""
        self.output.append(token)
        delta = self._delta(token)
        self._sink(delta)
        return delta.finish_reason is not None

    def end(self, reason: str) -> None:
        """Ends the answer now, for `reason`: abort, error or fault."""
        self._sink(Delta("", (), reason))

    def _delta(self, token: int) -> Delta:
        ids = (token,)
        if token in self._eos or token in self.params.stop_token_ids:
            reason = None if token in self._eos else token
            text, stop = self._close()
            return Delta(text, ids, "stop", stop or reason)
        text, stop = self._stops.push(self._detokenizer.push(token))
        if stop is not None:
            return Delta(text, ids, "stop", stop)
        if len(self.output) < self.params.max_tokens:
            return Delta(text, ids)
        rest, stop = self._close(cut=True)
        return Delta(text + rest, ids, "length" if stop is None else "stop", stop)

    def _close(self, *, cut: bool = False) -> tuple[str, str | None]:
        """The answer ends: the rest of its text, and a stop string if the rest completes one."""
        text, stop = self._stops.push(self._detokenizer.flush(cut=cut))
        return (text, stop) if stop is not None else (text + self._stops.flush(), None)

    def _random(self, logits: Any) -> Any:
        if self._generator is None:
            import torch

            self._generator = torch.Generator(device=logits.device)
            if self.params.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.params.seed)
        return self._generator
