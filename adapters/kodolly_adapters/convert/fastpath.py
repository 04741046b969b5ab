"""A shard scanned fast: its plain rows as the lines and the index they will be, and what is left to the general way.

Whether a shard is scanned shows nowhere in the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import xxhash

from . import characters, fastscan
from .fastscan import Bytes, Table
from .options import Options
from .part import INDEX, PASSAGE, Index
from .reading.records import Broken, Shard, parsed, positions
from .reading.source import Source
from .schema import Draft
from .split import border_pattern

_text = msgspec.json.Decoder(str).decode
SPACE = b" \t\r\n"
_TO_ASKED = len(b'{"instruction":"')
_TO_CONTEXT = len(b'","context":"')


@dataclass(frozen=True, slots=True)
class Scan:
    """A shard's plain rows; columns of `rows` and `records` are fastscan's, `places` are (offset, line) of records.

    `others` holds the records the scan left, parsed, in order; `drafts` the rows it left, by their number.
    """

    source: Source
    lines: memoryview
    origins: memoryview
    rows: Table
    records: Table
    places: list[tuple[int, int]]
    others: list[Any]
    drafts: dict[int, Draft]

    def left(self) -> Iterator[tuple[int, int, Any]]:
        """What the scan left, in order: the row it is or stands before, its record's number, Draft or record."""
        others, odd = iter(self.others), iter(self.drafts)
        row, next_odd = 0, next(odd, -1)
        columns = self.records[:, [fastscan.PLAINLY, fastscan.ROWS]]
        for number, (plain, count) in enumerate(columns.tolist()):
            if not plain:
                yield row, number, next(others)
            row += count
            while 0 <= next_odd < row:
                yield next_odd, number, self.drafts[next_odd]
                next_odd = next(odd, -1)

    def slices(
        self, start: int, end: int, splits: list[int]
    ) -> Iterator[tuple[int, memoryview, memoryview]]:
        """Plain rows in a row, those of one split together: split, lines, origins."""
        while start < end:
            split, stop = splits[start], start + 1
            while stop < end and splits[stop] == split:
                stop += 1
            first, last = self.rows[start], self.rows[stop - 1]
            yield (
                split,
                self.lines[first[fastscan.START] : last[fastscan.END]],
                self.origins[first[fastscan.ORIGIN] : last[fastscan.ORIGIN_END]],
            )
            start = stop

    def newlines(self) -> int:
        """Rows in which line ends were put right."""
        return int((self.records[:, fastscan.CRLF] * self.records[:, fastscan.PLAINLY]).sum())

    def splits(self, data: bytes, split_of: Callable[[bytes], int]) -> list[int]:
        """The split of every row, that of a row left whatever."""
        group_of = self.source.group
        if group_of is None:
            starts, ends = (
                self.rows[:, fastscan.START] + _TO_ASKED,
                self.rows[:, fastscan.ASKED_END],
            )
            spans = zip(starts.tolist(), ends.tolist(), strict=True)
            return [split_of(_unescaped(self.lines[start:end])) for start, end in spans]
        found: list[int] = []
        for count, start, end in self.records[
            :, [fastscan.ROWS, fastscan.ID, fastscan.ID_END]
        ].tolist():
            if count:
                found += [split_of(group_of(_name(data, start, end)).encode())] * count
        return found

    def index(self, splits: list[int], units: int, *, origins: bool) -> Index:
        """The index of all rows; the entry of one left is whatever."""
        rows, lines = self.rows, self.lines
        index = np.zeros(len(rows), INDEX)
        spans = zip(*rows[:, [fastscan.START, fastscan.END]].T.tolist(), strict=True)
        digests = b"".join([xxhash.xxh3_128_digest(lines[start : end - 1]) for start, end in spans])
        index["hash"] = np.frombuffer(digests, ">u8").reshape(-1, 2)
        index["leak"] = index["hash"][:, 0]
        for number in np.flatnonzero(rows[:, fastscan.CONTEXT] >= PASSAGE).tolist():
            start, end = rows[number, [fastscan.ASKED_END, fastscan.CONTEXT_END]].tolist()
            context = _unescaped(lines[start + _TO_CONTEXT : end])
            index["leak"][number] = xxhash.xxh3_64_intdigest(context)
        record = np.repeat(np.arange(len(self.records)), self.records[:, fastscan.ROWS])
        index["offset"], index["line"] = np.array(self.places)[record].T
        index["size"] = rows[:, fastscan.END] - rows[:, fastscan.START]
        index["origin"] = rows[:, fastscan.ORIGIN_END] - rows[:, fastscan.ORIGIN] if origins else 1
        index["chars"] = rows[:, [fastscan.ASKED, fastscan.CONTEXT, fastscan.ANSWER]]
        index["units"] = units
        index["split"] = splits
        return index


