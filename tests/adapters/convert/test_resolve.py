"""What is decided over all rows together: the same however it is cut, in memory that does not grow with the rows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kodolly_adapters.convert import columns, signatures
from kodolly_adapters.convert import dedupe as resolve
from kodolly_adapters.convert.cleaning.rules import modes_of
from kodolly_adapters.convert.columns import Codes, Scattered
from kodolly_adapters.convert.dedupe import Parts, Resolved
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Duplicates
from kodolly_adapters.convert.part import INDEX, Done, Part, PartCounts, index_of, save

ROWS = 500  # of a part
MODES = {"koalpaca": modes_of({"near-duplicate": "count", "duplicate": "drop"})}


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are enough to fill a bucket, a block and all else that is looked at at once."""
    for module, names in ((columns, ("BUCKET", "BLOCK")), (resolve, ("SHOWN",))):
        for name in names:
            monkeypatch.setattr(module, name, 2048)
    monkeypatch.setattr(signatures, "BLOCK", 256)


def _parts(folder: Path, count: int, kinds: int) -> Parts:
    """Parts of rows that each hold one of so many `kinds` of text; a quarter of them is for validation."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(1)
    hashes = chance.integers(0, 2**63, (kinds, 2), np.uint64)
    prints = chance.integers(0, 2**32, (kinds, signatures.PERMUTATIONS), np.uint32)
    parts = []
    for number in range(count):
        kind = chance.integers(0, kinds, ROWS)
        index = np.zeros(ROWS, INDEX)
        index["hash"], index["leak"] = hashes[kind], hashes[kind][:, 0]
        index["split"], index["units"] = kind % 4 == 0, 1
        done = Done("가.json", "koalpaca", str(number), PartCounts(rows=ROWS, kept=ROWS))
        none = {0: b"", 1: b""}
        key = f"0000-{number:07d}"
        save(Part(none, none, b"", index, prints[kind], done), folder, key)
        parts.append((key, done))
    return parts


def _fates(folder: Path, parts: Parts) -> tuple[list[int], Duplicates]:
    resolved: Resolved = resolve.resolve(folder, parts, MODES, Options())
    return [
        int(f) for key, mark in parts for f in resolved.fates_of(key, mark)
    ], resolved.duplicates


def test_every_row_is_judged_by_all_rows_before_it(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The first row of each text stays, the others are copies of it; small steps change nothing of that."""
    parts = _parts(tmp_path / "parts", 12, 2_000)
    hashes = np.concatenate([index_of(tmp_path / "parts", key)["hash"][:, 0] for key, _ in parts])
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    fates, duplicates = _fates(tmp_path / "parts", parts)
    assert (np.array(fates) < 2).tolist() == first.tolist()
    _, times = np.unique(hashes, return_counts=True)
    copied = (int((times > 1).sum()), int((times - 1).sum()))
    assert (duplicates.exact_groups, duplicates.exact_rows) == copied
    assert duplicates.near_rows == 0
    request.getfixturevalue("_small_steps")
    assert _fates(tmp_path / "parts", parts) == (fates, duplicates)


@pytest.mark.usefixtures("_small_steps")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Eight times the rows take the same memory, near duplicates looked for too."""
    peaks = []
    for run, count in enumerate((64, 8, 64)):  # the first time, Python learns names it keeps
        folder = tmp_path / str(run)
        parts = _parts(folder, count, count * ROWS)
        tracemalloc.start()
        resolve.resolve(folder, parts, MODES, Options())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A part's name, place and counts are kept: some hundred bytes for half a thousand rows.
    assert peaks[2] < peaks[1] + 56 * 1_000


@pytest.mark.usefixtures("_small_steps")
def test_codes_are_found_where_they_were_put(tmp_path: Path) -> None:
    """Bits set in any order, over several blocks, stand at their rows and nowhere else."""
    codes = Codes(tmp_path / "codes", 5_000)
    rows = np.random.default_rng(2).permutation(5_000)[:700]
    codes.add(rows, 2)
    codes.add(rows[:100], 5)
    assert codes.at(rows).tolist() == [7] * 100 + [2] * 600
    assert int((codes.read(0, 5_000) > 0).sum()) == 700
    codes.write(4_990, np.full(10, 9, np.uint8))
    assert codes.read(4_988, 12).tolist()[2:] == [9] * 10


@pytest.mark.usefixtures("_small_steps")
def test_equal_keys_meet_in_one_bucket_in_order(tmp_path: Path) -> None:
    """Whatever the buckets, each key's entries come together, in the order in which they were added."""
    entries = np.random.default_rng(3).integers(0, 2**64, (9_000, 2), np.uint64)
    entries[:, 0] = entries[entries[:, 0] % 900, 0]
    entries[:, 1] = np.arange(9_000)
    scattered = Scattered(tmp_path / "buckets", 2, 9_000)
    for block in np.array_split(entries, 70):
        scattered.add(block)
    buckets = list(scattered.buckets())
    assert len(buckets) > 3
    assert max(map(len, buckets)) < 4_000
    keys = [set(bucket[:, 0].tolist()) for bucket in buckets]
    assert sum(map(len, keys)) == len(set(entries[:, 0].tolist()))
    for bucket in buckets:
        for key in np.unique(bucket[:, 0]):
            numbers = bucket[bucket[:, 0] == key, 1]
            assert (np.diff(numbers.astype(np.int64)) > 0).all()
