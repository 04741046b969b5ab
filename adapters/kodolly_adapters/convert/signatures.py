"""MinHash signatures of rows, and the groups of near duplicates among them.

Two rows are near duplicates when their sets of words are estimated to be more alike (Jaccard) than a threshold.
Candidates are rows that agree in one of BANDS bands of the signature; source: Broder 1997, and Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .columns import Scattered

PERMUTATIONS = 128
BANDS = 16  # of 8 values: two rows alike to 0.8 share a band with probability 0.95
SEED = 42
WIDTH = 4 * PERMUTATIONS  # bytes of a signature
BLOCK = 4096  # rows or pairs looked at at once

Matrix = NDArray[np.uint32]


def of(texts: Sequence[Iterable[str]]) -> Matrix:
    """Signatures of shape (texts, PERMUTATIONS), u4, each text given by its words."""
    from rensa import RMinHash

    found = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for start in range(0, len(texts), BLOCK):  # they come as lists of Python numbers, 5 kB a row
        block = texts[start : start + BLOCK]
        matrix = RMinHash.digest_matrix_from_token_sets(block, PERMUTATIONS, SEED)
        found[start : start + BLOCK] = matrix.to_rows()
    return found


class Signatures:
    """The signatures of all rows in one file, and the pairs among them that may be near duplicates.

    What is held in memory does not grow with the rows.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """`folder` is made."""
        folder.mkdir()
        self._file = (folder / "all").open("w+b", buffering=0)
        self._bands = Scattered(folder / "bands", 2, rows * BANDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, file: Path, start: int, left: NDArray[np.int64]) -> None:
        """A part's, whose first row is number `start`; only its rows `left` are compared."""
        part = np.fromfile(file, np.uint32).reshape(-1, PERMUTATIONS)
        self._file.seek(start * WIDTH)
        self._file.write(part.tobytes())
        for rows in np.array_split(left, len(left) // BLOCK + 1):
            entries = np.empty((len(rows), BANDS, 2), np.uint64)
            entries[:, :, 0] = _band_keys(part[rows])
            entries[:, :, 1] = (rows + start)[:, None]
            self._bands.add(entries.reshape(-1, 2))

    def candidates(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows, and for each the first row it shares a band with: not any one, so that a chain of small changes
        does not tie unlike rows together."""
        for bucket in self._bands.buckets():
            bucket = bucket[np.argsort(bucket[:, 0], kind="stable")]
            same = np.r_[False, bucket[1:, 0] == bucket[:-1, 0]]
            leader = np.maximum.accumulate(np.where(same, 0, np.arange(len(bucket))))
            rows = bucket[:, 1].astype(np.int64)
            yield rows[same], rows[leader[same]]

    def alike(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """The estimated likeness of each pair."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            found[block] = (self._of(rows[block]) == self._of(others[block])).mean(axis=1)
        return found

    def _of(self, rows: NDArray[np.int64]) -> Matrix:
        """Read one by one: a map of the whole file would count as memory where it was touched."""
        found = np.empty((len(rows), PERMUTATIONS), np.uint32)
        for signature, row in zip(found, rows.tolist(), strict=True):
            os.preadv(self._file.fileno(), [signature.data], row * WIDTH)
        return found


def _band_keys(signatures: Matrix) -> NDArray[np.uint64]:
    """One hash for each row and band, shape (rows, BANDS); the same values in two bands have two."""
    factors = np.random.default_rng(SEED).integers(1, 2**63, PERMUTATIONS, np.uint64) | np.uint64(1)
    products = (signatures.astype(np.uint64) * factors).reshape(len(signatures), BANDS, -1)
    keys: NDArray[np.uint64] = products.sum(2, np.uint64)
    return keys
