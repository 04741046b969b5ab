"""How a file holds its records, told from its first bytes."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["array", "data", "lines", "object", "csv"]

SCALAR = rb'(?:"(?:[^"\\]|\\.)*"|[-\d.eE+]+|true|false|null)'
DATA = re.compile(rb'\s*\{(?:\s*"(?:[^"\\]|\\.)*"\s*:\s*' + SCALAR + rb'\s*,)*\s*"data"\s*:\s*\[')
ARRAY = re.compile(rb"\s*\[")
OBJECT = re.compile(rb"\s*\{")


@dataclass(frozen=True, slots=True)
class Layout:
    """`start` is the offset of the first record's bytes: past a byte order mark, `[` or a CSV's header."""

    kind: Kind
    start: int
    header: tuple[str, ...] = ()  # column names of a CSV


def layout_of(head: bytes) -> Layout | None:
    """The layout of a file that begins with `head` (whole lines are not needed); None: no data file."""
    bom = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    body = head[bom:]
    if found := ARRAY.match(body):
        return Layout("array", bom + found.end())
    if found := DATA.match(body):
        return Layout("data", bom + found.end())
    if OBJECT.match(body):
        return Layout("lines" if _is_lines(body) else "object", bom)
    return _csv(head, bom)


def first_record(head: bytes, layout: Layout) -> Mapping[str, Any] | None:
    """The first record as far as `head` tells, or None: unreadable, cut off or no object."""
    if layout.kind == "csv":
        return dict.fromkeys(layout.header, "")
    text = _text(head, layout)
    try:
        record, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        later = _whole_line(head[layout.start :]) if layout.kind == "lines" else None
        return later or _keys(text)
    return record if isinstance(record, dict) else None


def is_cut_off(head: bytes, layout: Layout) -> bool:
    """Whether the first record goes on beyond `head`, so that more of it would tell more."""
    if layout.kind in ("csv", "lines"):
        return False
    text = _text(head, layout)
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:  # a fault before the end is one that more does not mend
        return error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
    except RecursionError:
        pass
    return False


def _text(head: bytes, layout: Layout) -> str:
    return head[layout.start :].decode("utf-8", "ignore").lstrip()


def _keys(text: str) -> Mapping[str, Any] | None:
    """An object that `text` cuts off, as far as it is whole: enough to tell a source.

    Of a list that is cut off there are the elements before the cut; any other such value is None.
    """
    decoder = json.JSONDecoder()
    keys: dict[str, Any] = {}
    position = text.find("{") + 1
    if position != 1:
        return None
    while found := re.compile(r'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*').match(text, position):
        keys[found[1]] = None
        try:
            keys[found[1]], position = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            keys[found[1]] = _elements(text, found.end()) or None
            break  # the value runs beyond what was read
    return keys or None


def _elements(text: str, position: int) -> list[Any]:
    """The whole elements of the list that begins at `position`, if one does."""
    decoder, elements = json.JSONDecoder(), []
    between = re.compile(r"\s*,\s*|\s*")
    if not text.startswith("[", position):
        return []
    position += 1
    while found := between.match(text, position):
        try:
            element, position = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            break
        elements.append(element)
    return elements


def _is_lines(body: bytes) -> bool:
    return _whole_line(body) is not None


def _whole_line(body: bytes) -> Mapping[str, Any] | None:
    """The first of the first lines that is a whole JSON object and followed by another's beginning."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    for line, following in zip(lines[:20], [*lines[1:], b"{"], strict=False):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and following.lstrip().startswith(b"{"):
            return record
    return None


def _csv(head: bytes, bom: int) -> Layout | None:
    line, newline, _ = head[bom:].partition(b"\n")
    try:
        header = next(csv.reader([line.decode("utf-8").rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(header) < 2 or not all(name.strip() and len(name) <= 40 for name in header):
        return None
    return Layout("csv", bom + len(line) + len(newline), tuple(name.strip() for name in header))
