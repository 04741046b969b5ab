"""Finds the objects in JSON text that is not one valid document: concatenated, with stray commas, partly broken."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

DECODER = json.JSONDecoder()
BETWEEN = re.compile(
    rb"(?:[\s,\[\]]|\xef\xbb\xbf)*"
)  # a byte order mark, where two files were joined
STRING = rb'"(?:[^"\\]|\\.)*"'
# In a wrapper, {"KEY": RECORD, ...} or {"KEY": [RECORD, ...], ...}, also keys and single values.
IN_WRAPPER = re.compile(
    rb"(?:[\s,\[\]}]|\xef\xbb\xbf|" + STRING + rb"\s*:\s*(?:" + STRING + rb"|[-+.\w]+)?)*"
)
PATIENCE = 8  # how often the text may be parsed in vain, before objects are only sought up to the next border


class Piece(NamedTuple):
    """An object's bytes, or a stretch of text that is none, and where it begins."""

    start: int
    text: bytes
    is_object: bool


def pieces(data: bytes, borders: re.Pattern[bytes], *, in_wrapper: bool = False) -> Iterator[Piece]:
    """The objects of `data` in order, and the stretches between them that hold anything else than separators.

    `borders` finds the `{` (group 1) at which reading goes on after something broken. The last piece is the rest
    after the last object: closing brackets, or b"".
    """
    text = data.decode("latin-1")  # a character a byte; the syntax of JSON is ASCII
    starts = [match.start(1) for match in borders.finditer(data)]
    between = IN_WRAPPER if in_wrapper else BETWEEN
    spare = PATIENCE * len(data)
    at = 0
    while True:
        before, at = at, between.match(data, at).end()  # type: ignore[union-attr]
        if at == len(data):
            yield Piece(before, data[before:], False)
            return
        number = bisect_right(starts, at)
        border = starts[number] if number < len(starts) else len(data)
        end = at
        if data[at] == ord("{"):
            try:
                if spare > 0:
                    _, end = DECODER.raw_decode(text, at)
                else:
                    end = at + DECODER.raw_decode(text[at:border])[1]
            except (
                json.JSONDecodeError
            ) as error:  # it counts the lines before it, at 64 bytes a step
                spare -= error.pos - at + error.pos // 64 + 1
            except (ValueError, RecursionError):
                spare -= len(data) - at
        if end > at:
            yield Piece(at, data[at:end], True)
        else:
            end = border
            broken = data[at:end].rstrip(b" \t\r\n,[]")
            if in_wrapper and end == len(data):
                broken = broken.rstrip(b" \t\r\n,[]}")
            yield Piece(at, broken, False)
        at = end
