"""MinHash signatures of rows, and the groups of near duplicates among them.

Two rows are near duplicates when their sets of words are estimated to be more alike (Jaccard) than a threshold.
Candidates are rows that agree in one of BANDS bands of the signature; source: Broder 1997, and Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
BANDS = 16  # of 8 values: two rows alike to 0.8 share a band with probability 0.95
SEED = 42
BLOCK = 65536  # rows compared at once

Signatures = NDArray[np.uint32]


def of(texts: Sequence[Iterable[str]]) -> Signatures:
    """Signatures of shape (texts, PERMUTATIONS), u4, each text given by its words."""
    if not texts:
        return np.empty((0, PERMUTATIONS), np.uint32)
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_token_sets(texts, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def near_duplicates(
    signatures: Signatures, left: NDArray[np.bool_], threshold: float
) -> NDArray[np.int64]:
    """For each row the number of an earlier row it is a near duplicate of, itself where there is none.

    Only rows that are `left` are compared.

    Each candidate is compared with the first row of its band's group, so that a chain of small changes does not
    tie unlike rows together.
    """
    rows = len(signatures)
    first = np.arange(rows, dtype=np.int64)
    alive = np.flatnonzero(left)
    for band in range(BANDS):
        _, inverse = np.unique(_band_keys(signatures, band), return_inverse=True)
        leader = np.full(inverse.max() + 1 if rows else 0, rows, np.int64)
        np.minimum.at(leader, inverse[alive], alive)
        candidate = leader[inverse]
        later = alive[candidate[alive] < first[alive]]
        for block in np.array_split(later, len(later) // BLOCK + 1):
            alike = (signatures[block] == signatures[candidate[block]]).mean(axis=1)
            close = block[alike >= threshold]
            first[close] = candidate[close]
    return _roots(first)


def _band_keys(signatures: Signatures, band: int) -> NDArray[np.uint64]:
    """One hash a row of the band's values, shape (rows,); read in blocks, as `signatures` may be a file's."""
    width = PERMUTATIONS // BANDS
    factors = np.random.default_rng(SEED).integers(1, 2**63, width, np.uint64) | np.uint64(1)
    keys = np.empty(len(signatures), np.uint64)
    for start in range(0, len(signatures), BLOCK):
        block = signatures[start : start + BLOCK, band * width : (band + 1) * width]
        keys[start : start + BLOCK] = (block.astype(np.uint64) * factors).sum(1, np.uint64)
    return keys


def _roots(first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Follow each row's earlier row to the end of its chain."""
    while not np.array_equal(first, onward := first[first]):
        first = onward
    return first
