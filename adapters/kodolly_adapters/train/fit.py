"""What becomes of a row that is longer than a sequence may be.

In this order, and only as far as needed:
1. its context is cut from the end;
2. the oldest exchanges of a dialogue are dropped;
3. the last instruction is cut in its middle: what is asked stands at its beginning or its end;
4. it is refused. An answer is never cut: that would teach to stop, or to go on, in mid-sentence.
What is cut keeps at least an eighth of a sequence, so that a little of it never stands for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from .encode import Encoder, Tokens

GAP = " … "  # stands for what is gone from the middle of an instruction
CHARACTERS = 4  # a token, at the first guess of how much of a text must be tokenized

Message = dict[str, Any]


class Fitter:
    """The length policy for one encoder and `limit` in tokens."""

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self._encoder = encoder
        self._limit = limit
        self._least = max(1, limit // 8)

    def fit(self, messages: list[Message]) -> tuple[str, Tokens | None]:
        """(outcome, tokens of what is left) of a valid dialogue that does not fit; None when it is refused.

        The outcome is a name in dataset.OUTCOMES.
        """
        system = 1 if messages[0]["role"] == "system" else 0
        exchanges = (len(messages) - system) // 2

        def rest(dropped: int) -> list[Message]:
            return messages[:system] + messages[system + 2 * dropped :]

        def fits(dropped: int) -> bool:
            return self._fits(self._least_contexts(rest(dropped)))

        dropped = bisect_left(range(exchanges), True, key=fits)
        if dropped < exchanges:
            left = self._widened(rest(dropped))
            return ("turns-dropped" if dropped else "context-cut"), self._encoder.encode_dialogue(
                left
            )
        last = self._least_contexts(rest(exchanges - 1))
        shorter = self._shortened(last, len(last) - 2, "content", self._without_middle)
        if shorter is None:
            return "too-long", None
        return "instruction-cut", self._encoder.encode_dialogue(shorter)

    def _length(self, messages: list[Message]) -> int:
        return len(self._encoder.encode_dialogue(messages))

    def _fits(self, messages: list[Message]) -> bool:
        return self._length(messages) <= self._limit

    def _least_contexts(self, messages: list[Message]) -> list[Message]:
        """Every context cut to the least."""
        return [
            {**message, "context": self._beginning(message["context"], self._least)}
            if "context" in message
            else message
            for message in messages
        ]

    def _widened(self, messages: list[Message]) -> list[Message]:
        """Contexts as long as fits, the newest first; the least of all of them does."""
        left = self._least_contexts(messages)
        for index in reversed(range(len(messages))):
            if "context" not in messages[index]:
                continue
            whole = [*left[:index], messages[index], *left[index + 1 :]]
            left = self._shortened(whole, index, "context", self._beginning) or left
        return left

    def _shortened(
        self,
        messages: list[Message],
        index: int,
        field: str,
        cut: Callable[[str, int], str],
    ) -> list[Message] | None:
        """The messages with one field cut until all fits, as they are if it does, None if it cannot."""
        if self._fits(messages):
            return messages

        def with_field(tokens: int) -> list[Message]:
            text = cut(messages[index][field], tokens)
            return [*messages[:index], {**messages[index], field: text}, *messages[index + 1 :]]

        keep = self._least + self._limit - self._length(with_field(self._least))
        while keep >= self._least:
            shorter = with_field(keep)
            excess = self._length(shorter) - self._limit
            if excess <= 0:
                return shorter
            keep -= excess
        return None

    def _beginning(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of the text, cut before a character."""
        length = tokens * CHARACTERS
        while True:
            starts = self._encoder.starts(text[:length])
            if len(starts) > tokens + 1:  # the last token of a torn text may be another
                return text[: starts[tokens]].rstrip()
            if length >= len(text):
                return text if len(starts) <= tokens else text[: starts[tokens]].rstrip()
            length *= 2

    def _without_middle(self, text: str, tokens: int) -> str:
        """The first and last tokens of the text, `tokens` in all with the gap."""
        starts = self._encoder.starts(text)
        if len(starts) <= tokens:
            return text
        room = max(2, tokens - len(self._encoder.starts(GAP)))
        head, tail = room - room // 2, room // 2
        return text[: starts[head]].rstrip() + GAP + text[starts[-tail] :].lstrip()
