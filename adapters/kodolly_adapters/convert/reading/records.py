"""Parses a shard into typed records: fast as a whole, and one by one where that fails."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from kodolly_adapters.errors import InputError

from ..schema import Rejection
from .objects import Piece, pieces
from .source import Source, border_pattern

# "objects" stand one after another, with or without commas; "wrapped" ones are the values of an object, or in
# lists that are.
Kind = Literal["array", "data", "lines", "objects", "wrapped", "csv"]
MAX_FIELD = 64 << 20  # characters of a CSV's field
LINE = re.compile(rb"^.*\S", re.MULTILINE)  # one that is not blank, without white space at its end
HINT = "Fetch it again, or give --keep-going to reject what is broken and convert the rest."
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
    delimiter: str = ","
    first_key: str = ""  # see Layout
    offset: int = 0
    line: int = 1
    data: bytes = b""
    last: bool = True
    digest: str = ""

    @property
    def identity(self) -> str:
        """What its part depends on besides the options: the shard's place and bytes."""
        place = f"{self.kind} {self.offset} {self.line} {self.last} {self.digest}"
        return f"{place} {self.delimiter.join(self.header)}"


def decode(shard: Shard, source: Source, *, keep_going: bool = False) -> list[Any]:
    """The shard's records in order, with a Rejection for each that cannot be decoded.

    A JSONL line that is no JSON is rejected, and several records in a line are all read. In other JSON, stray
    commas and several arrays in a row do no harm, but bytes that are no JSON raise InputError, which names the
    byte: what follows them may not be what it seems. With `keep_going` they are rejected, and reading goes on at the
    next record. The same holds for records of a CSV that are not UTF-8.
    """
    if shard.kind == "csv":
        return _decode_csv(shard, source, keep_going=keep_going)
    if shard.kind == "lines":
        return _decode_lines(shard.data, source)
    if shard.kind in ("objects", "wrapped"):
        records, broken, is_closed = _decode_pieces(shard, source)
        if not keep_going and (broken or not is_closed):
            at = broken[0] if broken else Piece(len(shard.data), b"", False)
            raise _broken_piece(shard, at)
        return records
    head, body, tail = _as_document(shard)
    text = head + body + tail
    with suppress(*DECODE_ERRORS):
        return _records(_decoder(source.record, shard.kind, shard.last).decode(text))
    if (records_one_by_one := _decode_each(shard, source, text)) is not None:
        return records_one_by_one
    try:
        value = json.loads(text)  # accepts half a surrogate pair, and says where the JSON breaks
        if isinstance(value, dict) and shard.kind == "data":
            value = value["data"]
        return [_as_record(one, source) for one in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError, KeyError) as error:
        records, broken, is_closed = _decode_pieces(shard, source)
        is_whole = is_closed and not broken and not any(map(_is_no_json, records))
        if keep_going or is_whole:
            return records
        raise _broken_file(shard, error, len(head), body) from None


def places(shard: Shard, source: Source, records: int) -> NDArray[np.int64]:
    """The byte offset and the line of every record in the file, shape (records, 2).

    With unusual white space between records their places are unknown: each gets the shard's.
    """
    starts = np.array(_starts(shard, source), np.int64)
    if len(starts) != records and shard.kind != "csv":
        if shard.kind == "lines":
            one_by_one = [start for start, _ in _line_by_line(shard.data, source)]
        else:
            one_by_one = [piece.start for piece in _pieces(shard, source)[:-1]]
        starts = np.array(one_by_one, np.int64)
    if len(starts) != records:
        return np.tile(np.array([[shard.offset, shard.line]], np.int64), (records, 1))
    line_ends = np.flatnonzero(np.frombuffer(shard.data, np.uint8) == ord("\n"))
    lines = np.searchsorted(line_ends, starts)
    return np.stack([starts + shard.offset, lines + shard.line], axis=1)


def _starts(shard: Shard, source: Source) -> list[int]:
    """Where each record begins in the shard's bytes."""
    data = shard.data
    if shard.kind == "csv":
        return [start for start, _, _ in _csv_rows(data, shard.delimiter)]
    if shard.kind == "lines":
        return [match.start() for match in LINE.finditer(data)]
    if shard.kind in ("objects", "wrapped"):
        return []
    first = data.find(b"{")
    between = [match.start(1) for match in borders(shard, source).finditer(data)]
    return [first, *between] if first >= 0 else []


class HasKind(Protocol):
    """A shard, or the layout of a file."""

    @property
    def kind(self) -> Kind: ...
    @property
    def first_key(self) -> str: ...


def borders(one: HasKind, source: Source, *, at_line_start: bool = False) -> re.Pattern[bytes]:
    """The pattern of the borders between the records of a shard or file."""
    in_wrapper = one.kind == "wrapped"
    return border_pattern(
        source.first_keys, one.first_key, in_wrapper=in_wrapper, at_line_start=at_line_start
    )


