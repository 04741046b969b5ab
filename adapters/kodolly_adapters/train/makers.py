"""A batch of rows, or of running text, to sequences of tokens, each with the row's fate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .fit import KEPT, Fitter
from .mask import Encoder, Tokens
from .render import Renderer
from .rows import Row, Section


class Made(NamedTuple):
    """What a row became. `tokens` is its length before anything was cut."""

    fate: str
    tokens: int
    sequences: Sequence[Tokens]


EMPTY = Made("empty", 0, ())


class RowMaker:
    """Dolly rows and dialogues, of which the answers are learned; a row is one sequence."""

    def __init__(self, renderer: Renderer, encoder: Encoder, limit: int) -> None:
        self._renderer = renderer
        self._encoder = encoder
        self._fitter = Fitter(renderer, encoder, limit)
        self._limit = limit

    def make(self, rows: Sequence[Row]) -> Iterator[Made]:
        """In the order of the rows. Raises DataError naming file and line."""
        texts = [self._renderer.row(row) for row in rows if not row.is_empty]
        encoded = iter(self._encoder.encode(texts))
        for row in rows:
            yield EMPTY if row.is_empty else self._fitted(row, next(encoded))

    def _fitted(self, row: Row, tokens: Tokens) -> Made:
        if len(tokens) <= self._limit:
            return Made(KEPT, len(tokens), (tokens,))
        fate, left = self._fitter.fit(row.messages)
        return Made(fate, len(tokens), () if left is None else (left,))


class TextMaker:
    """Running text, of which every token is learned, in sequences of about the same length.

    A document begins as the tokenizer begins a text and ends with its end token.
    """

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self._encoder = encoder
        self._limit = limit

    def make(self, sections: Sequence[Section]) -> Iterator[Made]:
        """In the order of the sections."""
        encoded = self._encoder.plain_ids([section.content for section in sections])
        for section, ids in zip(sections, encoded, strict=True):
            if section.is_empty:
                yield EMPTY
                continue
            before = self._encoder.bos_ids if section.first else []
            after = [self._encoder.eos_id] if section.last else []
            pieces = self._pieces([*before, *ids, *after])
            fate = KEPT if len(pieces) == 1 else "split"
            yield Made(fate, sum(map(len, pieces)), pieces)

    def _pieces(self, ids: list[int]) -> list[Tokens]:
        """As few pieces as can be, of even lengths: a last one of a token or two would teach nothing."""
        count = -(-len(ids) // self._limit)
        borders = [len(ids) * number // count for number in range(count + 1)]
        pieces = (ids[a:b] for a, b in pairwise(borders))
        return [Tokens(piece, [(0, len(piece))]) for piece in pieces]
