"""What only the whole tells: duplicates, near duplicates, the split, and leakage between its halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .options import Options
from .part import TRAIN, VALIDATION, Done, index_of
from .signatures import PERMUTATIONS, near_duplicates
from .summary import Duplicates

# A row's fate is its split, or:
DROPPED = {2: "duplicate", 3: "near-duplicate", 4: "leakage"}
BUCKET = 4_000_000  # rows whose hashes are sorted at once

Fates = NDArray[np.uint8]


@dataclass(slots=True)
class Resolved:
    """`fates` has one code a row over all parts, `first` the row a duplicate repeats (itself else)."""

    fates: Fates
    first: NDArray[np.int64]
    starts: Mapping[str, int]  # part key -> number of its first row
    duplicates: Duplicates
    hits: Mapping[str, Mapping[str, int]]  # part key -> rule -> rows


def resolve(
    folder: Path,
    parts: Sequence[tuple[str, Done]],
    modes: Mapping[str, Mapping[str, str]],
    options: Options,
) -> Resolved:
    """Decide every row's fate; `modes` are the rules' modes by source."""
    rows = sum(done.counts.rows for _, done in parts)
    starts, start = {}, 0
    hashes = np.empty((rows, 2), np.uint64)
    leaks = np.empty(rows, np.uint64)
    fates = np.empty(rows, np.uint8)
    sources = np.empty(rows, np.uint8)
    names = sorted(modes)
    for key, done in parts:
        index = index_of(folder, key)
        end = start + len(index)
        hashes[start:end], leaks[start:end] = index["hash"], index["leak"]
        fates[start:end] = index["split"]
        sources[start:end] = names.index(done.source)
        starts[key] = start
        start = end

    def switched(rule: str, *wanted: str) -> NDArray[np.bool_]:
        """Per row, whether `rule` is in one of the `wanted` modes for its source."""
        return np.array([modes[name][rule] in wanted for name in names], bool)[sources]

    first = _first_equal(hashes) if any(m["duplicate"] != "off" for m in modes.values()) else None
    first = np.arange(rows) if first is None else first
    copies = (first != np.arange(rows)) & switched("duplicate", "count", "drop")
    near_first, near = _near(folder, parts, rows, options, modes)
    near &= ~copies & switched("near-duplicate", "count", "drop")
    leaking = (fates == TRAIN) & switched("leakage", "count", "drop")
    leaking &= np.isin(leaks, np.unique(leaks[fates == VALIDATION]))
    duplicates = Duplicates(
        exact_groups=len(np.unique(first[copies])),
        exact_rows=int(copies.sum()),
        near_groups=len(np.unique(near_first[near])),
        near_rows=int(near.sum()),
    )
    found = {"duplicate": copies, "near-duplicate": near, "leakage": leaking}
    for code, rule in reversed(
        DROPPED.items()
    ):  # an exact duplicate is called that before anything else
        fates[found[rule] & switched(rule, "drop")] = code
    first = np.where(near & ~copies, near_first, first)
    return Resolved(fates, first, starts, duplicates, _hits(parts, starts, found))


def _first_equal(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the number of the earliest row with its hash, itself if none.

    `hashes` has shape (rows, 2). Sorted by the first half, a bucket of rows at a time; the second half confirms.
    """
    first = np.arange(len(hashes), dtype=np.int64)
    buckets = len(hashes) // BUCKET + 1
    bucket_of = (hashes[:, 0] >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)
    for bucket in range(buckets):
        members = np.flatnonzero(bucket_of == bucket)
        order = members[np.argsort(hashes[members, 0], kind="stable")]
        values = hashes[order, 0]
        begins = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(values)])
        first[order] = np.repeat(order[begins], np.diff(np.r_[begins, len(values)]))
    unlike = (hashes[first, 1] != hashes[:, 1]).nonzero()[0]
    first[unlike] = unlike
    return first


def _near(
    folder: Path,
    parts: Sequence[tuple[str, Done]],
    rows: int,
    options: Options,
    modes: Mapping[str, Mapping[str, str]],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The earlier row each row is nearly equal to, and whether there is one."""
    own = np.arange(rows, dtype=np.int64)
    if rows == 0 or all(m["near-duplicate"] == "off" for m in modes.values()):
        return own, np.zeros(rows, bool)
    joined = folder / "signatures"
    with joined.open("wb") as out:
        for key, done in parts:
            file = folder / f"{key}.signatures"
            blank = b"\0" * (done.counts.rows * PERMUTATIONS * 4)
            out.write(file.read_bytes() if file.exists() else blank)
    signatures = np.memmap(joined, np.uint32, "r", shape=(rows, PERMUTATIONS))
    first = near_duplicates(signatures, options.near_threshold)
    joined.unlink()
    return first, first != own


def _hits(
    parts: Sequence[tuple[str, Done]],
    starts: Mapping[str, int],
    found: Mapping[str, NDArray[np.bool_]],
) -> dict[str, dict[str, int]]:
    return {
        key: {
            rule: int(rows[starts[key] : starts[key] + done.counts.rows].sum())
            for rule, rows in found.items()
        }
        for key, done in parts
    }
