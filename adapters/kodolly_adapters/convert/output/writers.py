"""Parts to final files: one file a split, the provenance beside it, and everything refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kodolly_adapters.files import sha256

from ..dedupe import DROPPED
from ..options import Options
from ..part import Index, StoredPart
from ..schema import REJECTED_FILE, SPLITS, VALIDATION, Dialogue, Origin, Rejected, Row
from .summary import Results, SplitSummary

ROW_GROUP = 32 << 20  # bytes of JSON that make a row group of Parquet
WHY = {
    "duplicate": "the same row stands earlier in the input",
    "near-duplicate": "nearly the same row stands earlier in the input",
    "leakage": "its passage stands in the validation split too",
}


def write(results: Results, out: Path, options: Options) -> tuple[list[SplitSummary], int]:
    """Write every split and `rejected.jsonl` into `out`; gives the splits and the lines of the latter.

    A part is removed once it is written: what the disk has not seen yet it never has to. A run killed
    meanwhile makes it again.
    """
    refused = 0
    with ExitStack() as stack:

        def writers(ending: str, record: type[msgspec.Struct]) -> list[_Lines | _Parquet]:
            """One writer a split."""
            paths = [out / f"{name}{ending}.{options.format}" for name in SPLITS]
            if options.format == "parquet":
                return [stack.enter_context(closing(_Parquet(path, record))) for path in paths]
            return [stack.enter_context(closing(_Lines(path))) for path in paths]

        rows = writers("", Dialogue if options.conversations else Row)
        origins = writers(".provenance", Origin) if options.provenance else []
        rejected = stack.enter_context((out / REJECTED_FILE).open("wb"))
        for part in results.parts:
            codes = results.outcomes.codes[part.rows]
            for section, files in (("rows", rows), ("origins", origins)):
                lines = part.read(section).splitlines(keepends=True) if files else []
                for split, file in enumerate(files):
                    file.write(b"".join(compress(lines, (codes == split).tolist())))
            refusals = [part.read("rejected"), *_dropped(part, results.index[part.rows], codes)]
            rejected.writelines(refusals)
            refused += sum(lines.count(b"\n") for lines in refusals)
            part.path.unlink()
    splits = [
        SplitSummary(
            name=name,
            rows=int((results.outcomes.codes == split).sum()),
            bytes=file.path.stat().st_size,
            file=file.path.name,
            sha256=file.sha256,
        )
        for split, (name, file) in enumerate(zip(SPLITS, rows, strict=True))
    ]
    return splits, refused


def _dropped(part: StoredPart, entries: Index, codes: NDArray[np.uint8]) -> Iterator[bytes]:
    """A rejected line for each row that was dropped for the sake of the whole."""
    numbers = np.flatnonzero(codes > VALIDATION).tolist()
    origins = part.read("origins").splitlines() if numbers else []
    for number in numbers:
        origin = msgspec.json.decode(origins[number], type=Origin)
        reason = DROPPED[int(codes[number])]
        line = Rejected(
            file=part.mark.file,
            line=int(entries["line"][number]),
            byte=int(entries["offset"][number]),
            source=part.mark.source,
            id=origin.id,
            turn=origin.turn,
            reason=reason,
            detail=WHY[reason],
        )
        yield msgspec.json.encode(line) + b"\n"


class _Lines:
    """JSON lines as they are; `sha256` is the closed file's."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, ""
        self._file, self._hash = path.open("wb"), hashlib.sha256()

    def close(self) -> None:
        self._file.close()
        self.sha256 = self._hash.hexdigest()

    def write(self, lines: bytes) -> None:
        self._hash.update(lines)
        self._file.write(lines)


class _Parquet:
    """Columns, compressed; a row group for every ROW_GROUP bytes of JSON."""

    def __init__(self, path: Path, record: type[msgspec.Struct]) -> None:
        from pyarrow import parquet

        self.path, self.sha256 = path, ""
        self._schema = _schema(record)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._waiting = bytearray()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self.sha256 = sha256(self.path)

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
