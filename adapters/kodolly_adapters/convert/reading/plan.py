"""Recognises the layout and source of every file, and cuts the files into shards, in one pass."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from kodolly_adapters.errors import InputError

from .inputs import Member, Stream, members, open_member
from .licences import StatedLicences, named
from .records import Kind, Shard
from .source import MAPPED, UNKNOWN, Licence, Source, border_pattern

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer
SHARD = 4 << 20  # bytes: a worker needs under 100 MB for it, and there are few tasks
SKIPS = 20  # files that an error names
MAX_RECORD = 64 << 20  # bytes of the longest record; a longer one is an error

STRING = rb'"(?:[^"\\]|\\.)*"'
SCALAR = rb"(?:" + STRING + rb"|[-\d.eE+]+|true|false|null)"
ARRAY = re.compile(rb"\s*\[")
FLAT = rb"\{(?:[^{}\"]|" + STRING + rb")*\}"
NESTED = (
    rb"\{(?:[^{}\"]|" + STRING + rb"|" + FLAT + rb")*\}"
)  # what AI-Hub says of a set before its data
VALUE = rb"(?:" + SCALAR + rb"|" + NESTED + rb")"
DATA = re.compile(rb"\s*\{(?:\s*" + STRING + rb"\s*:\s*" + VALUE + rb'\s*,)*\s*"data"\s*:\s*\[')
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
    licence: Licence = UNKNOWN
    licence_from: str = (
        ""  # what states the licence: its name, a file beside it, a flag; "": nothing does
    )
    size: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Plan:
    """The shards of all arguments, and the files they come from.

    `user_source` is the source named with --source, or made by --map; None: recognise each file among `sources`.
    `user_licence` is that of files whose licence nothing else states. Raises InputError for an argument that does
    not exist.
    """

    arguments: Sequence[str]
    sources: Sequence[Source]
    user_source: Source | None = None
    user_licence: str = ""
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
        stated = StatedLicences(self.members)
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
                licence, origin = self._licence(member, source, stated)
                entry = Input(len(self.inputs), member.name, source, licence, origin)
                self.inputs.append(entry)
                for shard in cut(stream, layout, source, member.name, f"{entry.number:04d}"):
                    yield shard, source
                entry.size, entry.sha256 = stream.size, stream.sha256.hexdigest()
        if not self.inputs:
            raise InputError(
                ", ".join(self.arguments), f"has no file of a known source{self._skips()}"
            )

    def _skips(self) -> str:
        """The first files that were skipped, and why."""
        lines = [f"\n  {name}: {why}" for name, why in self.skipped[:SKIPS]]
        more = len(self.skipped) - SKIPS
        return "".join(
            [":" if lines else "", *lines, f"\n  and {more:,} more files" if more > 0 else ""]
        )

    def _source(self, member: Member, layout: Layout) -> Source | None:
        """The user's source, if the file can belong to it; without one, the recognised source."""
        source = self.user_source
        if source is None:
            source = recognise(member.name, layout, self.sources)
        elif not layout.suits(source) or self._missing(layout):
            return None
        return source and _with_first_key(source, layout)

    def _missing(self, layout: Layout) -> list[str]:
        """The columns of --map that the file's first record does not have."""
        source, record = self.user_source, layout.record
        if source is None or source.name != MAPPED or record is None:
            return []
        return [
            name
            for names in (source.columns or {}).values()
            for name in names
            if name not in record
        ]

    def _licence(
        self, member: Member, source: Source, stated: StatedLicences
    ) -> tuple[Licence, str]:
        """The licence of a file, and what states it."""
        if source.patterns and (self.user_source or has_name(member.name, source)):
            return source.licence, "--source" if self.user_source else "its file name"
        licence, origin = stated.of(member)
        if not origin and self.user_licence:
            return named(self.user_licence), "--license"
        return licence, origin

    def _skip(self, member: Member, layout: Layout | None, *, is_empty: bool) -> None:
        """Skip a file of a folder that is of no source. Raises InputError for an argument."""
        source, hint = self.user_source, "give a data file"
        names = ", ".join((layout and (layout.header or layout.record)) or ())[:200]
        if is_empty:
            why = "is empty"
        elif layout and (missing := self._missing(layout)):
            why = f"has no column {', '.join(missing)}; its columns are {names}"
            hint = "name columns that it has with --map"
        elif source:
            why = f"does not hold what files of {source.name} do"
        elif layout and layout.header:
            why = f"is no table of a known source: its first line reads {names}"
            hint = "name its columns with --map"
        elif names:
            why = f"belongs to no known source: its first record has the keys {names}"
            hint = "name its source with --source (--list-sources prints all) or its columns with --map"
        else:
            why = "is neither JSON nor a CSV file of a known source"
        if member.is_argument:
            raise InputError(member.name, f"{why}; {hint}")
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
        if self.kind != "csv":
            return True
        # Unlike a first record, a header is that of all records.
        return self.record is not None and source.looks_like(self.record)


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
    candidates = []
    for source in sources:
        is_named = has_name(name, source)
        has_shape = record is not None and source.looks_like(record)
        if has_shape and (is_named or not source.by_name):
            # A source that is recognised by name goes first: its name matched.
            candidates.append(((not source.by_name, not is_named), source))
    return min(candidates, key=lambda one: one[0])[1] if candidates else None


def has_name(name: str, source: Source) -> bool:
    """Is a file named as the source's files are? Without its folders, the number of a second one and `.gz`."""
    file_name = name.replace("!", "/").rsplit("/", 1)[-1]
    file_name = re.sub(r" \(\d+\)$", "", file_name)
    file_name = re.sub(r"\.(gz|zst|xz|bz2)$", "", file_name)
    return any(fnmatch.fnmatchcase(file_name, pattern) for pattern in source.patterns)


def _with_first_key(source: Source, layout: Layout) -> Source:
    """The source with the first record's first key among its `first_keys`, and without keys nested in the record.

    So records of any set's columns are told apart, and never cut at an object inside of them.
    """
    if not layout.record:
        return source
    keys = source.first_keys | {next(iter(layout.record))}
    return replace(source, first_keys=keys - _nested_keys(layout.record))


def _nested_keys(record: Mapping[str, Any]) -> set[str]:
    """The keys of all objects in lists inside a record."""
    keys: set[str] = set()
    values: list[Any] = [*record.values()]
    while values:
        value = values.pop()
        if isinstance(value, list):
            keys.update(*(one for one in value if isinstance(one, dict)))
            values += value
        elif isinstance(value, dict):
            values += value.values()
    return keys


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
