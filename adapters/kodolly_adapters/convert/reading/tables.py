"""Reads Parquet and Arrow files as the JSON lines that their rows would be, batch by batch.

pyarrow is imported only where such a file comes, since that takes long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

ROWS = 256  # decoded at a time,
BATCH = 4 << 20  # or as many as have about this many bytes
MAX_SCHEMA = 64 << 20  # bytes of an Arrow stream's first message
BROKEN_ROW = b"\xff: a row with damaged text\n"  # no JSON, so that it becomes a rejection
encode = msgspec.json.Encoder(enc_hook=str).encode


def table_kind(head: bytes) -> str:
    """Parquet, Arrow file or Arrow stream, by the first 8 bytes; "" for anything else."""
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith(b"ARROW1"):
        return "Arrow file"
    size = int.from_bytes(head[4:8], "little") if head.startswith(b"\xff\xff\xff\xff") else 0
    return "Arrow stream" if 0 < size <= MAX_SCHEMA and size % 8 == 0 else ""


class TableReader:
    """The rows of a table as JSON lines; line numbers are row numbers. `file` can be sought in."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        batches = _parquet(file) if kind == "Parquet" else _arrow(file, kind)
        self._lines = (_lines(batch) for batch in batches)
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises one of UNPACK_ERRORS where the file is damaged."""
        while not self._ahead:
            lines = next(self._lines, None)
            if lines is None:
                return b""
            self._ahead = lines
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def _parquet(file: BinaryIO) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False) as table:
        about = table.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        largest = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
        rows = max(1, min(ROWS, BATCH // max(largest, 1)))
        yield from table.iter_batches(rows, use_threads=False)


def _arrow(file: BinaryIO, kind: str) -> Iterator[Any]:
    from pyarrow import ipc

    with ipc.open_file(file) if kind == "Arrow file" else ipc.open_stream(file) as reader:
        is_file = kind == "Arrow file"
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            rows = max(1, min(ROWS, BATCH * batch.num_rows // max(batch.nbytes, 1)))
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _lines(batch: Any) -> bytes:
    """The batch's rows as JSON lines, after a check that nothing in it points outside of it."""
    try:
        batch.validate(full=True)
        rows = [encode(row) for row in batch.to_pylist()]
    except ValueError:
        if batch.num_rows == 1:
            return BROKEN_ROW
        return b"".join(_lines(batch.slice(number, 1)) for number in range(batch.num_rows))
    return b"\n".join([*rows, b""])
