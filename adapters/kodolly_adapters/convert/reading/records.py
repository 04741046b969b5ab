"""A piece of a file to typed records: one fast parse, and a slow second look where that fails."""

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

from ..schema import Refusal
from .source import Source, border_pattern

Kind = Literal["array", "data", "lines", "object", "csv"]
LINE = re.compile(rb"^.*\S", re.MULTILINE)  # one that is not blank, without white space at its end
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One task: whole records in a row, and where they stand. It crosses process borders.

    `key` orders shards of a run; `offset` and `line` are those of the first byte of `data` in the file.
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
        """What a part made of it depends on, options aside."""
        return f"{self.kind} {self.offset} {self.line} {self.last} {self.digest}"


def decode(shard: Shard, source: Source, *, keep_going: bool = False) -> list[Any]:
    """The shard's records in order, with a Refusal where one cannot be had.

    A line of JSONL that is no JSON is refused; inside an array it stops everything, because what follows it
    cannot be trusted: InputError names the byte. With `keep_going` it is refused there too. So are a CSV's
    records that are not UTF-8.
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
        value = json.loads(text)  # takes half a surrogate pair, and knows where JSON ends
        if isinstance(value, dict) and shard.kind == "data":
            value = value["data"]
        return [_typed(one, source) for one in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError, KeyError) as error:
        if keep_going:
            return _between_borders(body, source)
        raise _broken_file(shard, error, len(head), body) from None


def places(shard: Shard, source: Source, records: int) -> NDArray[np.int64]:
    """The byte offset and the line of every record in the file, shape (records, 2).

    Where records stand in an unusual spacing it is the shard's own place, the best we know.
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
    """The decoder of one record, or of a whole shard that `_as_document` made a document of."""
    if kind in ("lines", "object"):
        return msgspec.json.Decoder(record)
    if kind == "data" and last:
        return msgspec.json.Decoder(msgspec.defstruct("Data", [("data", list[record])]))
    return msgspec.json.Decoder(list[record])


def _records(value: Any) -> list[Any]:
    value = getattr(value, "data", value)
    return value if isinstance(value, list) else [value]


def _as_document(shard: Shard) -> tuple[bytes, bytes, bytes]:
    """The shard as a JSON document of its own: what to put before, the body, what to put after."""
    if shard.kind == "object":
        return b"", shard.data, b""
    body = shard.data.lstrip(b" \t\r\n")
    if body[:1] == b",":
        body = body[1:]
    if not shard.last:
        return b"[", body, b"]"
    return (b'{"data":[' if shard.kind == "data" else b"["), body, b""


def _decode_each(shard: Shard, source: Source, text: bytes) -> list[Any] | None:
    """The records of sound JSON, those of another shape as Refusal; None: it is no JSON.

    By msgspec too, so that what is sound does not depend on the records beside it.
    """
    try:
        values = _records(_decoder(msgspec.Raw, shard.kind, shard.last).decode(text))
    except DECODE_ERRORS:
        return None
    records = [parsed(bytes(value), source) for value in values]
    if any(type(one) is Refusal and one.reason == "not-json" for one in records):
        return None  # bytes that are no UTF-8, which only a look into the record shows
    return records


def _broken_file(shard: Shard, error: Exception, head: int, body: bytes) -> InputError:
    """The same fault with the byte where the file stops being JSON."""
    at, torn = 0, False
    if isinstance(error, json.JSONDecodeError):
        at = len(error.doc[: error.pos].encode("utf-8", "surrogatepass")) - head
        what = f"is no JSON: {error.msg}"
        torn = at >= len(body.rstrip()) or error.msg.startswith("Unterminated")
    elif isinstance(error, UnicodeDecodeError):
        at, what = error.start - head, f"is not UTF-8: {error.reason}"
        torn = error.reason == "unexpected end of data"
    elif isinstance(error, RecursionError):
        what = "is nested too deeply"
    else:
        what = f"does not hold what its beginning promised: {error}"
    if torn and shard.last:
        what = "ends in the middle of a record"
    byte = shard.offset + len(shard.data) - len(body) + min(max(at, 0), len(body))
    hint = "Fetch it again, or give --keep-going to reject what is broken and convert the rest."
    return InputError(shard.file, f"{what}. {hint}", byte)


def _between_borders(body: bytes, source: Source) -> list[Any]:
    """Every record between two borders, parsed alone."""
    borders = [match.start() + 1 for match in border_pattern(source.first_keys).finditer(body)]
    records = []
    for start, end in pairwise([0, *borders, len(body)]):
        text = body[start:end].strip(b", \t\r\n")
        if end == len(body) and not text.endswith(b"}"):
            text = text[: text.rfind(b"}") + 1] or text
        if text and text != b"]":
            records.append(parsed(text, source))
    return records


def _decode_lines(data: bytes, source: Source) -> list[Any]:
    lines = [line for line in data.split(b"\n") if line.strip()]
    try:
        records = _decoder(source.record).decode_lines(data)
    except DECODE_ERRORS:
        records = []
    # decode_lines also takes a record over several lines and several in one: what is a record would
    # then depend on the lines beside it.
    return records if len(records) == len(lines) else [parsed(line, source) for line in lines]


def parsed(text: bytes, source: Source) -> Any:
    """One record, judged by the same parser as many at once."""
    try:
        return _decoder(source.record).decode(text)
    except msgspec.ValidationError as error:
        return Refusal("wrong-shape", str(error))
    except DECODE_ERRORS as error:
        return Refusal("not-json", str(error))


def _typed(value: Any, source: Source) -> Any:
    try:
        return msgspec.convert(value, source.record)
    except msgspec.ValidationError as error:
        return Refusal("wrong-shape", str(error))


def _decode_csv(shard: Shard, source: Source, *, keep_going: bool) -> list[Any]:
    records: list[Any] = []
    for _, fields, at in _csv_rows(shard.data):
        if isinstance(fields, Refusal):
            if not keep_going:
                hint = "Convert it to UTF-8, or give --keep-going to reject what is broken."
                reason = f"is no UTF-8 CSV: {fields.detail}. {hint}"
                raise InputError(shard.file, reason, shard.offset + at)
            records.append(fields)
        elif len(fields) > len(shard.header):
            detail = f"{len(fields)} fields where the header has {len(shard.header)}"
            records.append(Refusal("wrong-shape", detail))
        else:
            records.append(_typed(dict(zip_longest(shard.header, fields)), source))
    return records


def _csv_rows(data: bytes) -> Iterator[tuple[int, list[str] | Refusal, int]]:
    """The byte each record begins at, its fields or their fault, and the byte where that shows.

    Line ends inside quotes are part of a record; empty lines are none.
    """
    consumed = 0  # bytes handed to the reader
    bad: tuple[str, int] | None = None

    def lines() -> Iterator[str]:
        nonlocal consumed, bad
        for line in data.splitlines(keepends=True):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                bad = bad or (str(error), consumed + error.start)
                text = line.decode("utf-8", "replace")  # its quotes still count
            consumed += len(line)
            yield text

    reader = csv.reader(lines())
    while True:
        start, bad = consumed, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Refusal("wrong-shape", str(error)), start
            continue
        if bad:
            yield start, Refusal("not-unicode", bad[0]), bad[1]
        elif fields:
            yield start, fields, start
