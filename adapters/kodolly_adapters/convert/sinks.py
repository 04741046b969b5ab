"""Final files: JSON lines as they are, or the same rows as Parquet columns."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import msgspec

from .options import Options
from .schema import Row
from .shard import Dialogue


class Sink(Protocol):
    """Takes whole JSON lines and writes them in its own format; `sha256` is the closed file's."""

    sha256: str

    def write(self, lines: bytes) -> None: ...

    def close(self) -> None: ...


class Lines:
    """JSON lines as they are, hashed by a second thread while they are written."""

    def __init__(self, path: Path) -> None:
        self.sha256 = ""
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._beside = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None

    def write(self, lines: bytes) -> None:
        if self._hashing is not None:
            self._hashing.result()  # never more than one piece behind
        self._hashing = self._beside.submit(self._hash.update, lines)
        self._file.write(lines)

    def close(self) -> None:
        self._beside.shutdown()
        self._file.close()
        self.sha256 = self._hash.hexdigest()


class Parquet:
    """Columns, compressed; a row group for every GROUP bytes of JSON."""

    GROUP = 32 << 20

    def __init__(self, path: Path, record: type[msgspec.Struct]) -> None:
        from pyarrow import parquet

        self.sha256 = ""
        self._path = path
        self._schema = _schema(record)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._waiting = bytearray()

    def write(self, lines: bytes) -> None:
        self._waiting += lines
        if len(self._waiting) >= self.GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        with self._path.open("rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    def _flush(self) -> None:
        import pyarrow

        rows = [msgspec.to_builtins(row) for row in self._decode(bytes(self._waiting))]
        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(rows, self._schema))
        self._waiting = bytearray()


def opened(path: Path, options: Options, record: type[msgspec.Struct] | None = None) -> Sink:
    """The sink of the chosen format at `path`; `record` is what a line holds, a row unless told."""
    if options.format == "parquet":
        return Parquet(path, record or (Dialogue if options.conversations else Row))
    return Lines(path)


def _schema(record: type[msgspec.Struct]) -> Any:
    import pyarrow

    text = pyarrow.string()
    if record is Dialogue:
        said = pyarrow.struct([("role", text), ("content", text), ("context", text)])
        return pyarrow.schema([("messages", pyarrow.list_(said)), ("category", text)])
    kinds = {"turn": pyarrow.int64()}
    return pyarrow.schema([(name, kinds.get(name, text)) for name in record.__struct_fields__])
