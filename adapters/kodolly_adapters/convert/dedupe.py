"""What only the whole tells: duplicates, near duplicates, the split, and leakage between its halves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .columns import Codes, Scattered
from .options import Options
from .output.summary import Duplicates
from .part import TRAIN, VALIDATION, Done, index_of
from .signatures import Signatures

# A row's fate is its split, or:
DROPPED = {2: "duplicate", 3: "near-duplicate", 4: "leakage"}
LEAKING, COPY, NEAR, LED = 1, 2, 4, 8  # what was found of a row; LED: others are near to it
BITS = {"leakage": LEAKING, "duplicate": COPY, "near-duplicate": NEAR}
SHOWN = 1 << 19  # validation rows that the others are compared with at once

Fates = NDArray[np.uint8]
Parts = Sequence[tuple[str, Done]]
Modes = Mapping[str, Mapping[str, str]]  # by source and rule


@dataclass(slots=True)
class Resolved:
    """`fates` has one code a row over all parts."""

    fates: Codes
    starts: Mapping[str, int]  # part key -> number of its first row
    duplicates: Duplicates
    hits: Mapping[str, Mapping[str, int]]  # part key -> rule -> rows

    def fates_of(self, key: str, mark: Done) -> Fates:
        """The fates of a part's rows."""
        return self.fates.read(self.starts[key], mark.counts.rows)


def resolve(folder: Path, parts: Parts, modes: Modes, options: Options) -> Resolved:
    """Decide every row's fate; `modes` are the rules' modes by source.

    Nothing kept in memory grows with the rows: what is found of a row is a byte in a file, and hashes are
    compared a bucket at a time.
    """
    place = folder / "resolve"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    place.mkdir()
    run = _Run(folder, place, parts, modes)
    # Leakage comes first: a row must not be dropped as the copy of one that is dropped as leakage.
    run.leakage()
    groups = run.copies()
    run.near_copies(options.near_threshold)
    return run.settled(groups)


class _Run:
    """The steps of `resolve`, which files below `place` tie together."""

    def __init__(self, folder: Path, place: Path, parts: Parts, modes: Modes) -> None:
        self.folder, self.place, self.parts, self.modes = folder, place, parts, modes
        self.rows = sum(done.counts.rows for _, done in parts)
        self.found = Codes(place / "found", self.rows)

    def leakage(self) -> None:
        """Mark training rows that share what `leak` tells with a validation row."""
        for known in self.shown():
            for start, key, _ in self.asked("leakage"):
                index = index_of(self.folder, key)
                asked = index["leak"]
                nearest = known[np.minimum(np.searchsorted(known, asked), len(known) - 1)]
                leaking = np.flatnonzero((index["split"] == TRAIN) & (nearest == asked))
                if len(leaking):
                    self.found.add(leaking + start, LEAKING)

    def shown(self) -> Iterator[NDArray[np.uint64]]:
        """What validation rows' `leak` tells, sorted, some SHOWN at once."""
        if all(modes["leakage"] == "off" for modes in self.modes.values()):
            return
        gathered: list[NDArray[np.uint64]] = []
        held = 0
        for key, _ in self.parts:
            index = index_of(self.folder, key)
            gathered.append(index["leak"][index["split"] == VALIDATION])
            held += len(gathered[-1])
            if held >= SHOWN:
                yield np.sort(np.concatenate(gathered))
                gathered, held = [], 0
        if held:
            yield np.sort(np.concatenate(gathered))

    def copies(self) -> int:
        """Mark rows that repeat an earlier one exactly; gives how many groups of equals there are."""
        hashes = Scattered(self.place / "copies", 3, self.rows)
        for start, key, done in self.asked("duplicate"):
            mine = self.left(start, done)
            entries = np.empty((len(mine), 3), np.uint64)
            entries[:, :2] = index_of(self.folder, key)["hash"][mine]
            entries[:, 2] = mine + start
            hashes.add(entries)
        groups = 0
        for bucket in hashes.buckets():
            some = bucket[_not_alone(bucket[:, 0])]
            # Stable: the earliest of equals comes first. Half a hash sorts as well as the whole, which is compared.
            some = some[np.argsort(some[:, 0], kind="stable")]
            same = (some[1:, :2] == some[:-1, :2]).all(axis=1)
            repeats = np.r_[False, same][: len(some)]
            self.found.add(some[repeats, 2].astype(np.int64), COPY)
            groups += int((repeats & ~np.r_[False, repeats[:-1]][: len(some)]).sum())
        return groups

    def near_copies(self, threshold: float) -> None:
        """Mark rows that are nearly equal to an earlier one, and those that others are near to."""
        if all(modes["near-duplicate"] == "off" for modes in self.modes.values()):
            return
        with Signatures(self.place / "signatures", self.rows) as signatures:
            for start, key, done in self.asked("near-duplicate"):
                file = self.folder / f"{key}.signatures"
                signatures.add(file, start, self.left(start, done))
            for rows, first in signatures.candidates():
                fresh = (self.found.at(rows) & (COPY | NEAR)) == 0
                rows, first = rows[fresh], first[fresh]
                close = signatures.alike(rows, first) >= threshold
                self.found.add(rows[close], NEAR)
                self.found.add(first[close], LED)

    def settled(self, exact_groups: int) -> Resolved:
        """Every row's fate by what was found of it and its source's modes."""
        fates = Codes(self.place / "fates", self.rows)
        starts: dict[str, int] = {}
        hits: dict[str, dict[str, int]] = {}
        near_groups = 0
        for start, key, done in self.asked():
            bits = self.found.read(start, done.counts.rows)
            near_groups += int(((bits & (NEAR | LED)) == LED).sum())
            mine = index_of(self.folder, key)["split"].copy()
            starts[key], hits[key] = start, {}
            for code, rule in DROPPED.items():
                marked = (bits & BITS[rule]) != 0
                hits[key][rule] = int(marked.sum())
                if self.modes[done.source][rule] == "drop":
                    mine[marked] = code
            fates.write(start, mine)
        total = {rule: sum(hit[rule] for hit in hits.values()) for rule in BITS}
        duplicates = Duplicates(
            exact_groups=exact_groups,
            exact_rows=total["duplicate"],
            near_groups=near_groups,
            near_rows=total["near-duplicate"],
        )
        return Resolved(fates, starts, duplicates, hits)

    def asked(self, rule: str = "") -> Iterator[tuple[int, str, Done]]:
        """Number of the first row, key and mark of each part for whose source `rule` is not off."""
        start = 0
        for key, done in self.parts:
            if not rule or self.modes[done.source][rule] != "off":
                yield start, key, done
            start += done.counts.rows

    def left(self, start: int, done: Done) -> NDArray[np.int64]:
        """The numbers, within their part, of the rows that nothing has dropped so far."""
        modes = self.modes[done.source]
        gone = sum(bit for rule, bit in BITS.items() if modes[rule] == "drop")
        return np.flatnonzero((self.found.read(start, done.counts.rows) & gone) == 0)


def _not_alone(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places, in order, of hashes that are there more than once: few, so that the sort that keeps order is short."""
    order = np.argsort(hashes)
    same = hashes[order[1:]] == hashes[order[:-1]]
    return np.sort(order[np.r_[False, same] | np.r_[same, False]]) if len(order) else order
