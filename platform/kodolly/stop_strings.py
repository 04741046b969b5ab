"""Cuts a streamed text at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Takes a text piece by piece and ends it at the first stop string, even one split over pieces.

    The end of the text is kept back while it may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string itself is part of the text."""
        self._stops = tuple(stops)
        self._include = include
        self._pending = ""  # text that may be the beginning of a stop string

    def push(self, text: str) -> tuple[str, str | None]:
        """Adds a piece; returns the text to send now, and the stop string if one has ended it."""
        if not self._stops:
            return text, None
        text = self._pending + text
        matches = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if matches:
            start, stop = min(matches, key=lambda match: (match[0], -len(match[1])))
            self._pending = ""
            return text[: start + len(stop) if self._include else start], stop
        end = len(text) - max(overlap(text, stop) for stop in self._stops)
        self._pending = text[end:]
        return text[:end], None

    def flush(self) -> str:
        """The text has ended: returns the rest of it, which was no stop string after all."""
        rest, self._pending = self._pending, ""
        return rest


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
