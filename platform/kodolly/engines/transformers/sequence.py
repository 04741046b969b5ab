"""One answer in the making: its tokens, its text, and when it is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kodolly.engines.transformers.detokenize import Decode, Detokenizer
from kodolly.engines.transformers.sampling import SamplingParams, adjust, draw
from kodolly.stop_strings import StopFinder


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to an answer; the last one has a finish reason."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None  # stop, length, abort, error (ours), fault (the request's)
    stop_reason: str | int | None = None  # the stop string or stop token that ended it


Sink = Callable[[Delta], None]


class Sequence:
    """One prompt and its answer. After submission only the scheduler's thread changes it."""

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
        self.made: list[int] = []
        self.prefilled = 0  # prompt tokens whose keys and values are in the cache
        self.served = 0  # step of its last chunk of prefill
        self.aborted = False
        self._sink = sink
        self._eos = frozenset() if params.ignore_eos else eos
        self._generator: Any = None
        self._detokenizer = Detokenizer(decode, prompt)
        self._stops = StopFinder(params.stop, include=params.include_stop)

    @property
    def length(self) -> int:
        """Tokens of it in the cache once all but the newest were run."""
        return len(self.prompt) + max(0, len(self.made) - 1)

    @property
    def in_cache(self) -> int:
        """Tokens of it in the cache now."""
        return self.length if self.made else self.prefilled

    def choose(self, logits: Any) -> int:
        """The next token from the model's logits (V,)."""
        forbidden: frozenset[int] = frozenset()
        if len(self.made) < self.params.min_tokens:
            forbidden = self._eos | self.params.stop_token_ids
        if self.params.plain and not forbidden:
            return int(logits.argmax())
        logits = adjust(logits, self.params, self.prompt, self.made, forbidden)
        return draw(logits, self.params, self._random(logits))

    def accept(self, token: int) -> bool:
        """Take a token, tell the sink, and say whether the answer is finished."""
        self.made.append(token)
        delta = self._delta(token)
        self._sink(delta)
        return delta.finish_reason is not None

    def end(self, reason: str) -> None:
        """Finish it from outside: `abort`, `error` or `fault`."""
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
        if len(self.made) < self.params.max_tokens:
            return Delta(text, ids)
        rest, stop = self._close()
        return Delta(text + rest, ids, "length" if stop is None else "stop", stop)

    def _close(self) -> tuple[str, str | None]:
        """All text held back; it may still complete a stop string."""
        text, stop = self._stops.push(self._detokenizer.flush())
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
