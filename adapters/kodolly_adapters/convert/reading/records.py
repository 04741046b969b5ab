"""Parses a shard into typed records: fast as a whole, and one by one where that fails."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise, zip_longest
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from kodolly_adapters.errors import InputError

from ..schema import Rejection
from .source import Source, border_pattern

Kind = Literal["array", "data", "lines", "object", "csv"]
LINE = re.compile(rb"^.*\S", re.MULTILINE)  # one that is not blank, without white space at its end
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One task: a stretch of whole records of a file, and its place there. It is sent to other processes.

    `key` orders the shards of a run; `offset` and `line` are those of the first byte of `data` in the file.
    `digest` is the xxh3 hash of `data`.
    """

    key: str
    file: str
    source: str
    kind: Kind
    header: tuple[str, ...] = ()  # column names of a CSV
    offset: int = 0
    line: int = 1
    data: bytes = b""
    last: bool = True
    digest: str = ""

    @property
    def identity(self) -> str:
        """What its part depends on besides the options: the shard's place and bytes."""
        return f"{self.kind} {self.offset} {self.line} {self.last} {self.digest}"


def decode(shard: Shard, source: Source, *, keep_going: bool = False) -> list[Any]:
    """The shard's records in order, with a Rejection for each that cannot be decoded.

    A JSONL line that is no JSON is rejected. In an array, bytes that are no JSON raise InputError, which names
    the byte: what follows them cannot be trusted. With `keep_going` they are rejected too. The same holds for
    records of a CSV that are not UTF-8.
    """
    if shard.kind == "csv":
        return _decode_csv(shard, source, keep_going=keep_going)
    if shard.kind == "lines":
        return _decode_lines(shard.data, source)
    head, body, tail = _as_document(shard)
    text = head + body + tail
    with suppress(*DECODE_ERRORS):
        return _records(_decoder(source.record, shard.kind, shard.last).decode(text))
    if (records := _decode_each(shard, source, text)) is not None:
        return records
    try:
        value = json.loads(text)  # accepts half a surrogate pair, and says where the JSON breaks
        if isinstance(value, dict) and shard.kind == "data":
            value = value["data"]
        return [_as_record(one, source) for one in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError, KeyError) as error:
        if keep_going:
            return _between_borders(body, source)
        raise _broken_file(shard, error, len(head), body) from None


def places(shard: Shard, source: Source, records: int) -> NDArray[np.int64]:
    """The byte offset and the line of every record in the file, shape (records, 2).

    With unusual white space between records their places are unknown: each gets the shard's.
    """
    starts = np.array(_starts(shard, source), np.int64)
    if len(starts) != records:
        return np.tile(np.array([[shard.offset, shard.line]], np.int64), (records, 1))
    line_ends = np.flatnonzero(np.frombuffer(shard.data, np.uint8) == ord("\n"))
    lines = np.searchsorted(line_ends, starts)
    return np.stack([starts + shard.offset, lines + shard.line], axis=1)


def _starts(shard: Shard, source: Source) -> list[int]:
    """Where each record begins in the shard's bytes."""
    data = shard.data
    if shard.kind == "object":
        return []
    if shard.kind == "csv":
        return [start for start, _, _ in _csv_rows(data)]
    if shard.kind == "lines":
        return [match.start() for match in LINE.finditer(data)]
    first = data.find(b"{")
    between = [match.start(1) for match in border_pattern(source.first_keys).finditer(data)]
    return [first, *between] if first >= 0 else []


@functools.cache
def _decoder(record: Any, kind: Kind = "lines", last: bool = True) -> msgspec.json.Decoder[Any]:
    """The decoder of one record, or of the document that `_as_document` makes of a shard."""
    if kind in ("lines", "object"):
        return msgspec.json.Decoder(record)
    if kind == "data" and last:
        return msgspec.json.Decoder(msgspec.defstruct("Data", [("data", list[record])]))
    return msgspec.json.Decoder(list[record])


def _records(value: Any) -> list[Any]:
    value = getattr(value, "data", value)
    return value if isinstance(value, list) else [value]


def _as_document(shard: Shard) -> tuple[bytes, bytes, bytes]:
    """The shard as a JSON document: the bytes to add before it, the shard's own, the bytes to add after."""
    if shard.kind == "object":
        return b"", shard.data, b""
    body = shard.data.lstrip(b" \t\r\n")
    if body[:1] == b",":
        body = body[1:]
    if not shard.last:
        return b"[", body, b"]"
    return (b'{"data":[' if shard.kind == "data" else b"["), body, b""


