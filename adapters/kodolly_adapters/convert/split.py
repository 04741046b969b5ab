"""A stream of bytes cut into pieces at the borders of its records, without parsing them.

Where one record of an array ends and the next begins, the bytes read `}, {"KEY":`. Inside a JSON string a quote
is always written `\\"`, so with KEY one of the source's first keys that sequence is a border and nothing
else; a regular expression finds it at over 1 GB/s.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kodolly_adapters.errors import InputError

from .reading.layout import Layout
from .reading.source import Source

PIECE = (
    4 << 20
)  # bytes; small enough to keep a worker under 100 MB, large enough to amortise a task
MAX_RECORD = 64 << 20  # bytes; beyond this a file is not what it seems

Take = Callable[[int, int], bytes]  # (offset, size) to bytes; fewer than `size` only at the end


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole records in a row. `offset` and `line` (from 1) say where `data` begins in the file."""

    offset: int
    line: int
    data: memoryview
    last: bool


def pieces(
    take: Take, layout: Layout, source: Source, file: str, size: int = PIECE
) -> Iterator[Piece]:
    """The file's pieces of some `size` bytes, in order; their data joined is the file's.

    Raises InputError when no border is found within MAX_RECORD bytes.
    """
    border = _border(layout, source)
    offset, line, wanted = 0, 1, size
    while len(data := take(offset, wanted)) == wanted:
        cut = border(data)
        if cut <= (layout.start if offset == 0 else 0):
            if len(data) > MAX_RECORD:
                raise InputError(file, f"no record ends within {MAX_RECORD >> 20} MiB", offset)
            wanted += wanted // 2 + 1  # by shares: a long record is not to be read again and again
            continue
        piece = memoryview(data)[:cut]
        yield _trimmed(piece, offset, line, layout, last=False)
        line += _line_ends(piece)
        offset, wanted = offset + cut, size
    yield _trimmed(memoryview(data), offset, line, layout, last=True)


def _trimmed(data: memoryview, offset: int, line: int, layout: Layout, *, last: bool) -> Piece:
    """The piece without what stands before the first record."""
    skip = layout.start if offset == 0 else 0
    return Piece(offset + skip, line + _line_ends(data[:skip]), data[skip:], last)


def _line_ends(data: memoryview) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _border(layout: Layout, source: Source) -> Callable[[bytes], int]:
    """A function from a buffer to the end of its last whole record, 0 if there is none."""
    if layout.kind == "object":
        return lambda buffer: 0
    if layout.kind == "lines":
        return lambda buffer: buffer.rfind(b"\n") + 1
    if layout.kind == "csv":
        return _csv_border
    pattern = border_pattern(source)

    def last_border(buffer: bytes) -> int:
        reach = 1 << 16
        while True:  # the last border is near the end; records are seldom larger than 64 KiB
            start = max(0, len(buffer) - reach)
            if found := deque(pattern.finditer(buffer, start), maxlen=1):
                return int(found[0].start()) + 1
            if start == 0:
                return 0
            reach *= 4

    return last_border


def border_pattern(source: Source) -> re.Pattern[bytes]:
    """Matches from the `}` that ends a record to the first key of the next, whose `{` is group 1."""
    keys = b"|".join(re.escape(key.encode()) for key in sorted(source.first_keys))
    return re.compile(rb'\}\s*,\s*(\{)\s*"(?:' + keys + rb')"\s*:')


def _csv_border(buffer: bytes) -> int:
    """The last line end outside quotes."""
    end = len(buffer)
    quotes = buffer.count(b'"')
    while (newline := buffer.rfind(b"\n", 0, end)) >= 0:
        quotes -= buffer.count(b'"', newline, end)
        if quotes % 2 == 0:
            return newline + 1
        end = newline
    return 0
