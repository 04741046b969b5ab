"""Numbers of rows kept in files, so that a run's memory does not grow with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BUCKET = 1 << 18  # entries held in memory at once
BLOCK = 1 << 20  # codes held in memory at once

Entries = NDArray[np.uint64]  # shape (entries, columns)
Numbers = NDArray[np.int64]


class Codes:
    """A file of one byte a row, 0 at first; what is read of it is a copy."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows
        with path.open("wb") as file:
            file.truncate(rows)

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """The codes of `count` rows in a row."""
        return np.fromfile(self._path, np.uint8, count, offset=start)

    def write(self, start: int, codes: NDArray[np.uint8]) -> None:
        """Replace the codes from row `start` on."""
        with self._path.open("r+b") as file:
            file.seek(start)
            file.write(codes.tobytes())

    def at(self, rows: Numbers) -> NDArray[np.uint8]:
        """The codes of `rows`, in their order."""
        found = np.empty(len(rows), np.uint8)
        for start, places in self._blocks(rows):
            found[places] = self.read(start, BLOCK)[rows[places] - start]
        return found

    def add(self, rows: Numbers, bit: int) -> None:
        """Set `bit` in the codes of `rows`."""
        for start, places in self._blocks(rows):
            codes = self.read(start, BLOCK)
            codes[rows[places] - start] |= bit
            self.write(start, codes)

    def _blocks(self, rows: Numbers) -> Iterator[tuple[int, Numbers]]:
        """The first row of each block of codes that holds some of `rows`, and the places of those."""
        order = np.argsort(rows)
        starts = range(0, self._rows, BLOCK)
        borders = np.searchsorted(rows[order], [*starts, self._rows])
        for number, start in enumerate(starts):
            places = order[borders[number] : borders[number + 1]]
            if len(places):
                yield start, places


class Scattered:
    """Entries sorted into files by their first column, a hash: those of one hash are met in one bucket."""

    def __init__(self, folder: Path, columns: int, most: int) -> None:
        """`folder` is made; `most` entries are expected in all."""
        folder.mkdir()
        self._folder = folder
        self._columns, self._buckets = columns, most // BUCKET + 1
        self._waiting: list[Entries] = []
        self._held = 0

    def add(self, entries: Entries) -> None:
        """Entries that come after all that were added before."""
        self._waiting.append(entries)
        self._held += len(entries)
        if self._held >= BUCKET:
            self._flush()

    def buckets(self) -> Iterator[Entries]:
        """One bucket after another, its entries in the order in which they were added."""
        self._flush()
        for number in range(self._buckets):
            if (file := self._folder / str(number)).exists():
                yield np.fromfile(file, np.uint64).reshape(-1, self._columns)
                file.unlink()

    def _flush(self) -> None:
        if not self._held:
            return
        entries = np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        half = np.uint64(32)
        numbers = (entries[:, 0] >> half) * np.uint64(self._buckets) >> half
        order = np.argsort(numbers, kind="stable")
        borders = np.searchsorted(numbers[order], np.arange(self._buckets + 1, dtype=np.uint64))
        for number in np.flatnonzero(np.diff(borders)).tolist():
            with (self._folder / str(number)).open("ab") as out:
                entries[order[borders[number] : borders[number + 1]]].tofile(out)