def scan(shard: Shard, source: Source, options: Options, head: bytes) -> Scan | None:
    """The shard's records; None where its bytes are not quite an array of them.

    `head` begins every line of `origins`, up to the record's id.
    """
    data = shard.data
    start = data.find(b"{")
    if start < 0 or data[:start].strip(SPACE) not in (b"", b","):
        return None
    lines, origins, rows, records = _room((len(data) >> 20) + 1, len(head) >> 10)
    octets = np.frombuffer(data, np.uint8)
    count, number = getattr(fastscan, source.scan)(
        octets, start, shard.last, np.frombuffer(head, np.uint8),
        (options.min_chars, options.max_chars), *_tables(), lines, origins, rows, records,
    )  # fmt: skip
    if number < 0:
        return None
    rows, records = rows[:count], records[:number]
    others = _others(data, source, records)
    drafts = _drafts(data, source, rows, records)
    if others is None or drafts is None:
        return None
    places = positions(shard, records[:, fastscan.BEGIN].tolist(), number)
    seen: Any = memoryview  # numpy's arrays are buffers, which its types do not say
    return Scan(source, seen(lines), seen(origins), rows, records, places, others, drafts)


def _drafts(data: bytes, source: Source, rows: Table, records: Table) -> dict[int, Draft] | None:
    """The rows left as drafts, by their number; None if a text is no JSON."""
    found: dict[int, Draft] = {}
    ends = records[:, fastscan.ROWS].cumsum()
    try:
        for number in np.flatnonzero(rows[:, fastscan.PLAIN_ROW] == 0).tolist():
            first, first_end, last, last_end = rows[number, fastscan.FIRST :].tolist()
            at = int(np.searchsorted(ends, number, "right"))
            record = records[at]
            turn = number - int(ends[at] - record[fastscan.ROWS])
            name = _name(data, record[fastscan.ID], record[fastscan.ID_END])
            found[number] = Draft(
                _text(data[first:first_end]), "", _text(data[last:last_end]), id=name, turn=turn,
                group=source.group(name) if source.group else "", units=2,
            )  # fmt: skip
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found


def _others(data: bytes, source: Source, records: Table) -> list[Any] | None:
    """The records left, parsed, in order; None if one is no JSON, or would not be found by its border alone."""
    found: list[Any] = []
    border = border_pattern(source)
    for number in np.flatnonzero(records[:, fastscan.PLAINLY] == 0).tolist():
        start, end = records[number, [fastscan.BEGIN, fastscan.STOP]].tolist()
        text = data[start:end]
        borders = [match.start() for match in border.finditer(b"}," + text)]
        record = parsed(text, source)
        if (borders != [0] and number) or (type(record) is Broken and record.reason == "not-json"):
            return None
        found.append(record)
    return found


def _name(data: bytes, start: int, end: int) -> str:
    return _unescaped(data[start:end]).decode()


def _unescaped(text: bytes | memoryview) -> bytes:
    """The UTF-8 of a JSON string's inside."""
    raw = bytes(text)
    if b"\\" not in raw:
        return raw
    return _text(b'"%b"' % raw).encode()


@functools.lru_cache(2)
def _room(megabytes: int, head: int) -> tuple[Bytes, Bytes, Table, Table]:
    """Room for what a shard's bytes may become, the same for the next: memory is dear to ask for, not to hold.

    It is touched only as far as rows go. `head` is the length of an origin's, in KiB.
    """
    size = megabytes << 20
    most = size // 28  # no row's JSON is shorter
    return (
        np.empty(3 * size, np.uint8),
        np.empty(((head + 1 << 10) + 40) * most, np.uint8),
        np.empty((most, fastscan.ROW_COLUMNS), np.int32),
        np.empty((most, fastscan.RECORD_COLUMNS), np.int32),
    )


@functools.cache
def _tables() -> tuple[Bytes, Bytes]:
    return characters.kinds(), characters.heads()
