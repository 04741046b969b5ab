"""Parts to final files: one file a split, the provenance beside it, and everything refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..dedupe import DROPPED
from ..options import Options
from ..part import Index, Mark, read, remove
from ..schema import REJECTED_FILE, SPLITS, VALIDATION, Dialogue, Origin, Rejected, Row
from .summary import SplitSummary

ROW_GROUP = 32 << 20  # bytes of JSON that make a row group of Parquet
WHY = {
    "duplicate": "the same row stands earlier in the input",
    "near-duplicate": "nearly the same row stands earlier in the input",
    "leakage": "its passage stands in the validation split too",
}


def write(
    parts: Sequence[tuple[str, Mark]],
    folder: Path,
    out: Path,
    index: Index,
    outcomes: NDArray[np.uint8],
    options: Options,
) -> tuple[list[SplitSummary], int]:
    """Write every split of `parts` (files of `folder`) and `rejected.jsonl` into `out`.

    `index` and `outcomes` are those of the parts' rows, one after the other. Returns the splits and the
    number of lines in `rejected.jsonl`. A part is removed once it is written: what the disk has not seen yet
    it never has to. A run killed meanwhile makes it again.
    """
    refused, start = 0, 0
    names = [f"{name}.{options.format}" for name in SPLITS]
    with ExitStack() as stack:
        kind = Dialogue if options.conversations else Row
        rows = [stack.enter_context(_writer(out / name, options, kind)) for name in names]
        origins = [
            stack.enter_context(
                _writer(out / f"{name}.provenance.{options.format}", options, Origin)
            )
            for name in SPLITS
            if options.provenance
        ]
        rejected = stack.enter_context((out / REJECTED_FILE).open("wb"))
        for key, mark in parts:
            mine = slice(start, start + mark.counts.rows)
            start = mine.stop
            entries, codes = index[mine], outcomes[mine]
            for section, sizes, writers in (("rows", "size", rows), ("origins", "origin", origins)):
                lines = read(folder, key, section) if writers else b""
                for split, writer in enumerate(writers):
                    writer.write(_chosen(lines, entries[sizes], codes == split))
            refusals = [read(folder, key, "rejected"), *_dropped(folder, key, mark, entries, codes)]
            rejected.writelines(refusals)
            refused += sum(lines.count(b"\n") for lines in refusals)
            remove(folder, key)
    splits = [
        SplitSummary(
            name=SPLITS[split],
            rows=int((outcomes == split).sum()),
            bytes=(out / name).stat().st_size,
            file=name,
            sha256=rows[split].sha256,
        )
        for split, name in enumerate(names)
    ]
    return splits, refused


def _chosen(lines: bytes, sizes: NDArray[np.uint32], chosen: NDArray[np.bool_]) -> bytes:
    """Of lines of `sizes` bytes those that are `chosen`."""
    if chosen.all():
        return lines
    if not chosen.any():
        return b""
    ends = np.cumsum(sizes, dtype=np.int64)
    lasts = [*np.flatnonzero(np.diff(chosen)).tolist(), len(chosen) - 1]  # of runs of lines
    pieces, start = [], 0
    for last in lasts:
        end = int(ends[last])
        if chosen[last]:
            pieces.append(lines[start:end])
        start = end
    return b"".join(pieces)


def _dropped(
    folder: Path, key: str, mark: Mark, entries: Index, codes: NDArray[np.uint8]
) -> Iterator[bytes]:
    """A rejected line for each row that was dropped for the sake of the whole."""
    numbers = np.flatnonzero(codes > VALIDATION).tolist()
    if not numbers:
        return
    origins = read(folder, key, "origins").splitlines()
    for number in numbers:
        origin = msgspec.json.decode(origins[number], type=Origin)
        reason = DROPPED[int(codes[number])]
        line = Rejected(
            file=mark.file,
            line=int(entries["line"][number]),
            byte=int(entries["offset"][number]),
            source=mark.source,
            id=origin.id,
            turn=origin.turn,
            reason=reason,
            detail=WHY[reason],
        )
        yield msgspec.json.encode(line) + b"\n"


class Writer(Protocol):
    """Takes whole JSON lines and writes them in its own format; `sha256` is the closed file's."""

    sha256: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, lines: bytes) -> None: ...


def _writer(path: Path, options: Options, record: type[msgspec.Struct]) -> Writer:
    """The writer of the chosen format at `path`; `record` is what a line holds."""
    return _Parquet(path, record) if options.format == "parquet" else _Lines(path)


class _Lines:
    """JSON lines as they are."""

    def __init__(self, path: Path) -> None:
        self.sha256 = ""
        self._file, self._hash = path.open("wb"), hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.sha256 = self._hash.hexdigest()

    def write(self, lines: bytes) -> None:
        self._hash.update(lines)
        self._file.write(lines)


class _Parquet:
    """Columns, compressed; a row group for every ROW_GROUP bytes of JSON."""

    def __init__(self, path: Path, record: type[msgspec.Struct]) -> None:
        from pyarrow import parquet

        self.sha256 = ""
        self._path = path
        self._schema = _schema(record)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._waiting = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()
        with self._path.open("rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    def write(self, lines: bytes) -> None:
        self._waiting += lines
        if len(self._waiting) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        rows = [msgspec.to_builtins(row) for row in self._decode(bytes(self._waiting))]
        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(rows, self._schema))
        self._waiting = bytearray()


def _schema(record: type[msgspec.Struct]) -> Any:
    import pyarrow

    text = pyarrow.string()
    if record is Dialogue:
        message = pyarrow.struct([("role", text), ("content", text), ("context", text)])
        return pyarrow.schema([("messages", pyarrow.list_(message)), ("category", text)])
    kinds = {"turn": pyarrow.int64()}
    return pyarrow.schema([(name, kinds.get(name, text)) for name in record.__struct_fields__])
