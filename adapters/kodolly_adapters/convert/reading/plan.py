"""Recognises the layout and source of every file, and cuts the files into shards, in one pass."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from kodolly_adapters.errors import InputError

from .inputs import Member, Stream, members, open_member
from .records import Kind, Shard
from .source import Source, border_pattern

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer
SHARD = 4 << 20  # bytes: a worker needs under 100 MB for it, and there are few tasks
MAX_RECORD = 64 << 20  # bytes of the longest record; a longer one is an error

STRING = rb'"(?:[^"\\]|\\.)*"'
SCALAR = rb"(?:" + STRING + rb"|[-\d.eE+]+|true|false|null)"
ARRAY = re.compile(rb"\s*\[")
DATA = re.compile(rb"\s*\{(?:\s*" + STRING + rb"\s*:\s*" + SCALAR + rb'\s*,)*\s*"data"\s*:\s*\[')
OBJECT = re.compile(rb"\s*\{")
KEY = re.compile(r'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
BETWEEN = re.compile(r"\s*,\s*|\s*")
DECODER = json.JSONDecoder()


@dataclass(slots=True)
class Input:
    """One file that is converted; `size` and `sha256` are set once it was read to its end."""

    number: int
    name: str
    source: Source
    size: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Plan:
    """The shards of all arguments, and the files they come from.

    `user_source` is the source named with --source; None: recognise each file among `sources`. Raises InputError
    for an argument that does not exist.
    """

    arguments: Sequence[str]
    sources: Sequence[Source]
    user_source: Source | None = None
    inputs: list[Input] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, why)
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.members = list(members(self.arguments))

    def shards(
        self, report: Callable[[int], None] = lambda size: None
    ) -> Generator[tuple[Shard, Source], None, None]:
        """Every shard in order; `report` is called with the number of bytes read. Raises InputError.

        `inputs` and `skipped` are complete when the iterator has ended.
        """
        for member in self.members:
            if member.skip_reason:
                self.skipped.append((member.name, member.skip_reason))
                continue
            with open_member(member, report) as stream:
                layout = _layout(stream)
                source = self._source(member, layout) if layout else None
                if layout is None or source is None:
                    self._skip(member, layout, is_empty=not stream.peek(1))
                    continue
                entry = Input(len(self.inputs), member.name, source)
                self.inputs.append(entry)
                for shard in cut(stream, layout, source, member.name, f"{entry.number:04d}"):
                    yield shard, source
                entry.size, entry.sha256 = stream.size, stream.sha256.hexdigest()
        if not self.inputs:
            raise InputError(", ".join(self.arguments), "has no file of a known source")

    def _source(self, member: Member, layout: Layout) -> Source | None:
        """The user's source, if its files have this layout; without one, the recognised source."""
        if self.user_source is None:
            return recognise(member.name, layout, self.sources)
        return self.user_source if layout.suits(self.user_source) else None

    def _skip(self, member: Member, layout: Layout | None, *, is_empty: bool) -> None:
        """Skip a file of a folder that is of no source. Raises InputError for an argument."""
        record = layout.record if layout and layout.kind != "csv" else None
        source = self.user_source
        if is_empty:
            why = "is empty"
        elif source:
            why = f"is not {source.layout.upper()}, as files of {source.name} are"
        elif record:
            why = f"belongs to no known source: its first record has the keys {', '.join(record)[:200]}"
        else:
            why = "is neither JSON nor a CSV file of a known source"
        if member.is_argument:
            names = ", ".join(source.name for source in self.sources)
            hint = "name its source with --source" if record and not source else "give a data file"
            raise InputError(member.name, f"{why}; {hint}. Known sources: {names}")
        self.skipped.append((member.name, why))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file holds its records.

    `start` is the offset of the first record's bytes: past a byte order mark, `[` or a CSV's header.
    `record` is the first record, or the complete fields of its beginning; None if it is unreadable or no object.
    `cut_off` says that the record goes on after the bytes that were read.
    """

    kind: Kind
    start: int
    header: tuple[str, ...] = ()  # column names of a CSV
    record: Mapping[str, Any] | None = None
    cut_off: bool = False

    def suits(self, source: Source) -> bool:
        """Can a file with this layout belong to the source?"""
        return (source.layout == "csv") == (self.kind == "csv")


def _layout(stream: Stream) -> Layout | None:
    """The layout of a file; reads on until its first record is complete, up to MAX_RECORD bytes."""
    size = HEAD
    while True:
        head = stream.peek(size)
        layout = layout_of(head)
        if not (layout and layout.cut_off) or len(head) < size or size >= MAX_RECORD:
            return layout
        size *= 4


def layout_of(head: bytes) -> Layout | None:
    """The layout of a file that begins with `head`, which may end anywhere; None: no data file."""
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    body = head[start:]
    kind: Kind
    if match := ARRAY.match(body):
        kind, start = "array", start + match.end()
    elif match := DATA.match(body):
        kind, start = "data", start + match.end()
    elif OBJECT.match(body):
        kind = "object" if _first_object(body) is None else "lines"
    else:
        return _csv(head, start)
    text = head[start:].decode("utf-8", "ignore").lstrip()
    cut_off = False
    try:
        record, _ = DECODER.raw_decode(text)
        return Layout(kind, start, record=record if isinstance(record, dict) else None)
    except json.JSONDecodeError as error:  # only one at the end may go away with more bytes
        at_end = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
        cut_off = at_end and kind != "lines"
    except (ValueError, RecursionError):
        pass
    line = _first_object(body) if kind == "lines" else None
    entries = _complete_entries(text) if text.startswith("{") else None
    return Layout(kind, start, record=line or entries, cut_off=cut_off)


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
        header = next(csv.reader([line.decode("utf-8").rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(header) < 2 or not all(name.strip() and len(name) <= 40 for name in header):
        return None
    names = tuple(name.strip() for name in header)
    return Layout("csv", start + len(line) + len(newline), names, dict.fromkeys(names, ""))


def recognise(name: str, layout: Layout, sources: Sequence[Source]) -> Source | None:
    """The source of a file: its first record decides, and between sources with the same records its name."""
    record = layout.record
    file_name = name.replace("!", "/").rsplit("/", 1)[-1]
    candidates = []
    for source in sources:
        has_name = any(fnmatch.fnmatch(file_name, pattern) for pattern in source.patterns)
        has_shape = record is not None and layout.suits(source) and source.looks_like(record)
        if has_shape and (has_name or not source.by_name):
            # A source that is recognised by name goes first: its name matched.
            candidates.append(((not source.by_name, not has_name), source))
    return min(candidates, key=lambda one: one[0])[1] if candidates else None


def cut(
    stream: Stream, layout: Layout, source: Source, file: str, key: str, size: int | None = None
) -> Iterator[Shard]:
    """Cut the stream into shards of about `size` bytes: all its records, without the layout's head.

    Shards' keys begin with `key`, which orders the files. Raises InputError for a record over MAX_RECORD bytes.
    """
    size = size or SHARD
    offset, line, reach, number = 0, 1, size, 0
    while True:
        data = stream.peek(reach)
        last = len(data) < reach
        start = 0 if offset else layout.start
        end = len(data) if last else _border(layout.kind, source, data)
        if not last and end <= start:
            if len(data) > MAX_RECORD:
                raise InputError(file, f"no record ends within {MAX_RECORD >> 20} MiB", offset)
            reach += reach // 2 + 1  # by half, so that a long record is searched only a few times
            continue
        records = data[start:end]
        line += data.count(b"\n", 0, start)
        yield Shard(
            key=f"{key}-{number:07d}",
            file=file,
            source=source.name,
            kind=layout.kind,
            header=layout.header,
            offset=offset + start,
            line=line,
            data=records,
            last=last,
            digest=xxhash.xxh3_128_hexdigest(records),
        )
        stream.skip(end)
        if last:
            return
        line += records.count(b"\n")
        offset, reach, number = offset + end, size, number + 1


def _border(kind: Kind, source: Source, buffer: bytes) -> int:
    """The end of the buffer's last whole record, 0 if there is none."""
    if kind == "object":
        return 0
    if kind == "lines":
        return buffer.rfind(b"\n") + 1
    if kind == "csv":
        return _csv_border(buffer)
    pattern = border_pattern(source.first_keys)
    reach = 1 << 16  # the last border is near the end: records are seldom larger than 64 KiB
    while True:
        start = max(0, len(buffer) - reach)
        if matches := deque(pattern.finditer(buffer, start), maxlen=1):
            return matches[0].start() + 1
        if start == 0:
            return 0
        reach *= 4


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
