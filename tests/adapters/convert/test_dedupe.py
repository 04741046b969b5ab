"""What is decided over all rows together: duplicates, near duplicates and leakage."""

from __future__ import annotations

import numpy as np
import pytest

from kodolly_adapters.convert import dedupe
from kodolly_adapters.convert.cleaning.rules import modes_of
from kodolly_adapters.convert.dedupe import CODES, PERMUTATIONS, Outcomes, resolve
from kodolly_adapters.convert.part import INDEX, Index
from kodolly_adapters.convert.schema import TRAIN, VALIDATION

ROWS, KINDS = 6_000, 2_000


def rows_of(kinds: list[int], splits: list[int]) -> Index:
    """One row for each number, rows of equal numbers holding the same text."""
    index = np.zeros(len(kinds), INDEX)
    index["hash"] = np.stack([np.array(kinds) + 7, np.array(kinds) * 3], axis=1)
    index["leak"], index["split"], index["units"] = index["hash"][:, 0], splits, 1
    return index


def decide(index: Index, *, signatures: dedupe.Signatures | None = None, **modes: str) -> Outcomes:
    by_rule = modes_of({name.replace("_", "-"): mode for name, mode in modes.items()})
    return resolve(index, np.zeros(len(index), np.uint8), [by_rule], 0.8, signatures)


def test_the_first_row_of_each_text_stays() -> None:
    """The others are copies of it, and each text that comes again is one group."""
    kinds = np.random.default_rng(1).integers(0, KINDS, ROWS)
    first = np.zeros(ROWS, bool)
    first[np.unique(kinds, return_index=True)[1]] = True
    _, times = np.unique(kinds, return_counts=True)
    outcomes = decide(rows_of(kinds.tolist(), (kinds % 4 == 0).tolist()), duplicate="drop")
    assert outcomes.in_split.tolist() == first.tolist()
    assert outcomes.duplicates.exact_groups == (times > 1).sum()
    assert outcomes.duplicates.exact_rows == (times - 1).sum()


def test_a_rule_that_counts_drops_nothing() -> None:
    """Copies and leaks are counted, and their rows stay in their splits."""
    index = rows_of([1, 1, 2, 1], [TRAIN, TRAIN, TRAIN, VALIDATION])
    outcomes = decide(index, duplicate="count", leakage="count")
    assert outcomes.codes.tolist() == index["split"].tolist()
    assert outcomes.hits["duplicate"].tolist() == [False, True, False, True]
    assert outcomes.hits["leakage"].tolist() == [True, True, False, False]


def test_leakage_is_judged_before_copies() -> None:
    """A row is not dropped as the copy of one that is dropped as leakage."""
    index = rows_of([1, 1, 2, 1], [TRAIN, TRAIN, TRAIN, VALIDATION])
    outcomes = decide(index, duplicate="drop", leakage="drop")
    assert outcomes.codes.tolist() == [CODES["leakage"], CODES["leakage"], TRAIN, VALIDATION]
    assert outcomes.duplicates.exact_rows == 0


def test_each_source_has_its_own_modes() -> None:
    """A rule that is off for one source neither drops its rows nor compares others with them."""
    index = rows_of([1, 1, 1, 1], [TRAIN] * 4)
    modes = [modes_of({"duplicate": "off"}), modes_of({"duplicate": "drop"})]
    outcomes = resolve(index, np.array([0, 0, 1, 1], np.uint8), modes, 0.8)
    assert outcomes.in_split.tolist() == [True, True, True, False]


def test_near_copies_are_found_by_their_signatures() -> None:
    """Rows with most of a signature in common are near copies, others are not.

    There are more rows than are compared at a time, and a copy shares only one band with its original.
    """
    chance = np.random.default_rng(2)
    size = 2 * dedupe.BUCKET // dedupe.BANDS
    signatures = chance.integers(0, 2**32, (size, PERMUTATIONS), np.uint32)
    copies, unlike = slice(size - 200, size - 100), slice(size - 100, size)
    signatures[copies] = signatures[:100]
    for row in range(100):  # 0.88 alike: a value differs in every band but one
        differing = [8 * band for band in range(dedupe.BANDS) if band != row % dedupe.BANDS]
        signatures[size - 200 + row, differing] += 1
    signatures[unlike] = signatures[100:200]
    signatures[unlike, 60:] += 1  # 0.47 alike
    index = rows_of(list(range(size)), [TRAIN] * size)
    outcomes = decide(index, signatures=signatures, near_duplicate="drop")
    assert np.flatnonzero(~outcomes.in_split).tolist() == list(range(size - 200, size - 100))
    assert (outcomes.duplicates.near_groups, outcomes.duplicates.near_rows) == (100, 100)


@pytest.mark.parametrize("kinds", [[], [1, 1]])
def test_a_run_may_have_no_rows_to_compare(kinds: list[int]) -> None:
    """A run without rows works, and so does one whose rows are all dropped before near copies are looked for."""
    index = rows_of(kinds, [TRAIN, VALIDATION][: len(kinds)])
    signatures = np.tile(np.arange(PERMUTATIONS, dtype=np.uint32), (len(kinds), 1))
    modes = {"duplicate": "drop", "near_duplicate": "drop", "leakage": "drop"}
    outcomes = decide(index, signatures=signatures, **modes)
    assert int(outcomes.in_split.sum()) == len(set(kinds))
