"""What became of one shard, in memory and on disk.

On disk a part is one file, `KEY.part`: the sizes of its sections, then the sections. It is written under
another name first, so that a part that is there is whole.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

# One entry a row, in the input's order. `leak` is equal where a row of one split gives away one of the other;
# `size` is the row's line in bytes, `line` and `offset` the record's place in its file.
INDEX = np.dtype(
    [
        ("hash", "u8", (2,)),
        ("leak", "u8"),
        ("offset", "u8"),
        ("line", "u4"),
        ("size", "u4"),
        ("chars", "u4", (3,)),
        ("units", "u4"),
        ("split", "u1"),
    ]
)
Index = NDArray[np.void]

SECTIONS = ("mark", "index", "rows", "origins", "rejected", "signatures")
HEAD = struct.Struct(f"<{len(SECTIONS)}Q")  # their sizes in bytes


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What came in and what became of it: `units` = `kept` + all of `refused`, or something is lost.

    `records` and `units` are counted in the input; `rows` came out and account for `kept` of the units.
    `refused` maps a reason (a rule's name) to units, in `rejected` lines of rejected.jsonl; rows dropped
    late, as duplicates or leakage, are in both.
    """

    records: int = 0
    units: int = 0
    rows: int = 0
    kept: int = 0
    refused: dict[str, int] = {}
    rejected: int = 0

    @property
    def refused_units(self) -> int:
        """Units of all reasons together."""
        return sum(self.refused.values())

    def __add__(self, other: Counts) -> Counts:
        refused = Counter(self.refused)
        refused.update(other.refused)
        numbers = ("records", "units", "rows", "kept", "rejected")
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return msgspec.structs.replace(self, refused=dict(refused), **sums)


class Mark(msgspec.Struct):
    """What a part is made from (`identity`: the shard's place and bytes), and what became of it.

    `hits` counts for each rule the rows, or refusals, that it fired on.
    """

    file: str
    source: str
    identity: str
    counts: Counts
    hits: dict[str, int] = {}


@dataclass(slots=True)
class Part:
    """JSON lines of `rows`, `origins` (provenance; may be empty) and `rejected`.

    `signatures` (rows, permutations) u4 are there where near duplicates are looked for.
    """

    mark: Mark
    index: Index
    rows: bytes
    origins: bytes
    rejected: bytes
    signatures: NDArray[np.uint32] | None = None


class StoredPart(NamedTuple):
    """A finished part on disk, and where its rows stand among all rows of the run."""

    path: Path
    mark: Mark
    rows: slice

    def read(self, section: str, start: int = 0, size: int | None = None) -> bytes:
        """One of SECTIONS, from its byte `start` on; at most `size` bytes of it."""
        number = SECTIONS.index(section)
        with self.path.open("rb", buffering=0) as file:
            sizes = HEAD.unpack(file.read(HEAD.size))
            file.seek(HEAD.size + sum(sizes[:number]) + start)
            left = sizes[number] - start
            return file.read(left if size is None else min(left, size))


def save(part: Part, path: Path) -> None:
    """Write the part. Raises OSError."""
    signatures = b"" if part.signatures is None else part.signatures.tobytes()
    texts = part.rows, part.origins, part.rejected
    sections = msgspec.json.encode(part.mark), part.index.tobytes(), *texts, signatures
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        file.write(HEAD.pack(*map(len, sections)))
        file.writelines(sections)
    os.replace(unfinished, path)


def read_mark(path: Path) -> Mark | None:
    """The part's mark, or None where there is no whole part."""
    try:
        with path.open("rb") as file:
            sizes = HEAD.unpack(file.read(HEAD.size))
            whole = os.fstat(file.fileno()).st_size == HEAD.size + sum(sizes)
            return msgspec.json.decode(file.read(sizes[0]), type=Mark) if whole else None
    except (FileNotFoundError, struct.error, msgspec.DecodeError):
        return None
