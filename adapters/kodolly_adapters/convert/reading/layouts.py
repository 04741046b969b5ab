"""How a file holds its records, recognised by its first bytes."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .records import Kind
from .source import Source

DELIMITERS = ",\t;"
STRING = r'"(?:[^"\\]|\\.)*"'
ARRAY = re.compile(r"\s*\[")
OBJECT = re.compile(r"\s*\{")
FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
KEY = re.compile(r'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
BETWEEN = re.compile(r"\s*,\s*|\s*")
DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file holds its records.

    `start` is the offset of the first record's bytes: past a byte order mark, `[` or a CSV's header.
    `record` is the first record, or the complete fields of its beginning; None if it is unreadable or no object.
    `cut_off` says that the record goes on after the bytes that were read. `first_key` is the first key of the first
    record as it is written, if no object inside that record begins with it too; else "".
    """

    kind: Kind
    start: int
    header: tuple[str, ...] = ()  # column names of a CSV
    delimiter: str = ","
    record: Mapping[str, Any] | None = None
    cut_off: bool = False
    first_key: str = ""

    def suits(self, source: Source) -> bool:
        """Can a file with this layout belong to the source?"""
        if self.kind != "csv" and source.layout != "csv":
            return True
        return self.record is not None and source.looks_like(self.record)


def layout_of(head: bytes) -> Layout | None:
    """The likeliest of `layouts_of`; None: no data file."""
    return next(layouts_of(head), None)


def layouts_of(head: bytes) -> Iterator[Layout]:
    """The layouts that a file beginning with `head` can have, the likeliest first; `head` may end anywhere."""
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    body = head[start:]
    # One character a byte, so that places in the text are places in the file; keys and values are decoded later.
    text = body.decode("latin-1")
    if match := ARRAY.match(text):
        yield _of_record("array", head, start + match.end())
    elif OBJECT.match(text):
        for key, at, opening in _values(text):
            if key == "data" and opening == "[":
                yield _of_record("data", head, start + at + 1)
                break
        if record := _first_object(body):
            yield Layout("lines", start, record=record)
        else:
            yield _of_record("objects", head, start)
        for _, at, _ in _values(text):
            if (at := text.find("{", at)) >= 0:
                yield _of_record("wrapped", head, start + at)
    elif layout := _csv(head, start):
        yield layout


def _values(text: str) -> Iterator[tuple[str, int, str]]:
    """The key, place and first character of each list or object of objects in an object that may end early."""
    position = text.index("{") + 1
    while entry := KEY.match(text, position):
        match = re.compile(r"\[(?=\s*[{\]])|\{").match(text, entry.end())
        if match:
            yield entry[1], match.start(), match[0]
        try:
            _, position = DECODER.raw_decode(text, entry.end())
        except (ValueError, RecursionError):
            return


def _of_record(kind: Kind, head: bytes, start: int) -> Layout:
    """The layout whose first record begins at `start`."""
    text = head[start:].decode("utf-8", "ignore").lstrip()
    cut_off = False
    try:
        record, end = DECODER.raw_decode(text)
        is_object = isinstance(record, dict)
        first_key = _first_key(text[:end]) if is_object else ""
        return Layout(kind, start, record=record if is_object else None, first_key=first_key)
    except json.JSONDecodeError as error:  # only one at the end may go away with more bytes
        cut_off = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
    except (ValueError, RecursionError):
        pass
    entries = _complete_entries(text) if text.startswith("{") else None
    return Layout(kind, start, record=entries, cut_off=cut_off)


def _first_key(record: str) -> str:
    match = FIRST_KEY.match(record)
    if not match or re.search(rf'\{{\s*"{re.escape(match[1])}"\s*:', record[match.end() :]):
        return ""
    return match[1]


def _complete_entries(text: str, position: int = 0) -> Any:
    """The complete entries of an object or list that ends early: of {"a": 1, "b": [2, 3 it is {"a": 1, "b": [2]}.

    They are enough to recognise a source. None where no entry is complete, and for any other value.
    """
    is_list = text.startswith("[", position)
    entries: list[Any] = []
    if is_list or text.startswith("{", position):
        position += 1
        while entry := (BETWEEN if is_list else KEY).match(text, position):
            try:
                value, position = DECODER.raw_decode(text, entry.end())
            except (ValueError, RecursionError):
                if not is_list:
                    in_list = text.startswith("[", entry.end())
                    value = _complete_entries(text, entry.end()) if in_list else None
                    entries.append((entry[1], value))
                break
            entries.append(value if is_list else (entry[1], value))
    return (entries if is_list else dict(entries)) or None


def _first_object(body: bytes) -> Mapping[str, Any] | None:
    """The first object of a JSONL file: one of 20 lines, after which another object begins."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    for line, next_line in zip(lines[:20], [*lines[1:], b"{"], strict=False):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and next_line.lstrip().startswith(b"{"):
            return record
    return None


def _csv(head: bytes, start: int) -> Layout | None:
    line, newline, _ = head[start:].partition(b"\n")
    try:
        text = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        return None
    header: list[str] = []
    delimiter = ","
    for sign in DELIMITERS:
        with_sign = _fields(text, sign)
        if len(with_sign) > len(header):
            header, delimiter = with_sign, sign
    names = [name.strip() for name in header]
    if len(names) < 2 or not all(names[1:]) or any(len(name) > 40 for name in header):
        return None  # the first may be empty: it is the index that pandas writes
    record = dict.fromkeys(names, "")
    return Layout("csv", start + len(line) + len(newline), tuple(names), delimiter, record)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
