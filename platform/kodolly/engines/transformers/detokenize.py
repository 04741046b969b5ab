"""Turns a growing list of tokens into text, in whole characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"

CONTEXT = 8  # last tokens of the prompt that are decoded together with the answer's first ones

Decode = Callable[[list[int]], str]


class Detokenizer:
    """The text of an answer, one token at a time.

    A token may end inside a character: a rare Hangul syllable has three bytes, which are often two
    or three tokens. An incomplete character decodes to U+FFFD, and is kept back until later tokens
    complete it. All pieces from `push` and `flush` together are the whole text.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        """`prompt`: the tokens before the answer, whose text it may continue."""
        self._decode = decode
        # Decoders may drop the space before the first token. So the window starts with tokens whose
        # text was returned already: those of the last piece, or the prompt's last ones.
        self._window: list[int] = list(prompt[-CONTEXT:])
        self._context = len(self._window)  # how many those are
        # Characters of the window's text that were returned already.
        self._sent = len(decode(self._window).rstrip(REPLACEMENT)) if self._window else 0

    def push(self, token: int) -> str:
        """Adds a token; returns the text it completes, often "". It never ends inside a character."""
        self._window.append(token)
        text = self._decode(self._window)
        complete = text.rstrip(REPLACEMENT)
        new = complete[self._sent :]
        self._sent += len(new)
        if new and len(complete) == len(text):
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._sent = len(self._decode(self._window))
        return new

    def flush(self, *, cut: bool = False) -> str:
        """The rest of the text; bytes that make no character are U+FFFD.

        `cut`: the answer was cut by its length, and a character whose tokens are not all there is
        left out.
        """
        text = self._decode(self._window)
        new = (text.rstrip(REPLACEMENT) if cut else text)[self._sent :]
        self._sent += len(new)
        return new
