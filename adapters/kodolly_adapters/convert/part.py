"""A part: the rows and rejections of one shard, in memory and on disk.

On disk a part is one file, `KEY.part`: the sizes of its sections, then the sections. It is written under
another name and then renamed, so that a file `KEY.part` is always complete.
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

# One entry a row, in the input's order. Rows with equal `leak` give each other's answer away when they are in
# different splits; `size` is the row's line in bytes, `line` and `offset` the record's place in its file.
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
    """Input and outcome: `units` = `kept_units` + `rejected_units`, or something was lost.

    `records` and `units` are counted in the input; `rows` were written for `kept_units` of the units.
    `rejections` maps a reason (a rule's name) to units, which make `rejected_lines` lines of rejected.jsonl.
    Rows that are dropped last, as duplicates or leakage, are counted there too.
    """

    records: int = 0
    units: int = 0
    rows: int = 0
    kept_units: int = msgspec.field(name="kept", default=0)
    rejections: dict[str, int] = msgspec.field(name="refused", default_factory=dict)
    rejected_lines: int = msgspec.field(name="rejected", default=0)

    @property
    def rejected_units(self) -> int:
        """Units of all reasons together."""
        return sum(self.rejections.values())

    def __add__(self, other: Counts) -> Counts:
        rejections = Counter(self.rejections)
        rejections.update(other.rejections)
        numbers = ("records", "units", "rows", "kept_units", "rejected_lines")
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return msgspec.structs.replace(self, rejections=dict(rejections), **sums)


class Mark(msgspec.Struct):
    """A part's shard (`identity` is the shard's), counts, and the rows or rejections each rule applied to (`hits`)."""

    file: str
    source: str
    identity: str
    counts: Counts
    hits: dict[str, int] = {}


@dataclass(slots=True)
class Part:
    """JSON lines of `rows`, `origins` (provenance; may be empty) and `rejected`.

    `signatures`, of shape (rows, permutations), is None where rule near-duplicate is off.
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
            available = sizes[number] - start
            return file.read(available if size is None else min(available, size))


def save(part: Part, path: Path) -> None:
    """Write the part. Raises OSError."""
    signatures = b"" if part.signatures is None else part.signatures.tobytes()
    texts = part.rows, part.origins, part.rejected
    sections = msgspec.json.encode(part.mark), part.index.tobytes(), *texts, signatures
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(HEAD.pack(*map(len, sections)))
        file.writelines(sections)
    os.replace(temporary, path)


def read_mark(path: Path) -> Mark | None:
    """The part's mark, or None where the part is missing or incomplete."""
    try:
        with path.open("rb") as file:
            sizes = HEAD.unpack(file.read(HEAD.size))
            is_whole = os.fstat(file.fileno()).st_size == HEAD.size + sum(sizes)
            return msgspec.json.decode(file.read(sizes[0]), type=Mark) if is_whole else None
    except (FileNotFoundError, struct.error, msgspec.DecodeError):
        return None
