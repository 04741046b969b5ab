"""Recognises the layout and source of every file, and cuts the files into shards, in one pass."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from kodolly_adapters.errors import InputError

from .file_kinds import SIDE_FILE, is_side_file, what_is
from .inputs import Member, Stream, members, open_member
from .layouts import Layout, layouts_of
from .records import Shard, borders
from .source import Source
from .text_encoding import encoding_of

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer
SHARD = 4 << 20  # bytes: a worker needs under 100 MB for it, and there are few tasks
HEAD_OF_WRAPPER = 4 << 20  # bytes of a first record, before its inner objects are taken for records
MAX_RECORD = 64 << 20  # bytes of the longest record; a longer one is an error
NOT_UTF8 = (
    "is text in an unknown encoding, neither UTF-8 nor CP949; make it UTF-8 first: "
    "`iconv -f cp949 -t utf-8 {} > NEW`, with its own encoding in place of cp949"
)


@dataclass(slots=True)
class Input:
    """One file that is converted; `size` and `sha256` are set once it was read to its end."""

    number: int
    name: str
    source: Source
    size: int = 0
    sha256: str = ""
    read_as: str = ""  # the encoding or kind of file, where it is not UTF-8 text


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
            if why := member.skip_reason or (SIDE_FILE if is_side_file(member.name) else ""):
                self.skipped.append((member.name, why))
                continue
            with open_member(member, report) as stream:
                match = self._recognise(member, stream)
                if match is None:
                    continue
                layout, source = match
                entry = Input(len(self.inputs), member.name, source, read_as=stream.read_as)
                self.inputs.append(entry)
                for shard in cut(stream, layout, source, member.name, f"{entry.number:04d}"):
                    yield shard, source
                entry.size, entry.sha256 = stream.size, stream.sha256.hexdigest()
        if not self.inputs:
            raise InputError(", ".join(self.arguments), "has no file of a known source")

    def _recognise(self, member: Member, stream: Stream) -> tuple[Layout, Source] | None:
        """The file's layout and source; None: it is skipped. Reads on until its first record is complete.

        Raises InputError for an argument of no known source.
        """
        head = stream.peek(HEAD)
        if not stream.read_as:
            codec = encoding_of(head, is_whole=len(head) < HEAD)
            if codec is None:
                self._skip(member, None, NOT_UTF8.format(member.name))
                return None
            if codec != "utf-8":
                stream.recode(codec)
        size = HEAD
        while True:
            head = stream.peek(size)
            layouts: list[Layout] = []
            is_all = len(head) < size or size >= MAX_RECORD
            for one in layouts_of(head):
                layouts.append(one)
                if one.cut_off and not is_all:
                    if size < HEAD_OF_WRAPPER:
                        break
                elif source := self._source(member, one):
                    if one.kind == "csv" and not head[one.start :].strip():
                        self._skip(member, one, "has a CSV's header and no rows")
                        return None
                    return one, source
            if is_all or not any(one.cut_off for one in layouts):
                break
            size *= 4
        if source := self.user_source:
            for one in layouts:
                if one.suits(source):
                    return one, source
        layout = layouts[0] if layouts else None
        why = what_is(head, has_record=bool(layout and layout.record))
        if not head and stream.read_as:
            why = f"is a {stream.read_as} without rows"
        self._skip(member, layout, why)
        return None

    def _source(self, member: Member, layout: Layout) -> Source | None:
        """The source whose records look like the file's first: the user's, or one of all."""
        sources = [self.user_source] if self.user_source else self.sources
        return recognise(member.name, layout, sources)

    def _skip(self, member: Member, layout: Layout | None, why: str) -> None:
        """Skip a file of a folder, for the reason `why` ("": it is of no source). Raises InputError for an argument."""
        record = layout.record if layout else None
        source, is_csv = self.user_source, bool(layout and layout.kind == "csv")
        names = ", ".join(one.name for one in self.sources)
        hint = f"; name its source with --source. Known sources: {names}"
        if why:
            hint = ""
        elif record and is_csv and source:
            why, hint = f"lacks the columns of {source.name}: it has {_list(record)}", ""
        elif record and source:
            why, hint = f"is not {source.layout.upper()}, as files of {source.name} are", ""
        elif record:
            kind = "its columns are" if is_csv else "its first record has the keys"
            why = f"belongs to no known source: {kind} {_list(record)}"
        else:
            why, hint = "is text without records", f"; give a data file. Known sources: {names}"
        if member.is_argument:
            raise InputError(member.name, why + hint)
        self.skipped.append((member.name, why))


def _list(record: Mapping[str, Any]) -> str:
    return ", ".join(record)[:200]


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
        end = len(data) if last else _border(layout, source, data)
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
            delimiter=layout.delimiter,
            first_key=layout.first_key,
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


def _border(layout: Layout, source: Source, buffer: bytes) -> int:
    """The end of the buffer's last whole record, 0 if there is none."""
    if layout.kind == "lines":
        return buffer.rfind(b"\n") + 1
    if layout.kind == "csv":
        return _csv_border(buffer)
    pattern = borders(layout, source)
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
