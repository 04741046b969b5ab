"""Parts to final files: one file a split, the provenance beside it, and everything refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np

from .options import Options
from .part import Done, Index, index_of
from .resolve import DROPPED, TRAIN, VALIDATION, Fates, Resolved
from .rows import Row
from .shard import Dialogue, Origin, Rejected
from .summary import SplitSummary

SPLITS = {TRAIN: "train", VALIDATION: "validation"}
REJECTED = "rejected.jsonl"


class Sink(Protocol):
    """Takes whole JSON lines and writes them in its own format."""

    def write(self, lines: memoryview) -> None: ...

    def close(self) -> None: ...


class Lines:
    """JSON lines as they are."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")

    def write(self, lines: memoryview) -> None:
        self._file.write(lines)

    def close(self) -> None:
        self._file.close()


class Parquet:
    """Columns, compressed; a row group for some hundred thousand bytes of lines and more."""

    GROUP = 32 << 20  # bytes of JSON

    def __init__(self, path: Path, record: type[msgspec.Struct], schema: Any) -> None:
        from pyarrow import parquet

        self._writer = parquet.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._waiting = bytearray()

    def write(self, lines: memoryview) -> None:
        self._waiting += lines
        if len(self._waiting) >= self.GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        rows = [msgspec.to_builtins(row) for row in self._decode(bytes(self._waiting))]
        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(rows, self._schema))
        self._waiting = bytearray()


def write(
    parts: Sequence[tuple[str, Done]], folder: Path, out: Path, resolved: Resolved, options: Options
) -> tuple[list[SplitSummary], int]:
    """Write every split of `parts` (files of `folder`) and `rejected.jsonl` into `out`.

    Returns the splits and the number of lines in `rejected.jsonl`.
    """
    counts, refused = dict.fromkeys(SPLITS, 0), 0
    with ExitStack() as stack:
        sinks = {
            fate: _opened(stack, out / _file(name, options), options)
            for fate, name in SPLITS.items()
        }
        origins = {
            fate: _opened(stack, out / _file(f"{name}.provenance", options), options, Origin)
            for fate, name in SPLITS.items()
            if options.provenance
        }
        rejected = stack.enter_context((out / REJECTED).open("wb"))
        for key, done in parts:
            start = resolved.starts[key]
            index = index_of(folder, key)
            fates = resolved.fates[start : start + len(index)]
            _share_out(_bytes(folder / f"{key}.rows"), index["size"], fates, sinks)
            if origins:
                _share_out(_bytes(folder / f"{key}.origins"), index["origin"], fates, origins)
            lines = [_bytes(folder / f"{key}.rejected"), *_dropped(folder, key, done, index, fates)]
            rejected.writelines(lines)
            refused += sum(line.count(b"\n") for line in lines)
            for fate in SPLITS:
                counts[fate] += int((fates == fate).sum())
    splits = [
        _summary(out / _file(name, options), name, counts[fate]) for fate, name in SPLITS.items()
    ]
    return splits, refused


def _opened(
    stack: ExitStack, path: Path, options: Options, record: type[msgspec.Struct] | None = None
) -> Sink:
    sink: Sink
    if options.format == "parquet":
        kind = record or (Dialogue if options.conversations else Row)
        sink = Parquet(path, kind, _schema(kind))
    else:
        sink = Lines(path)
    stack.callback(sink.close)
    return sink


def _schema(record: type[msgspec.Struct]) -> Any:
    import pyarrow

    text = pyarrow.string()
    if record is Dialogue:
        said = pyarrow.struct([("role", text), ("content", text), ("context", text)])
        return pyarrow.schema([("messages", pyarrow.list_(said)), ("category", text)])
    kinds = {"turn": pyarrow.int64()}
    return pyarrow.schema([(name, kinds.get(name, text)) for name in record.__struct_fields__])


def _file(name: str, options: Options) -> str:
    return f"{name}.{options.format}"


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _share_out(lines: bytes, sizes: Index, fates: Fates, sinks: dict[int, Sink]) -> None:
    """Write each run of rows of one fate to its sink, in order."""
    view = memoryview(lines)
    ends = np.cumsum(sizes.astype(np.int64))
    borders = [*np.flatnonzero(np.diff(fates)).tolist(), len(fates) - 1] if len(fates) else []
    start = 0
    for last in borders:
        end = int(ends[last])
        if sink := sinks.get(int(fates[last])):
            sink.write(view[start:end])
        start = end


def _dropped(folder: Path, key: str, done: Done, index: Index, fates: Fates) -> Iterator[bytes]:
    """A rejected line for each row that was dropped for the sake of the whole."""
    numbers = np.flatnonzero(fates > VALIDATION)
    if not len(numbers):
        return
    origins = _bytes(folder / f"{key}.origins").splitlines()
    for number in numbers.tolist():
        origin = msgspec.json.decode(origins[number], type=Origin) if origins else None
        reason = DROPPED[int(fates[number])]
        line = Rejected(
            file=done.file,
            line=int(index["line"][number]),
            byte=int(index["offset"][number]),
            source=done.source,
            id=origin.id if origin else "",
            turn=origin.turn if origin else 0,
            reason=reason,
            detail=WHY[reason],
        )
        yield msgspec.json.encode(line) + b"\n"


WHY = {
    "duplicate": "the same row stands earlier in the input",
    "near-duplicate": "nearly the same row stands earlier in the input",
    "leakage": "its passage stands in the validation split too",
}


def _summary(path: Path, name: str, rows: int) -> SplitSummary:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return SplitSummary(
        name=name, rows=rows, bytes=path.stat().st_size, file=path.name, sha256=digest
    )
