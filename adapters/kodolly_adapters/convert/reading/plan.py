"""Which files become which shards: recognising layouts and sources, and cutting streams, in one pass."""

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

from .inputs import Member, Stream, members, opened
from .records import Kind, Shard
from .source import Source, border_pattern

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer
PIECE = 4 << 20  # bytes of a shard: under 100 MB a worker, and few tasks
MAX_RECORD = 64 << 20  # bytes; beyond this a file is not what it seems

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
    """One file that is being converted; `size` and `sha256` are known once it was read to its end."""

    number: int
    name: str
    source: Source
    size: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Plan:
    """The shards of all arguments, and what was learned of the files while making them.

    `chosen` is the source the person named; None: recognise each file among `sources`. Raises InputError for
    an argument that is not there.
    """

    arguments: Sequence[str]
    sources: Sequence[Source]
    chosen: Source | None = None
    inputs: list[Input] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, why)
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.members = list(members(self.arguments))

    def shards(
        self, report: Callable[[int], None] = lambda size: None
    ) -> Generator[tuple[Shard, Source], None, None]:
        """Every shard in order; `report` is called with the number of bytes read. Raises InputError.

        `inputs` and `skipped` are whole when the iterator is exhausted.
        """
        for member in self.members:
            if member.skipped:
                self.skipped.append((member.name, member.skipped))
                continue
            with opened(member, report) as stream:
                layout = _layout(stream)
                source = self._source(member, layout) if layout else None
                if layout is None or source is None:
                    self._pass_over(member, layout, empty=not stream.peek(1))
                    continue
                entry = Input(len(self.inputs), member.name, source)
                self.inputs.append(entry)
                for shard in cut(stream, layout, source, member.name, f"{entry.number:04d}"):
                    yield shard, source
                entry.size, entry.sha256 = stream.size, stream.sha256.hexdigest()
        if not self.inputs:
            raise InputError(", ".join(self.arguments), "holds no file of a known source")

    def _source(self, member: Member, layout: Layout) -> Source | None:
        """The source that was named, if it comes in such a layout; else the one recognised."""
        if self.chosen is None:
            return recognise(member.name, layout, self.sources)
        return self.chosen if layout.suits(self.chosen) else None

    def _pass_over(self, member: Member, layout: Layout | None, *, empty: bool) -> None:
        record = layout.record if layout and layout.kind != "csv" else None
        if empty:
            why = "is empty"
        elif self.chosen:
            why = f"is no {self.chosen.layout.upper()}, as files of {self.chosen.name} are"
        elif record:
            why = f"is of no known source: its first record has the keys {', '.join(record)[:200]}"
        else:
            why = "is no JSON, and no CSV of a known source"
        if member.is_argument:
            names = ", ".join(source.name for source in self.sources)
            name_it = record and not self.chosen
            hint = "name its source with --source" if name_it else "give a data file"
            raise InputError(member.name, f"{why}; {hint}. Known sources: {names}")
        self.skipped.append((member.name, why))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file holds its records.

    `start` is the offset of the first record's bytes: past a byte order mark, `[` or a CSV's header.
    `record` is the first record as far as it was read, or None: unreadable or no object; `cut_off` says
    that it goes on beyond that, so that more of the file would tell more.
    """

    kind: Kind
    start: int
    header: tuple[str, ...] = ()  # column names of a CSV
    record: Mapping[str, Any] | None = None
    cut_off: bool = False

    def suits(self, source: Source) -> bool:
        """Whether the source's files look so."""
        return (source.layout == "csv") == (self.kind == "csv")


def _layout(stream: Stream) -> Layout | None:
    """The layout of a file, of which the whole first record is read as far as MAX_RECORD allows."""
    size = HEAD
    while True:
        head = stream.peek(size)
        layout = layout_of(head)
        if not (layout and layout.cut_off) or len(head) < size or size >= MAX_RECORD:
            return layout
        size *= 4


def layout_of(head: bytes) -> Layout | None:
    """The layout of a file that begins with `head` (whole lines are not needed); None: no data file."""
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    body = head[start:]
    kind: Kind
    if match := ARRAY.match(body):
        kind, start = "array", start + match.end()
    elif match := DATA.match(body):
        kind, start = "data", start + match.end()
    elif OBJECT.match(body):
        kind = "object" if _whole_line(body) is None else "lines"
    else:
        return _csv(head, start)
    text = head[start:].decode("utf-8", "ignore").lstrip()
    cut_off = False
    try:
        record, _ = DECODER.raw_decode(text)
        return Layout(kind, start, record=record if isinstance(record, dict) else None)
    except json.JSONDecodeError as error:  # a fault before the end is one that more does not mend
        at_end = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
        cut_off = at_end and kind != "lines"
    except (ValueError, RecursionError):
        pass
    later = _whole_line(body) if kind == "lines" else None
    whole = _whole_part(text) if text.startswith("{") else None
    return Layout(kind, start, record=later or whole, cut_off=cut_off)


def _whole_part(text: str, position: int = 0) -> Any:
    """What is whole of an object or list that breaks off: of {"a": 1, "b": [2, 3 it is {"a": 1, "b": [2]}.

    Enough to tell a source. None where nothing of it is whole, and for any other value.
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
                    value = _whole_part(text, entry.end()) if in_list else None
                    entries.append((entry[1], value))
                break
            entries.append(value if is_list else (entry[1], value))
    return (entries if is_list else dict(entries)) or None


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
    """The source of a file: its first record decides; among sources that look alike, its name does."""
    record = layout.record
    last = name.replace("!", "/").rsplit("/", 1)[-1]
    fitting = []
    for source in sources:
        named = any(fnmatch.fnmatch(last, pattern) for pattern in source.patterns)
        alike = record is not None and layout.suits(source) and source.looks_like(record)
        if alike and (named or not source.by_name):
            # A source known only by its name is there because the name matched: it goes first.
            fitting.append(((not source.by_name, not named), source))
    return min(fitting, key=lambda one: one[0])[1] if fitting else None


def cut(
    stream: Stream, layout: Layout, source: Source, file: str, key: str, size: int | None = None
) -> Iterator[Shard]:
    """The stream's shards of some `size` bytes, in order: whole records, all but the first's head.

    `key` orders files. Raises InputError when no record ends within MAX_RECORD bytes.
    """
    size = size or PIECE
    offset, line, reach, number = 0, 1, size, 0
    while True:
        data = stream.peek(reach)
        last = len(data) < reach
        start = 0 if offset else layout.start
        end = len(data) if last else _border(layout.kind, source, data)
        if not last and end <= start:
            if len(data) > MAX_RECORD:
                raise InputError(file, f"no record ends within {MAX_RECORD >> 20} MiB", offset)
            reach += reach // 2 + 1  # by shares: a long record is not searched again and again
            continue
        body = data[start:end]
        line += data.count(b"\n", 0, start)
        yield Shard(
            key=f"{key}-{number:07d}",
            file=file,
            source=source.name,
            kind=layout.kind,
            header=layout.header,
            offset=offset + start,
            line=line,
            data=body,
            last=last,
            digest=xxhash.xxh3_128_hexdigest(body),
        )
        stream.skip(end)
        if last:
            return
        line += body.count(b"\n")
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
