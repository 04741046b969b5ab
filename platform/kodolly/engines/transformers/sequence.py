"""One answer while it is generated: its tokens, its text, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kodolly.engines.transformers.detokenize import Decode, Detokenizer
from kodolly.engines.transformers.logprobs import Score, scores
from kodolly.engines.transformers.sampling import SamplingParams, adjust, draw
from kodolly.engines.transformers.structured.matcher import Matcher
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
    score: Score | None = None  # of the token, if the request asks for log probabilities


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
        matcher: Matcher | None = None,
    ) -> None:
        """`eos`: tokens that end the answer. `matcher`: of the grammar that the answer has to follow."""
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.output: list[int] = []  # token ids of the answer so far
        self.prefill_end = 0  # prompt tokens that are in the cache
        self.last_prefill = 0  # step in which the last part of its prompt was run
        self.prompt_scores: list[Score | None] = []  # whole once the prompt is in the cache
        self.aborted = False
        self._matcher = matcher
        self._named: Any = None  # a mask of allowed_token_ids, once it is needed
        self._score: Score | None = None  # of the newest token
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
        """The next token's id, chosen by the logits (V,). Raises NothingAllowed or GrammarFault.

        A forced token takes the place of the one that is drawn, so that a seeded answer goes on as
        if it had drawn that one.
        """
        token, position = self._draw(logits), len(self.output)
        if position < len(self.params.forced):
            token = self.params.forced[position]
        if self.params.logprobs is not None:
            self._score = scores(logits[None], [token], self.params.logprobs)[0]
        return token

    def score_prompt(self, logits: Any, start: int) -> None:
        """Scores the prompt's tokens after `start` by the logits (N, V) of those from `start` on."""
        assert self.params.prompt_logprobs is not None
        if start == 0:
            self.prompt_scores.append(None)  # nothing comes before the first
        following = self.prompt[start + 1 : start + 1 + len(logits)]
        self.prompt_scores += scores(
            logits[: len(following)], following, self.params.prompt_logprobs
        )

    def _draw(self, logits: Any) -> int:
        forbidden = self._forbidden()
        if self.params.plain and forbidden is None and self._matcher is None:
            return int(logits.argmax())
        allowed = self._allowed(len(logits))
        logits = adjust(logits, self.params, self.prompt, self.output, forbidden, allowed)
        return draw(logits, self.params, self._random(logits))

    def _forbidden(self) -> Any:
        """The ids of tokens that may not come now, as a tensor; None if there is none."""
        ends = self._ends if len(self.output) < self.params.min_tokens else None
        if not self.params.bad_words:
            return ends
        import torch

        said = self.output
        last = [
            word[-1]
            for word in self.params.bad_words
            if len(said) >= len(word) - 1 and tuple(said[len(said) - len(word) + 1 :]) == word[:-1]
        ]
        words = torch.tensor(last, dtype=torch.long)
        return words if ends is None else torch.cat([words, ends])

    def _allowed(self, size: int) -> Any:
        """A tensor (size,), true for the tokens that may come now; None: all of them."""
        allowed = None if self._matcher is None else self._matcher.allowed(size)
        if not self.params.allowed_token_ids:
            return allowed
        if self._named is None:
            import torch

            self._named = torch.zeros(size, dtype=torch.bool)
            self._named[torch.tensor(self.params.allowed_token_ids)] = True
        return self._named if allowed is None else allowed & self._named

    @cached_property
    def _ends(self) -> Any:
        """The ids of all tokens that end the answer, as a tensor; None if there is none."""
        import torch

        ends = self._eos | self.params.stop_token_ids
        return torch.tensor([*ends]) if ends else None

    def accept(self, token: int) -> bool:
        """Adds a token and passes it to the sink; returns whether the answer is finished.

        Raises GrammarFault.
        """
        self.output.append(token)
        if self._matcher is not None and token not in self._eos:
            self._matcher.accept(token)
        delta = self._delta(token)
        self._sink(delta)
        return delta.finish_reason is not None

    def end(self, reason: str) -> None:
        """Ends the answer now, for `reason`: abort, error, fault, or length where none was to come."""
        self._sink(Delta("", (), reason))

    def _delta(self, token: int) -> Delta:
        ids, score = (token,), self._score
        if token in self._eos or token in self.params.stop_token_ids:
            reason = None if token in self._eos else token
            text, stop = self._close()
            return Delta(text, ids, "stop", stop or reason, score)
        text, stop = self._stops.push(self._detokenizer.push(token))
        if stop is not None:
            return Delta(text, ids, "stop", stop, score)
        is_done = self._matcher is not None and self._matcher.is_done
        if len(self.output) < self.params.max_tokens and not is_done:
            return Delta(text, ids, score=score)
        rest, stop = self._close(cut=not is_done)
        why = "length" if stop is None and not is_done else "stop"
        return Delta(text + rest, ids, why, stop, score)

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