def _decode_each(shard: Shard, source: Source, text: bytes) -> list[Any] | None:
    """Decode the records one by one, those of the wrong shape as Rejection; None: the text is no JSON.

    With msgspec, as when all are decoded at once, so that a record's result does not depend on its neighbours.
    """
    try:
        values = _records(_decoder(msgspec.Raw, shard.kind, shard.last).decode(text))
    except DECODE_ERRORS:
        return None
    records = [parse_record(bytes(value), source) for value in values]
    if any(type(one) is Rejection and one.reason == "not-json" for one in records):
        return None  # not UTF-8, which msgspec.Raw does not check
    return records


def _broken_file(shard: Shard, error: Exception, head: int, body: bytes) -> InputError:
    """The InputError for a decoding error, with the byte where the file stops being JSON."""
    at, is_truncated = 0, False
    if isinstance(error, json.JSONDecodeError):
        at = len(error.doc[: error.pos].encode("utf-8", "surrogatepass")) - head
        what = f"is not JSON: {error.msg}"
        is_truncated = at >= len(body.rstrip()) or error.msg.startswith("Unterminated")
    elif isinstance(error, UnicodeDecodeError):
        at, what = error.start - head, f"is not UTF-8: {error.reason}"
        is_truncated = error.reason == "unexpected end of data"
    elif isinstance(error, RecursionError):
        what = "is nested too deeply"
    else:
        what = f"does not hold what its beginning promised: {error}"
    if is_truncated and shard.last:
        what = "ends in the middle of a record"
    byte = shard.offset + len(shard.data) - len(body) + min(max(at, 0), len(body))
    hint = "Fetch it again, or give --keep-going to reject what is broken and convert the rest."
    return InputError(shard.file, f"{what}. {hint}", byte)


def _between_borders(body: bytes, source: Source) -> list[Any]:
    """Parse the text between each two borders of records by itself."""
    borders = [match.start() + 1 for match in border_pattern(source.first_keys).finditer(body)]
    records = []
    for start, end in pairwise([0, *borders, len(body)]):
        text = body[start:end].strip(b", \t\r\n")
        if end == len(body) and not text.endswith(b"}"):
            text = text[: text.rfind(b"}") + 1] or text
        if text and text != b"]":
            records.append(parse_record(text, source))
    return records


def _decode_lines(data: bytes, source: Source) -> list[Any]:
    lines = [line for line in data.split(b"\n") if line.strip()]
    try:
        records = _decoder(source.record).decode_lines(data)
    except DECODE_ERRORS:
        records = []
    # decode_lines also accepts a record over several lines, and several records in a line. Then each line is
    # parsed alone, so that its result does not depend on its neighbours.
    return records if len(records) == len(lines) else [parse_record(line, source) for line in lines]


def parse_record(text: bytes, source: Source) -> Any:
    """One record, or its Rejection."""
    try:
        return _decoder(source.record).decode(text)
    except msgspec.ValidationError as error:
        return Rejection("wrong-shape", str(error))
    except DECODE_ERRORS as error:
        return Rejection("not-json", str(error))


def _as_record(value: Any, source: Source) -> Any:
    try:
        return msgspec.convert(value, source.record)
    except msgspec.ValidationError as error:
        return Rejection("wrong-shape", str(error))


def _decode_csv(shard: Shard, source: Source, *, keep_going: bool) -> list[Any]:
    records: list[Any] = []
    for _, fields, at in _csv_rows(shard.data):
        if isinstance(fields, Rejection):
            if not keep_going:
                hint = "Convert it to UTF-8, or give --keep-going to reject what is broken."
                reason = f"is no UTF-8 CSV: {fields.detail}. {hint}"
                raise InputError(shard.file, reason, shard.offset + at)
            records.append(fields)
        elif len(fields) > len(shard.header):
            detail = f"{len(fields)} fields where the header has {len(shard.header)}"
            records.append(Rejection("wrong-shape", detail))
        else:
            records.append(_as_record(dict(zip_longest(shard.header, fields)), source))
    return records


def _csv_rows(data: bytes) -> Iterator[tuple[int, list[str] | Rejection, int]]:
    """For each record: its first byte, its fields or their Rejection, and the byte that an error names.

    Line ends inside quotes are part of a record; empty lines are no records.
    """
    position = 0  # bytes that the reader has taken
    fault: tuple[str, int] | None = None

    def lines() -> Iterator[str]:
        nonlocal position, fault
        for line in data.splitlines(keepends=True):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                fault = fault or (str(error), position + error.start)
                text = line.decode("utf-8", "replace")  # the reader needs its quotes
            position += len(line)
            yield text

    reader = csv.reader(lines())
    while True:
        start, fault = position, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Rejection("wrong-shape", str(error)), start
            continue
        if fault:
            yield start, Rejection("not-unicode", fault[0]), fault[1]
        elif fields:
            yield start, fields, start
