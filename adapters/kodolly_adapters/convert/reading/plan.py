"""Which files become which shards: recognising sources and cutting streams, in one pass over the input."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import xxhash

from kodolly_adapters.errors import InputError

from .inputs import Member, Stream, members, opened
from .layout import Layout, first_record, is_cut_off, layout_of
from .records import Shard
from .source import Source, border_pattern

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer
PIECE = (
    4 << 20
)  # bytes of a shard: keeps a worker under 100 MB, and makes the price of a task small
MAX_RECORD = 64 << 20  # bytes; beyond this a file is not what it seems


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
                head, layout = _beginning(stream)
                source = self._source(member, head, layout) if layout else None
                if layout is None or source is None:
                    self._pass_over(member, head, layout)
                    continue
                entry = Input(len(self.inputs), member.name, source)
                self.inputs.append(entry)
                for shard in cut(stream, layout, source, member.name, f"{entry.number:04d}"):
                    yield shard, source
                entry.size, entry.sha256 = stream.size, stream.sha256
        if not self.inputs:
            raise InputError(", ".join(self.arguments), "holds no file of a known source")

    def _source(self, member: Member, head: bytes, layout: Layout) -> Source | None:
        """The source that was named, if it comes in such a layout; else the one recognised."""
        if self.chosen is None:
            return recognise(member.name, head, layout, self.sources)
        return self.chosen if (self.chosen.layout == "csv") == (layout.kind == "csv") else None

    def _pass_over(self, member: Member, head: bytes, layout: Layout | None) -> None:
        record = first_record(head, layout) if layout and layout.kind != "csv" else None
        if not head:
            why = "is empty"
        elif self.chosen:
            why = f"is no {self.chosen.layout.upper()}, as files of {self.chosen.name} are"
        elif record:
            why = f"is of no known source: its first record has the keys {', '.join(record)[:200]}"
        else:
            why = "is no JSON, and no CSV of a known source"
        if member.asked_for:
            known = ", ".join(source.name for source in self.sources)
            name_it = record and not self.chosen
            hint = "name its source with --source" if name_it else "give a data file"
            raise InputError(member.name, f"{why}; {hint}. Known sources: {known}")
        self.skipped.append((member.name, why))


def _beginning(stream: Stream) -> tuple[bytes, Layout | None]:
    """Enough of a file to hold its first record, as far as MAX_RECORD allows, and its layout."""
    size = HEAD
    while True:
        head = stream.peek(size)
        layout = layout_of(head)
        enough = layout is None or len(head) < size or size >= MAX_RECORD
        if enough or (layout and not is_cut_off(head, layout)):
            return head, layout
        size *= 4


def recognise(name: str, head: bytes, layout: Layout, sources: Sequence[Source]) -> Source | None:
    """The source of a file: its first record decides; among sources that look alike, its name does."""
    record = first_record(head, layout)
    if record is None:
        return None
    fitting = [
        source
        for source in sources
        if (source.layout == "csv") == (layout.kind == "csv")
        and source.looks_like(record)
        and (not source.by_name or _matches(name, source))
    ]
    # A source known only by its name is there because the name matched: it goes first.
    fitting.sort(key=lambda source: (not source.by_name, not _matches(name, source)))
    return fitting[0] if fitting else None


def _matches(name: str, source: Source) -> bool:
    last = name.replace("!", "/").rsplit("/", 1)[-1]
    return any(fnmatch.fnmatch(last, pattern) for pattern in source.patterns)


def cut(
    stream: Stream, layout: Layout, source: Source, file: str, key: str, size: int | None = None
) -> Iterator[Shard]:
    """The stream's shards of some `size` bytes, in order: whole records, all but the first's head.

    `key` orders files. Raises InputError when no record ends within MAX_RECORD bytes.
    """
    size = size or PIECE
    border = _border(layout, source)
    offset, line, wanted, number = 0, 1, size, 0
    while True:
        data = stream.peek(wanted)
        last = len(data) < wanted
        start = 0 if offset else layout.start
        end = len(data) if last else border(data)
        if not last and end <= start:
            if len(data) > MAX_RECORD:
                raise InputError(file, f"no record ends within {MAX_RECORD >> 20} MiB", offset)
            wanted += wanted // 2 + 1  # by shares: a long record is not searched again and again
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
        offset, wanted, number = offset + end, size, number + 1


def _border(layout: Layout, source: Source) -> Callable[[bytes], int]:
    """A function from a buffer to the end of its last whole record, 0 if there is none."""
    if layout.kind == "object":
        return lambda buffer: 0
    if layout.kind == "lines":
        return lambda buffer: buffer.rfind(b"\n") + 1
    if layout.kind == "csv":
        return _csv_border
    pattern = border_pattern(source.first_keys)

    def last_border(buffer: bytes) -> int:
        reach = 1 << 16
        while True:  # the last border is near the end; records are seldom larger than 64 KiB
            start = max(0, len(buffer) - reach)
            if matches := deque(pattern.finditer(buffer, start), maxlen=1):
                return matches[0].start() + 1
            if start == 0:
                return 0
            reach *= 4

    return last_border


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
