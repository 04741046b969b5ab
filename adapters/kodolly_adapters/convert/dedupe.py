"""Duplicates, near duplicates and leakage between the splits: what can only be decided over all rows.

Two rows are near duplicates when the estimated Jaccard similarity of their sets of words reaches a threshold. Only
rows that agree in one of BANDS bands of their MinHash signatures are compared; source: Broder 1997, and
Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from .cleaning.rules import DROP, OFF
from .part import Index
from .schema import TRAIN, VALIDATION

# A row's outcome is the number of its split, or of the rule that drops it:
DROP_RULES = {2: "duplicate", 3: "near-duplicate", 4: "leakage"}
CODES = {rule: code for code, rule in DROP_RULES.items()}

PERMUTATIONS = 128
BANDS = 16  # of 8 values: two rows with similarity 0.8 share a band with probability 0.95
SEED = 42
BLOCK = 4096  # rows, or pairs of rows, processed at a time
BUCKET = 1 << 18  # bands processed at a time

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]  # numbers of rows, ascending
Signatures = NDArray[np.uint32]  # (rows, PERMUTATIONS)
Modes = Mapping[str, str]  # of one source's rules


class Duplicates(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of equal or similar rows; `*_rows` count the copies beyond a group's first row."""

    exact_groups: int = 0
    exact_rows: int = 0
    near_groups: int = 0
    near_rows: int = 0


@dataclass(slots=True)
class Outcomes:
    """`codes` has one u1 a row: its split or a key of DROP_RULES. `hits` has the rows each rule applies to."""

    codes: NDArray[np.uint8]
    hits: Mapping[str, Mask]
    duplicates: Duplicates

    @property
    def in_split(self) -> Mask:
        """Which rows are in a split, and not dropped."""
        return self.codes <= VALIDATION


def resolve(
    index: Index,
    source_of: NDArray[np.uint8],
    modes: Sequence[Modes],
    threshold: float,
    signatures: Signatures | None = None,
) -> Outcomes:
    """Decide every row's outcome.

    `index` has an entry for each row of the run, `source_of` its source's number, `modes` the rules' modes by
    that number. `signatures` has one for each row, or is None where near-duplicate is off for every source.
    """
    codes = index["split"].copy()
    hits = {rule: np.zeros(len(index), bool) for rule in CODES}

    def rows_for(rule: str) -> Rows:
        """Rows that no rule has dropped yet, of sources for which this rule is on."""
        is_on = np.array([mode[rule] != OFF for mode in modes], bool)
        return np.flatnonzero(is_on[source_of] & (codes <= VALIDATION))

    def apply(rule: str, rows: Rows) -> None:
        hits[rule][rows] = True
        drops = np.array([mode[rule] == DROP for mode in modes], bool)
        codes[rows[drops[source_of[rows]]]] = CODES[rule]

    # Leakage comes first: a row must not be dropped as the copy of one that is dropped as leakage.
    apply("leakage", _leaks(index, rows_for("leakage")))
    copies, groups = _copies(index, rows_for("duplicate"))
    apply("duplicate", copies)
    near_groups = 0
    if signatures is not None:
        rows = rows_for("near-duplicate")
        near, near_groups = _near_copies(signatures, rows, ~hits["duplicate"], threshold)
        apply("near-duplicate", near)
    duplicates = Duplicates(
        exact_groups=groups,
        exact_rows=len(copies),
        near_groups=near_groups,
        near_rows=int(hits["near-duplicate"].sum()),
    )
    return Outcomes(codes, hits, duplicates)


def _leaks(index: Index, rows: Rows) -> Rows:
    """The training rows among `rows` whose `leak` is that of a validation row too."""
    rows = rows[index["split"][rows] == TRAIN]
    validation = np.unique(index["leak"][index["split"] == VALIDATION])
    return rows[np.isin(index["leak"][rows], validation)]


def _copies(index: Index, rows: Rows) -> tuple[Rows, int]:
    """The rows that repeat an earlier one exactly, and how many groups of equals there are."""
    hashes = index["hash"][rows]
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the earliest of equals comes first
    equal = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    starts = equal & ~np.r_[False, equal][: len(equal)]
    return np.sort(rows[order[1:][equal]]), int(starts.sum())


def signatures_of(texts: Sequence[Iterable[str]]) -> Signatures:
    """MinHash signatures of shape (texts, PERMUTATIONS), u4, each text given by its words."""
    from rensa import RMinHash

    signatures = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for start in range(0, len(texts), BLOCK):  # rensa gives lists of Python numbers, 5 kB a row
        block = texts[start : start + BLOCK]
        matrix = RMinHash.digest_matrix_from_token_sets(block, PERMUTATIONS, SEED)
        signatures[start : start + BLOCK] = matrix.to_rows()
    return signatures


def _near_copies(
    signatures: Signatures, rows: Rows, eligible: Mask, threshold: float
) -> tuple[Rows, int]:
    """The rows that are nearly equal to an earlier one, and how many groups they make.

    Only `rows` are compared; of them only `eligible` ones can be near copies.
    """
    is_copy, is_first = np.zeros(len(signatures), bool), np.zeros(len(signatures), bool)
    for candidates, firsts in _candidates(signatures, rows):
        is_open = eligible[candidates] & ~is_copy[candidates]
        candidates, firsts = candidates[is_open], firsts[is_open]
        is_near = _similarity(signatures, candidates, firsts) >= threshold
        is_copy[candidates[is_near]] = True
        is_first[firsts[is_near]] = True
    return np.flatnonzero(is_copy), int((is_first & ~is_copy).sum())


def _candidates(signatures: Signatures, rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Arrays of rows, and of the first row that each shares a band with.

    Only the first: with every such row, a chain of small changes would connect rows that are not similar.
    """
    keys = np.empty((len(rows), BANDS), np.uint64)
    for start in range(0, len(rows), BLOCK):
        keys[start : start + BLOCK] = _band_keys(signatures[rows[start : start + BLOCK]])
    flat = keys.reshape(-1)
    buckets = len(signatures) * BANDS // BUCKET + 1
    half = np.uint64(32)
    for bucket in range(buckets):
        entries = np.flatnonzero((flat >> half) * np.uint64(buckets) >> half == bucket)
        entries = entries[np.argsort(flat[entries], kind="stable")]
        same = np.r_[False, flat[entries[1:]] == flat[entries[:-1]]][: len(entries)]
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(entries))))
        numbers = rows[entries // BANDS]
        yield numbers[same], numbers[first[same]]


def _band_keys(signatures: Signatures) -> NDArray[np.uint64]:
    """One hash for each row and band, shape (rows, BANDS); it depends on the band's number too."""
    factors = np.random.default_rng(SEED).integers(1, 2**63, PERMUTATIONS, np.uint64) | np.uint64(1)
    products = signatures.astype(np.uint64) * factors
    keys: NDArray[np.uint64] = products.reshape(len(signatures), BANDS, -1).sum(2, np.uint64)
    return keys


def _similarity(signatures: Signatures, rows: Rows, others: Rows) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of each pair of a row and its other."""
    similarity = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        similarity[block] = (signatures[rows[block]] == signatures[others[block]]).mean(axis=1)
    return similarity
