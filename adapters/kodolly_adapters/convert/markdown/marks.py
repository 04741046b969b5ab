"""Marks: characters put into a page at the borders of its answers, to find the borders again in the Markdown."""

from __future__ import annotations

import re
from itertools import chain, islice

Span = tuple[int, int]  # [start, end), in characters

# Noncharacters first, then characters for private use.
_CANDIDATES = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0x10FFFE))


class Marks:
    """`count` characters that are not in `text`: marks 0, 2, ... begin an answer, marks 1, 3, ... end it."""

    def __init__(self, text: str, count: int) -> None:
        unused = (mark for mark in map(chr, chain(*_CANDIDATES)) if mark not in text)
        self.all = "".join(islice(unused, count))
        self._starts = frozenset(self.all[::2])
        self._split = re.compile(f"([{re.escape(self.all)}])" if self.all else "(?!)()")
        self.holds = self._split.search  # is a mark in the text?

    def collapse(self, text: str) -> tuple[str, str, str]:
        """Make each stretch of white space one space, and remove it at the two ends inside an answer.

        Returns the end marks that come before the first word, the text with the marks in it, and the start
        marks that come after the last word.
        """
        before = starts = ""
        pieces: list[str] = []
        space = False
        for number, piece in enumerate(self._split.split(text)):
            if number % 2:
                if piece in self._starts:
                    starts += piece
                elif pieces:
                    pieces.append(piece)
                else:
                    before += piece
                continue
            words = " ".join(piece.split())
            if not words:
                space = space or bool(piece)
                continue
            if pieces and (space or piece[0].isspace()):
                pieces.append(" ")
            pieces += (starts, words)
            starts = ""
            space = piece[-1].isspace()
        return before, "".join(pieces), starts

    def without(self, text: str) -> str:
        """The text with no marks."""
        return self._split.sub("", text) if self.all else text

    def take_out(self, text: str) -> tuple[str, list[int | None]]:
        """The text without marks, and the offset of each mark's first occurrence (None: it has none)."""
        pieces = self._split.split(text)
        offsets: dict[str, int] = {}
        at = 0
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            at += len(piece)
            offsets.setdefault(mark, at)
        return "".join(pieces[::2]), [offsets.get(mark) for mark in self.all]
