"""Files damaged at random: never a crash without a named file and byte, never a lost record."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.convert_fuzz import SEEDS, Choose, Damaged, Seed, check, check_run, damaged

NESTED = b'[{"instruction": "?", "input": "", "output": ' + b"[" * 100_000
SETTINGS = settings(
    deadline=None,
    derandomize=True,  # the same files on every machine; `make fuzz` looks for new ones
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def damaged_files(draw: st.DrawFn) -> Damaged:
    """Files as `damaged` makes them, decided by hypothesis so that it can shrink them."""
    choose: Choose = lambda below: draw(st.integers(0, below - 1))
    return damaged(choose)


pytestmark = pytest.mark.usefixtures("no_pictures")


@settings(SETTINGS, max_examples=400)
@given(file=damaged_files(), size=st.integers(1, 4_000))
@example(file=Damaged("ko_alpaca_data.json", NESTED, True), size=100)
@example(file=Damaged("KoAlpaca_v1.1.jsonl", NESTED[1:], True), size=100)
def test_a_damaged_file_is_named_or_converted_whole(file: Damaged, size: int) -> None:
    """Whatever is done to a file, it is refused by name and byte or all its records are accounted for."""
    check(file, size)


@settings(SETTINGS, max_examples=40)
@given(file=damaged_files(), packing=st.integers(0, 5))
@example(file=Damaged("ko_alpaca_data.json", NESTED, True), packing=0)
def test_a_damaged_file_leaves_nothing_half_written(file: Damaged, packing: int) -> None:
    """A whole run on a damaged file ends with counts that add up, or with its name and no output."""
    check_run(file, packing)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_undamaged_files_are_converted(seed: Seed) -> None:
    """The files that the damage is done to are themselves good, so that the rest tests something."""
    # The first decision is the seed; 0 for all others changes nothing.
    decisions = iter([SEEDS.index(seed)])
    assert check(damaged(lambda below: next(decisions, 0)), 300) == "converted"
