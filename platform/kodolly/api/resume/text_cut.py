"""The text of a continued answer: what was held back, then what comes, cut at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from kodolly.api.resume.journal import Choice
from kodolly.stop_strings import StopFinder

REPLACEMENT = "\ufffd"
# A character is at most four bytes, so at most three tokens can be the beginning of one.
LONGEST_SPLIT = 3


class Misfit(Exception):
    """The tokens of an answer do not give the text that was sent."""


def whole_tokens(texts: Sequence[str]) -> int:
    """How many tokens to leave off so that no character is cut; `texts`: without 0, 1, ... of them.

    An engine that starts from half a character would write it wrong, or the whole prompt again.
    """
    for left_off, text in enumerate(texts):
        if not text.endswith(REPLACEMENT):
            return left_off
    return 0  # the answer has such characters itself


def held_back(decoded: str, sent: str) -> str:
    """The text that an engine had made of its tokens but not sent: it might begin a stop string.

    `decoded` is the text of all tokens of the answer. Raises Misfit if `sent` is no beginning of it.
    """
    for text in (decoded, " " + decoded):  # some decoders drop the first token's space
        if text.startswith(sent):
            return text[len(sent) :]
    raise Misfit("the tokens of the answer do not give the text that was sent")


class Tail:
    """Finds the stop strings of the client and the template, also one that had begun before."""

    def __init__(self, choice: Choice, held: str, stops: Sequence[str], *, include: bool) -> None:
        self.base = len(choice.text)  # characters before the cut
        longest = max(map(len, stops), default=1)
        sent = choice.text[-(longest - 1) :] if longest > 1 else ""
        self._finder = StopFinder(stops, include=include)
        self._skip = len(sent)  # characters that come out again, though they were sent
        first, self.stopped = self._finder.push(sent + held)
        self._owed = self._new(first)

    def push(self, text: str) -> str:
        """What to send for `text`; `stopped` tells the stop string that ended the answer, if any."""
        owed, self._owed = self._owed, ""
        if self.stopped is not None:
            return owed
        found, self.stopped = self._finder.push(text)
        return owed + self._new(found)

    def flush(self) -> str:
        """What was held back, at the answer's end."""
        owed, self._owed = self._owed, ""
        return owed + self._new(self._finder.flush())

    def _new(self, text: str) -> str:
        again = min(self._skip, len(text))
        self._skip -= again
        return text[again:]