def _pieces(shard: Shard, source: Source) -> list[Piece]:
    """The records of JSON that is not valid as a whole, the broken stretches, and the rest after them."""
    pattern = borders(shard, source, at_line_start=True)
    return list(pieces(shard.data, pattern, in_wrapper=shard.kind in ("data", "wrapped")))


@functools.cache
def _decoder(record: Any, kind: Kind = "lines", last: bool = True) -> msgspec.json.Decoder[Any]:
    """The decoder of one record, or of the document that `_as_document` makes of a shard."""
    if kind == "lines":
        return msgspec.json.Decoder(record)
    if kind == "data" and last:
        return msgspec.json.Decoder(msgspec.defstruct("Data", [("data", list[record])]))
    return msgspec.json.Decoder(list[record])


def _records(value: Any) -> list[Any]:
    value = getattr(value, "data", value)
    return value if isinstance(value, list) else [value]


def _as_document(shard: Shard) -> tuple[bytes, bytes, bytes]:
    """The shard as a JSON document: the bytes to add before it, the shard's own, the bytes to add after."""
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
    if any(map(_is_no_json, records)):
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
    return InputError(shard.file, f"{what}. {HINT}", byte)


def _decode_pieces(shard: Shard, source: Source) -> tuple[list[Any], list[Piece], bool]:
    """The records, the broken stretches among them, and whether the brackets around them are closed."""
    *parts, rest = _pieces(shard, source)
    records = [parse_record(part.text, source) for part in parts]
    closing = {"array": b"]", "data": b"}", "wrapped": b"}"}.get(shard.kind, b"")
    is_closed = not shard.last or closing in rest.text
    return records, [part for part in parts if not part.is_object], is_closed


def _broken_piece(shard: Shard, piece: Piece) -> InputError:
    """The InputError for a stretch of text that is no object, with the byte where it stops being JSON."""
    text = piece.text.decode("latin-1")
    what, at = "ends in the middle of a record", len(text)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if piece.start + error.pos < len(shard.data.rstrip()) or not shard.last:
            what, at = f"is not JSON: {error.msg}", error.pos
    except (ValueError, RecursionError):
        what, at = "is nested too deeply", 0
    return InputError(shard.file, f"{what}. {HINT}", shard.offset + piece.start + at)


def _decode_lines(data: bytes, source: Source) -> list[Any]:
    lines = sum(1 for line in data.split(b"\n") if line.strip())
    try:
        records = _decoder(source.record).decode_lines(data)
    except DECODE_ERRORS:
        records = []
    # decode_lines also accepts a record over several lines, and several records in a line. Then each line is
    # parsed alone, so that its result does not depend on its neighbours.
    if len(records) == lines:
        return records
    return [record for _, record in _line_by_line(data, source)]


def _line_by_line(data: bytes, source: Source) -> Iterator[tuple[int, Any]]:
    """The place and record of each line; a line can hold several, or one with a comma after it."""
    for match in LINE.finditer(data):
        record = parse_record(match[0], source)
        if _is_no_json(record):
            *parts, _ = pieces(match[0], border_pattern(source.first_keys))
            if any(part.is_object for part in parts):
                for part in parts:
                    yield match.start() + part.start, parse_record(part.text, source)
                continue
        yield match.start(), record


def parse_record(text: bytes, source: Source) -> Any:
    """One record, or its Rejection."""
    try:
        return _decoder(source.record).decode(text)
    except msgspec.ValidationError as error:
        return Rejection("wrong-shape", str(error))
    except DECODE_ERRORS as error:
        return Rejection("not-json", str(error))


def _is_no_json(record: Any) -> bool:
    return type(record) is Rejection and record.reason == "not-json"


def _as_record(value: Any, source: Source) -> Any:
    try:
        return msgspec.convert(value, source.record)
    except msgspec.ValidationError as error:
        return Rejection("wrong-shape", str(error))


def _decode_csv(shard: Shard, source: Source, *, keep_going: bool) -> list[Any]:
    records: list[Any] = []
    for _, fields, at in _csv_rows(shard.data, shard.delimiter):
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
            record = dict(zip_longest(shard.header, fields))
            record.pop("", None)  # pandas' index
            records.append(_as_record(record, source))
    return records


def _csv_rows(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str] | Rejection, int]]:
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

    reader = csv.reader(lines(), delimiter=delimiter)
    while True:
        start, fault = position, None
        limit = csv.field_size_limit(MAX_FIELD)  # of the whole process, so it is put back
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Rejection("wrong-shape", str(error)), start
            continue
        finally:
            csv.field_size_limit(limit)
        if fault:
            yield start, Rejection("not-unicode", fault[0]), fault[1]
        elif fields:
            yield start, fields, start
