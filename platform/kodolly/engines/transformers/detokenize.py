"""Tokens to text that is safe to send: whole characters only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"

# Tokens of the prompt that are decoded with an answer's first ones.
CONTEXT = 8

Decode = Callable[[list[int]], str]


class Detokenizer:
    """Text of a growing answer, one token at a time.

    A token may end inside a character (a rare Hangul syllable is three bytes, often two or three
    tokens): what decodes to U+FFFD at the end is held back until later tokens settle it. The
    pieces of `push` and `flush` together are the decoded whole.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        """`prompt`: tokens before the answer, which may be the beginning of the same text."""
        self._decode = decode
        # Decoders treat the first token's leading space apart, so the tokens of the last settled
        # piece stay in the window as context; at first the prompt's last ones.
        self._window: list[int] = list(prompt[-CONTEXT:])
        self._context = len(self._window)  # tokens at the window's start whose text was given out
        # Characters of the window's text that were given out.
        self._sent = len(decode(self._window).rstrip(REPLACEMENT)) if self._window else 0

    def push(self, token: int) -> str:
        """The text that `token` settles: often "", never ending in half a character."""
        self._window.append(token)
        text = self._decode(self._window)
        settled = text.rstrip(REPLACEMENT)
        new = settled[self._sent :]
        self._sent += len(new)
        if new and len(settled) == len(text):
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._sent = len(self._decode(self._window))
        return new

    def flush(self) -> str:
        """What is still held back, with U+FFFD where bytes are no character."""
        new = self._decode(self._window)[self._sent :]
        self._sent += len(new)
        return new
