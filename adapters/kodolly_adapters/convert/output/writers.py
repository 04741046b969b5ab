"""Writes the final files from the parts: one file per split, its provenance file, and `rejected.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from kodolly_adapters.files import sha256

from ..dedupe import DROP_RULES
from ..options import Options
from ..part import Index, StoredPart
from ..schema import REJECTED_FILE, SPLITS, VALIDATION, Dialogue, Origin, RejectedLine, Row
from .summary import Results, SplitSummary

ROW_GROUP = 32 << 20  # bytes of JSON that make a row group of Parquet
DETAILS = {
    "duplicate": "the same row stands earlier in the input",
    "near-duplicate": "nearly the same row stands earlier in the input",
    "leakage": "its passage stands in the validation split too",
}


def write(results: Results, out: Path, options: Options) -> tuple[list[SplitSummary], int]:
    """Write every split and `rejected.jsonl` into `out`; returns the splits and the number of rejected lines.

    A part's file is deleted as soon as its rows are written: what the kernel still caches of it is then never
    written to disk. If the run is killed meanwhile, the next one makes the deleted parts again.
    """
    rejected_lines = 0
    with ExitStack() as stack:

        def open_writers(ending: str, record: type[msgspec.Struct]) -> list[BinaryIO | _Parquet]:
            """One writer per split."""
            paths = [out / f"{name}{ending}.{options.format}" for name in SPLITS]
            if options.format == "parquet":
                return [stack.enter_context(closing(_Parquet(path, record))) for path in paths]
            return [stack.enter_context(path.open("wb")) for path in paths]

        rows = open_writers("", Dialogue if options.conversations else Row)
        origins = open_writers(".provenance", Origin) if options.provenance else []
        rejected_file = stack.enter_context((out / REJECTED_FILE).open("wb"))
        for part in results.parts:
            codes = results.outcomes.codes[part.rows]
            for section, files in (("rows", rows), ("origins", origins)):
                lines = part.read(section).splitlines(keepends=True) if files else []
                for split, file in enumerate(files):
                    file.write(b"".join(compress(lines, (codes == split).tolist())))
            rejections = [part.read("rejected"), *_drops(part, results.index[part.rows], codes)]
            rejected_file.writelines(rejections)
            rejected_lines += sum(lines.count(b"\n") for lines in rejections)
            part.path.unlink()
    splits = [
        SplitSummary(
            name=name,
            rows=int((results.outcomes.codes == split).sum()),
            bytes=(out / f"{name}.{options.format}").stat().st_size,
            file=f"{name}.{options.format}",
            sha256=sha256(out / f"{name}.{options.format}"),
        )
        for split, name in enumerate(SPLITS)
    ]
    return splits, rejected_lines


def _drops(part: StoredPart, entries: Index, codes: NDArray[np.uint8]) -> Iterator[bytes]:
    """A line of `rejected.jsonl` for each row that was dropped as a duplicate or as leakage."""
    numbers = np.flatnonzero(codes > VALIDATION).tolist()
    origins = part.read("origins").splitlines() if numbers else []
    for number in numbers:
        origin = msgspec.json.decode(origins[number], type=Origin)
        reason = DROP_RULES[int(codes[number])]
        line, byte = int(entries["line"][number]), int(entries["offset"][number])
        row = origin.file, line, byte, origin.source, origin.id, origin.turn
        yield msgspec.json.encode(RejectedLine(*row, reason, DETAILS[reason])) + b"\n"


class _Parquet:
    """Writes compressed Parquet: a row group for every ROW_GROUP bytes of JSON."""

    def __init__(self, path: Path, record: type[msgspec.Struct]) -> None:
        from pyarrow import parquet

        self._schema = _schema(record)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._buffer = bytearray()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def write(self, lines: bytes) -> None:
        self._buffer += lines
        if len(self._buffer) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        rows = [msgspec.to_builtins(row) for row in self._decode(bytes(self._buffer))]
        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(rows, self._schema))
        self._buffer = bytearray()


def _schema(record: type[msgspec.Struct]) -> Any:
    import pyarrow

    text = pyarrow.string()
    if record is Dialogue:
        message = pyarrow.struct([("role", text), ("content", text), ("context", text)])
        return pyarrow.schema([("messages", pyarrow.list_(message)), ("category", text)])
    names = record.__struct_fields__
    return pyarrow.schema([(name, pyarrow.int64() if name == "turn" else text) for name in names])
