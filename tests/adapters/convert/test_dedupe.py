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
    chosen = modes_of({name.replace("_", "-"): mode for name, mode in modes.items()})
    return resolve(index, np.zeros(len(index), np.uint8), [chosen], 0.8, signatures)


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
    """Copies and leaks are found and their rows stay in their splits."""
    index = rows_of([1, 1, 2, 1], [TRAIN, TRAIN, TRAIN, VALIDATION])
    outcomes = decide(index, duplicate="count", leakage="count")
    assert outcomes.codes.tolist() == index["split"].tolist()
    assert outcomes.hits["duplicate"].tolist() == [False, True, False, True]
    assert outcomes.hits["leakage"].tolist() == [True, True, False, False]


def test_leakage_is_judged_before_copies() -> None:
    """What leaves as leakage is no row that another could be a copy of."""
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


def test_near_copies_are_told_by_their_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows alike in nine tenths of a signature are near, others not; in one step or in many."""
    chance = np.random.default_rng(2)
    signatures = chance.integers(0, 2**32, (600, PERMUTATIONS), np.uint32)
    signatures[300:400] = signatures[:100]
    signatures[300:400, 120:] += 1  # 0.94 alike
    signatures[400:500] = signatures[100:200]
    signatures[400:500, 60:] += 1  # 0.47 alike
    index = rows_of(list(range(600)), [TRAIN] * 600)
    outcomes = decide(index, signatures=signatures, near_duplicate="drop")
    assert np.flatnonzero(~outcomes.in_split).tolist() == list(range(300, 400))
    assert (outcomes.duplicates.near_groups, outcomes.duplicates.near_rows) == (100, 100)
    monkeypatch.setattr(dedupe, "BUCKET", 64)
    again = decide(index, signatures=signatures, near_duplicate="drop")
    assert again.codes.tolist() == outcomes.codes.tolist()


@pytest.mark.parametrize("kinds", [[], [1, 1]])
def test_no_row_left_to_compare_is_no_fault(kinds: list[int]) -> None:
    """A run without rows, or one whose rows all left as copies or leaks, is decided like any other."""
    index = rows_of(kinds, [TRAIN, VALIDATION][: len(kinds)])
    signatures = np.tile(np.arange(PERMUTATIONS, dtype=np.uint32), (len(kinds), 1))
    modes = {"duplicate": "drop", "near_duplicate": "drop", "leakage": "drop"}
    outcomes = decide(index, signatures=signatures, **modes)
    assert int(outcomes.in_split.sum()) == len(set(kinds))
