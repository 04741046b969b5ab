"""Which files become which shards: recognising sources and cutting streams, in one pass over the input."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import xxhash

from kodolly_adapters.errors import InputError

from ..sources import SOURCES
from ..split import MAX_RECORD, PIECE, Take, pieces
from ..taking import Held, Measured, taking
from .inputs import Member, members
from .layout import Layout, first_record, is_cut_off, layout_of
from .records import Shard
from .source import Source

HEAD = 1 << 20  # bytes read to recognise a file; more where its first record is longer


@dataclass(slots=True)
class Input:
    """One file that is being converted; `size` and `sha256` are known once it was read to its end."""

    number: int
    name: str
    source: Source
    size: int = 0
    sha256: str = ""


class Place(NamedTuple):
    """The name of a file, the key that orders it, and its path where any process may read it."""

    file: str
    key: str
    path: Path | None = None


@dataclass(slots=True)
class Plan:
    """The shards of all arguments, and what was learned of the files while making them."""

    arguments: Sequence[str]
    source: Source | None = None  # named by the person; None: recognise
    inputs: list[Input] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, why)

    def shards(
        self, read: Callable[[int], None] = lambda size: None
    ) -> Generator[Shard, None, None]:
        """Every shard in order; `read` is told the bytes of each. Raises InputError.

        `inputs` and `skipped` are whole when the iterator is exhausted.
        """
        for member in members(self.arguments):
            if member.skipped:
                self.skipped.append((member.name, member.skipped))
            else:
                yield from self._of_member(member, read)
        if not self.inputs:
            raise InputError(", ".join(self.arguments), "holds no file of a known source")

    def _of_member(
        self, member: Member, told: Callable[[int], None]
    ) -> Generator[Shard, None, None]:
        with taking(member) as take:
            head, layout = _beginning(take)
            source = self._source(member, head, layout) if layout else None
            if layout is None or source is None:
                self._pass_over(member, head, layout)
                return
            head = b""
            entry = Input(len(self.inputs), member.name, source)
            self.inputs.append(entry)
            with Measured(take, told) as measured:
                place = Place(member.name, f"{entry.number:04d}", member.path)
                yield from _shards(measured.take, layout, source, place, PIECE)
            entry.size, entry.sha256 = measured.size, measured.sha256

    def _source(self, member: Member, head: bytes, layout: Layout) -> Source | None:
        """The source that was named, if it comes in such a layout; else the one recognised."""
        if self.source is None:
            return recognise(member.name, head, layout)
        return self.source if (self.source.layout == "csv") == (layout.kind == "csv") else None

    def _pass_over(self, member: Member, head: bytes, layout: Layout | None) -> None:
        record = first_record(head, layout) if layout and layout.kind != "csv" else None
        if not head:
            why = "is empty"
        elif self.source:
            why = f"is no {self.source.layout.upper()}, as files of {self.source.name} are"
        elif record:
            why = f"is of no known source: its first record has the keys {', '.join(record)[:200]}"
        else:
            why = "is no JSON, and no CSV of a known source"
        if member.asked_for:
            known = ", ".join(source.name for source in SOURCES)
            name_it = record and not self.source
            hint = "name its source with --source" if name_it else "give a data file"
            raise InputError(member.name, f"{why}; {hint}. Known sources: {known}")
        self.skipped.append((member.name, why))


def _beginning(take: Take) -> tuple[bytes, Layout | None]:
    """Enough of a file to hold its first record, as far as MAX_RECORD allows, and the layout it tells."""
    wanted = HEAD
    while True:
        head = take(0, wanted)
        layout = layout_of(head)
        whole = layout is None or len(head) < wanted or wanted >= MAX_RECORD
        if whole or (layout and not is_cut_off(head, layout)):
            return head, layout
        wanted *= 4


def shards_of(
    read: Callable[[int], bytes], layout: Layout, source: Source, file: str, key: str, size: int
) -> Iterator[Shard]:
    """One stream's shards of some `size` bytes, in order; `key` orders files. Raises InputError."""
    return _shards(Held(read).take, layout, source, Place(file, key), size)


def _shards(take: Take, layout: Layout, source: Source, place: Place, size: int) -> Iterator[Shard]:
    path = str(place.path.absolute()) if place.path else ""
    for number, piece in enumerate(pieces(take, layout, source, place.file, size)):
        yield Shard(
            key=f"{place.key}-{number:07d}",
            file=place.file,
            source=source.name,
            kind=layout.kind,
            header=layout.header,
            offset=piece.offset,
            line=piece.line,
            data=b"" if path else bytes(piece.data),
            last=piece.last,
            digest=xxhash.xxh3_128_hexdigest(piece.data),
            path=path,
            size=len(piece.data) if path else 0,
        )


def recognise(name: str, head: bytes, layout: Layout) -> Source | None:
    """The source of a file: its first record decides; among sources that look alike, its name does."""
    record = first_record(head, layout)
    if record is None:
        return None
    fitting = [
        source
        for source in SOURCES
        if (source.layout == "csv") == (layout.kind == "csv")
        and source.looks_like(record)
        and (not source.by_name or _matches(name, source))
    ]
    # A source known only by its name is there because the name matched: it goes first.
    alone = [source for source in fitting if source.by_name]
    matching = [source for source in fitting if _matches(name, source)]
    return next(iter([*alone, *matching, *fitting]), None)


def _matches(name: str, source: Source) -> bool:
    last = name.replace("!", "/").rsplit("/", 1)[-1]
    return any(fnmatch.fnmatch(last, pattern) for pattern in source.patterns)
