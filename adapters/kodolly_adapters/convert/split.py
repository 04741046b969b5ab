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

from .errors import InputError
from .layout import Layout
from .source import Source

PIECE = (
    4 << 20
)  # bytes; small enough to keep a worker under 100 MB, large enough to amortise a task
MAX_RECORD = 64 << 20  # bytes; beyond this a file is not what it seems

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole records in a row. `offset` and `line` (from 1) say where `data` begins in the file."""

    offset: int
    line: int
    data: bytes
    last: bool


def pieces(
    read: Read, layout: Layout, source: Source, file: str, size: int = PIECE
) -> Iterator[Piece]:
    """The stream's pieces of some `size` bytes, in order; their data joined is the stream's.

    Raises InputError when no border is found within MAX_RECORD bytes.
    """
    border = _border(layout, source)
    offset, line = 0, 1
    buffer = bytearray()
    while True:
        wanted = max(size - len(buffer), size // 4, 1)
        data = read(wanted)
        buffer += data
        if not data:
            break
        if len(buffer) < size:
            continue
        cut = border(buffer)
        if cut <= (layout.start if offset == 0 else 0):
            if len(buffer) > MAX_RECORD:
                raise InputError(file, f"no record ends within {MAX_RECORD >> 20} MiB", offset)
            continue
        piece = bytes(memoryview(buffer)[:cut])
        yield _trimmed(piece, offset, line, layout, last=False)
        line += int(np.count_nonzero(np.frombuffer(piece, np.uint8) == ord("\n")))
        offset += cut
        del buffer[:cut]
    yield _trimmed(bytes(buffer), offset, line, layout, last=True)


def _trimmed(data: bytes, offset: int, line: int, layout: Layout, *, last: bool) -> Piece:
    """The piece without what stands before the first record."""
    skip = layout.start if offset == 0 else 0
    return Piece(offset + skip, line + data.count(b"\n", 0, skip), data[skip:], last)


def _border(layout: Layout, source: Source) -> Callable[[bytearray], int]:
    """A function from a buffer to the end of its last whole record, 0 if there is none."""
    if layout.kind == "object":
        return lambda buffer: 0
    if layout.kind == "lines":
        return lambda buffer: buffer.rfind(b"\n") + 1
    if layout.kind == "csv":
        return _csv_border
    pattern = border_pattern(source)

    def last_border(buffer: bytearray) -> int:
        reach = 1 << 18
        while True:  # the last border is near the end; records are seldom larger than 256 KiB
            start = max(0, len(buffer) - reach)
            if found := deque(pattern.finditer(buffer, start), maxlen=1):
                return int(found[0].start()) + 1
            if start == 0:
                return 0
            reach *= 4

    return last_border


def border_pattern(source: Source) -> re.Pattern[bytes]:
    """Matches from the `}` that ends a record to the first key of the next."""
    keys = b"|".join(re.escape(key.encode()) for key in sorted(source.first_keys))
    return re.compile(rb'\}\s*,\s*\{\s*"(?:' + keys + rb')"\s*:')


def _csv_border(buffer: bytearray) -> int:
    """The last line end outside quotes."""
    end = len(buffer)
    quotes = buffer.count(b'"')
    while (newline := buffer.rfind(b"\n", 0, end)) >= 0:
        quotes -= buffer.count(b'"', newline, end)
        if quotes % 2 == 0:
            return newline + 1
        end = newline
    return 0
