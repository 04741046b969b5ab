"""The text of a continued answer after the cut: what was not sent yet, then what the engine makes.

Stop strings are looked for here, since one may have begun before the cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from kodolly.api.resume.journal import Choice
from kodolly.stop_strings import StopFinder

REPLACEMENT = "\ufffd"
# A character is at most four bytes, so at most three tokens can be the beginning of one.
LONGEST_SPLIT = 3


class TokenTextMismatch(Exception):
    """The tokens of an answer do not give the text that was sent."""


def tokens_of_half_a_character(texts: Sequence[str]) -> int:
    """How many tokens to leave off at the end so that no character is cut.

    `texts`: the answer's text without its last 0, 1, ... tokens. An engine that starts from half a
    character would write it wrong, or the whole prompt again.
    """
    for count, text in enumerate(texts):
        if not text.endswith(REPLACEMENT):
            return count
    return 0  # the answer has such characters itself


def unsent_text(text: str, sent: str) -> str:
    """The text that an engine had made but not sent, since it might begin a stop string.

    `text` is that of all tokens of the answer. Raises TokenTextMismatch if it does not begin with
    `sent`.
    """
    for candidate in (text, " " + text):  # some decoders drop the first token's space
        if candidate.startswith(sent):
            return candidate[len(sent) :]
    raise TokenTextMismatch("the tokens of the answer do not give the text that was sent")


class TextAfterCut:
    """Finds the stop strings of the client and the template, also one that began before the cut.

    `stop`: the stop string that ended the answer, if any.
    """

    def __init__(self, choice: Choice, unsent: str, stops: Sequence[str], *, include: bool) -> None:
        """`unsent`: what `unsent_text` gives. `include`: the stop string is a part of the text."""
        self.base = len(choice.text)  # characters before the cut
        longest = max(map(len, stops), default=1)
        sent = choice.text[-(longest - 1) :] if longest > 1 else ""
        self._finder = StopFinder(stops, include=include)
        self._skip = len(sent)  # characters that the finder returns though they were sent
        first, self.stop = self._finder.push(sent + unsent)
        self._ready = self._new(first)

    def push(self, text: str) -> str:
        """The text to send now that the engine has made `text`."""
        ready, self._ready = self._ready, ""
        if self.stop is not None:
            return ready
        more, self.stop = self._finder.push(text)
        return ready + self._new(more)

    def flush(self) -> str:
        """The rest, at the answer's end."""
        ready, self._ready = self._ready, ""
        return ready + self._new(self._finder.flush())

    def _new(self, text: str) -> str:
        repeated = min(self._skip, len(text))
        self._skip -= repeated
        return text[repeated:]
