"""Prepared rows on disk: a folder a preparation, named by the hash of all that decided it."""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .mask import IGNORED, Tokens

FLUSH = 1 << 18  # tokens of a record batch: about 2 MB in memory
DONE = "fates.json"  # written last: a folder with it is whole


def key_of(parts: Iterable[str]) -> str:
    """A name for all of `parts`, in order."""
    sha = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        sha.update(len(encoded).to_bytes(8, "big") + encoded)
    return sha.hexdigest()[:24]


@contextmanager
def locked(cache: Path, key: str) -> Iterator[Path]:
    """The folder of `key`, with no other process at work on it; it may not be there yet.

    The processes of one machine (torchrun's) wait here for the first, and find its work done.
    """
    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):
        yield cache / key


def is_whole(folder: Path) -> bool:
    """Whether a preparation ended there."""
    return (folder / DONE).is_file()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder of another name, which takes the place of `folder` when all went well, else is gone."""
    part = folder.with_name(f"{folder.name}.part")
    for old in (part, folder):  # what a killed run left
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Sink:
    """Writes sequences to an Arrow stream, which datasets maps into memory as it is.

    Columns: input_ids and labels (lists of int32), length (int32).
    """

    def __init__(self, path: Path) -> None:
        import pyarrow

        numbers = pyarrow.list_(pyarrow.int32())
        self._schema = pyarrow.schema(
            [("input_ids", numbers), ("labels", numbers), ("length", pyarrow.int32())]
        )
        self._file = pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_stream(self._file, self._schema)
        self._clear()
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def add(self, tokens: Tokens) -> None:
        """One more sequence."""
        begin = len(self._ids)
        self._ids.extend(tokens.ids)
        self._learned += [(begin + start, begin + end) for start, end in tokens.learned]
        self._ends.append(len(self._ids))
        self.rows += 1
        if len(self._ids) >= FLUSH:
            self._flush()

    def _clear(self) -> None:
        self._ids, self._ends = array("i"), array("i", [0])
        self._learned: list[tuple[int, int]] = []

    def _flush(self) -> None:
        import pyarrow

        labels = array("i", [IGNORED]) * len(self._ids)
        for start, end in self._learned:
            labels[start:end] = self._ids[start:end]
        ends = _numbers(self._ends)
        columns = [
            pyarrow.ListArray.from_arrays(ends, _numbers(values)) for values in (self._ids, labels)
        ]
        lengths = array("i", map(int.__sub__, self._ends[1:], self._ends))
        self._writer.write_batch(
            pyarrow.record_batch([*columns, _numbers(lengths)], schema=self._schema)
        )
        self._clear()


def _numbers(values: array[int]) -> Any:
    """The same memory as an Arrow array."""
    import pyarrow

    return pyarrow.Array.from_buffers(
        pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)]
    )
