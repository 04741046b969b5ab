"""What only the whole tells: duplicates, near duplicates, the split, and leakage between its halves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .options import Options
from .part import TRAIN, VALIDATION, Done, Index, index_of
from .signatures import PERMUTATIONS, near_duplicates
from .summary import Duplicates

# A row's fate is its split, or:
DROPPED = {2: "duplicate", 3: "near-duplicate", 4: "leakage"}
BUCKET = 1_000_000  # rows whose hashes are sorted at once

Fates = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Parts = Sequence[tuple[str, Done]]
Modes = Mapping[str, Mapping[str, str]]  # by source and rule


@dataclass(slots=True)
class Resolved:
    """`fates` has one code a row over all parts."""

    fates: Fates
    starts: Mapping[str, int]  # part key -> number of its first row
    duplicates: Duplicates
    hits: Mapping[str, Mapping[str, int]]  # part key -> rule -> rows


def resolve(folder: Path, parts: Parts, modes: Modes, options: Options) -> Resolved:
    """Decide every row's fate; `modes` are the rules' modes by source.

    What is kept in memory is a few bytes a row; hashes are read from the parts a bucket at a time.
    """
    rows = sum(done.counts.rows for _, done in parts)
    names = sorted(modes)
    fates, sources = np.empty(rows, np.uint8), np.empty(rows, np.uint8)
    starts = {}
    for start, index, (key, done) in _indices(folder, parts):
        fates[start : start + len(index)] = index["split"]
        sources[start : start + len(index)] = names.index(done.source)
        starts[key] = start

    def switched(rule: str, *wanted: str) -> Flags:
        """Per row, whether `rule` is in one of the `wanted` modes for its source."""
        return np.array([modes[name][rule] in wanted for name in names], bool)[sources]

    # Leakage comes first: a row must not be dropped as the copy of one that is dropped as leakage.
    leaking = _leaking(folder, parts, switched("leakage", "count", "drop"))
    left = ~(leaking & switched("leakage", "drop"))
    copies, groups = _copies(folder, parts, left & switched("duplicate", "count", "drop"))
    left &= ~(copies & switched("duplicate", "drop"))
    near, near_groups = _near(folder, parts, left, options, modes)
    near &= ~copies & switched("near-duplicate", "count", "drop")
    found = {"duplicate": copies, "near-duplicate": near, "leakage": leaking}
    duplicates = Duplicates(
        exact_groups=groups,
        exact_rows=int(copies.sum()),
        near_groups=near_groups,
        near_rows=int(near.sum()),
    )
    for code, rule in DROPPED.items():
        fates[found[rule] & switched(rule, "drop")] = code
    return Resolved(fates, starts, duplicates, _hits(parts, starts, found))


def _indices(folder: Path, parts: Parts) -> Iterator[tuple[int, Index, tuple[str, Done]]]:
    """Each part's index with the number of its first row."""
    start = 0
    for part in parts:
        index = index_of(folder, part[0])
        yield start, index, part
        start += len(index)


def _copies(folder: Path, parts: Parts, wanted: Flags) -> tuple[Flags, int]:
    """Which of the `wanted` rows repeat an earlier of them exactly, and how many groups of equals there are."""
    copies, groups = np.zeros(len(wanted), bool), 0
    if not wanted.any():
        return copies, groups
    buckets = np.uint64(len(wanted) // BUCKET + 1)
    half = np.uint64(32)
    for bucket in range(int(buckets)):
        hashes, numbers = [], []
        for start, index, _ in _indices(folder, parts):
            high = index["hash"][:, 0]
            asked = wanted[start : start + len(index)]
            mine = np.flatnonzero(((high >> half) * buckets >> half == bucket) & asked)
            hashes.append(index["hash"][mine])
            numbers.append(mine + start)
        values, rows = np.concatenate(hashes), np.concatenate(numbers)
        # Stable: the earliest of equals comes first. Half a hash sorts as well as the whole, which is compared.
        some = _not_alone(values[:, 0])
        values, rows = values[some], rows[some]
        order = np.argsort(values[:, 0], kind="stable")
        repeats = np.r_[False, (values[order[1:]] == values[order[:-1]]).all(axis=1)][: len(order)]
        copies[rows[order[repeats]]] = True
        groups += int((repeats & ~np.r_[False, repeats[:-1]]).sum()) if len(order) else 0
    return copies, groups


def _not_alone(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places, in order, of hashes that are there more than once: few, so that the sort that keeps order is short."""
    order = np.argsort(hashes)
    same = hashes[order[1:]] == hashes[order[:-1]]
    return np.sort(order[np.r_[False, same] | np.r_[same, False]]) if len(order) else order


def _leaking(folder: Path, parts: Parts, wanted: Flags) -> Flags:
    """Which of the `wanted` training rows share what `leak` tells with a validation row."""
    leaking = np.zeros(len(wanted), bool)
    if not wanted.any():
        return leaking
    shown = [index["leak"][index["split"] == VALIDATION] for _, index, _ in _indices(folder, parts)]
    known = np.sort(np.concatenate(shown))
    if not len(known):
        return leaking
    for start, index, _ in _indices(folder, parts):
        asked = index["leak"]
        nearest = known[np.minimum(np.searchsorted(known, asked), len(known) - 1)]
        leaking[start : start + len(index)] = (index["split"] == TRAIN) & (nearest == asked)
    return leaking & wanted


def _near(
    folder: Path, parts: Parts, left: Flags, options: Options, modes: Modes
) -> tuple[Flags, int]:
    """Which of the rows `left` are nearly equal to an earlier of them, and how many groups of such there are."""
    rows = len(left)
    if rows == 0 or all(m["near-duplicate"] == "off" for m in modes.values()):
        return np.zeros(rows, bool), 0
    joined = folder / "signatures"
    with joined.open("wb") as out:
        for key, done in parts:
            file = folder / f"{key}.signatures"
            blank = b"\0" * (done.counts.rows * PERMUTATIONS * 4)
            out.write(file.read_bytes() if file.exists() else blank)
    signatures = np.memmap(joined, np.uint32, "r", shape=(rows, PERMUTATIONS))
    first = near_duplicates(signatures, left, options.near_threshold)
    joined.unlink()
    near = first != np.arange(rows)
    return near, len(np.unique(first[near]))


def _hits(
    parts: Parts, starts: Mapping[str, int], found: Mapping[str, Flags]
) -> dict[str, dict[str, int]]:
    return {
        key: {
            rule: int(rows[starts[key] : starts[key] + done.counts.rows].sum())
            for rule, rows in found.items()
        }
        for key, done in parts
    }
