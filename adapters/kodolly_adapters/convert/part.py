"""What became of one shard, in memory and on disk.

On disk a part is `KEY.data`, all its sections one after the other, and `KEY.json`, which is written last and says
that the part is whole. A file a section took a fifth of the time on text: making a file costs half a millisecond.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

TRAIN, VALIDATION = 0, 1
SPLITS = {TRAIN: "train", VALIDATION: "validation"}

PASSAGE = 100  # characters from which a context gives an answer away to whoever has read it

# One entry a row, in the input's order. `leak` is equal where a row of one split gives away one of the other;
# `size` and `origin` are bytes of the lines, `line` and `offset` the record's place in its file.
INDEX = np.dtype(
    [
        ("hash", "u8", (2,)),
        ("leak", "u8"),
        ("offset", "u8"),
        ("line", "u4"),
        ("size", "u4"),
        ("origin", "u4"),
        ("chars", "u4", (3,)),
        ("units", "u4"),
        ("split", "u1"),
    ]
)
PACK = struct.Struct("<4Q7IB").pack  # an entry's bytes
Index = NDArray[np.void]

SECTIONS = (
    "index",
    *(f"rows.{name}" for name in SPLITS.values()),
    *(f"origins.{name}" for name in SPLITS.values()),
    "rejected",
)
HEAD = struct.Struct(f"<{len(SECTIONS)}Q")  # their sizes


class PartCounts(msgspec.Struct):
    """Counted in the source's units but for `records`, `rows` and rule `hits` (rows)."""

    records: int = 0
    units: int = 0
    kept: int = 0
    rows: int = 0
    refused: dict[str, int] = {}
    hits: dict[str, int] = {}
    rejected: int = 0  # lines


class Done(msgspec.Struct):
    """The mark of a whole part. `made_of` tells the shard it was made from by its place and bytes."""

    file: str
    source: str
    made_of: str
    counts: PartCounts


@dataclass(slots=True)
class Part:
    """JSON lines: `rows` and `origins` (provenance) by split, `rejected`; `signatures` (rows, permutations) u4."""

    rows: dict[int, bytes]
    origins: dict[int, bytes]
    rejected: bytes
    index: Index
    signatures: NDArray[np.uint32] | None
    done: Done


def save(part: Part, folder: Path, key: str) -> None:
    """Write the part; it counts as there only when every byte of it is."""
    (folder / f"{key}.json").unlink(missing_ok=True)  # an older part's mark must not vouch for it
    sections = [
        part.index.tobytes(),
        *(part.rows[split] for split in SPLITS),
        *(part.origins[split] for split in SPLITS),
        part.rejected,
    ]
    with (folder / f"{key}.data").open("wb") as file:
        file.write(HEAD.pack(*map(len, sections)))
        file.writelines(sections)
    if part.signatures is not None:
        part.signatures.tofile(folder / f"{key}.signatures")
    fresh = folder / f"{key}.json.part"
    fresh.write_bytes(msgspec.json.encode(part.done))
    os.replace(fresh, folder / f"{key}.json")


def remove(folder: Path, key: str) -> None:
    """Removes the part, its mark first."""
    for kind in ("json", "data", "signatures"):
        (folder / f"{key}.{kind}").unlink(missing_ok=True)


def done(folder: Path, key: str) -> Done | None:
    """The part's mark, or None if it was never finished."""
    try:
        return msgspec.json.decode((folder / f"{key}.json").read_bytes(), type=Done)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def index_of(folder: Path, key: str) -> Index:
    """The part's index, one entry a row."""
    return np.frombuffer(bytearray(section(folder, key, "index")), dtype=INDEX)


def section(folder: Path, key: str, name: str, start: int = 0, size: int | None = None) -> bytes:
    """One of SECTIONS of a part, from its byte `start` on; at most `size` bytes of it."""
    number = SECTIONS.index(name)
    with (folder / f"{key}.data").open("rb", buffering=0) as file:
        sizes = HEAD.unpack(file.read(HEAD.size))
        file.seek(HEAD.size + sum(sizes[:number]) + start)
        left = sizes[number] - start
        return file.read(left if size is None else min(left, size))
