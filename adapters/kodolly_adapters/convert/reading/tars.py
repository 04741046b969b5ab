"""Reads tar archives, packed or not, from front to back: of a packed one nothing else is possible at speed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from .packing import unpacked

MAGIC = slice(257, 262)  # where `ustar` stands in the first 512 bytes
MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
MAX_MEMBERS = 100_000
BLOCK = 1 << 20  # bytes unpacked at a time to go forward


class Entry(NamedTuple):
    """A file in a tar: its name, where its bytes are in the unpacked tar, and why it is not read ("": it is)."""

    name: str
    offset: int
    size: int
    skip_reason: str


class Tar:
    """A tar at `path`. It is a file that `tarfile` reads headers from, and it opens members one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._file: Any = None
        self._position = 0  # in the unpacked tar

    def entries(self) -> Iterator[Entry]:
        """All but folders and hidden files. Raises one of UNPACK_ERRORS where the tar is damaged."""
        with self:
            archive = tarfile.TarFile(fileobj=self)  # type: ignore[arg-type]
            number = 0
            while info := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                number += 1
                if number > MAX_MEMBERS:
                    raise tarfile.ReadError(f"it has more than {MAX_MEMBERS:,} members")
                parts = [part for part in info.name.split("/") if part != "."]
                if info.isdir() or any(part.startswith((".", "__MACOSX")) for part in parts):
                    continue
                yield Entry("/".join(parts), info.offset_data, info.size, _skip_reason(info))

    def member(self, entry: Entry) -> io.BufferedReader:
        """The bytes of a member; members are best opened in their order in the tar."""
        if self._file is None or entry.offset < self._position:
            self.open()
        self.seek(entry.offset)
        return io.BufferedReader(_Section(self, entry.size))

    def open(self) -> None:
        """Begin at the tar's first byte."""
        self.close()
        raw = self._stack.enter_context(self.path.open("rb"))
        self._file, self._position = unpacked(raw, self._stack), 0

    def close(self) -> None:
        """Close the file; `member` opens it again."""
        self._stack.close()
        self._file = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self) -> int:
        """The place in the unpacked tar."""
        return self._position

    def seek(self, position: int) -> int:
        """Go forward to `position`, or to the end if it is beyond that."""
        if isinstance(self._file, io.BufferedReader) and self._file.seekable():
            self._position = self._file.seek(position)
        while self._position < position and self._read(min(BLOCK, position - self._position)):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end. Raises ReadError for more than a header can have."""
        if size > MAX_HEADER:
            raise tarfile.ReadError(f"a member's header has {size:,} bytes")
        parts = []
        while size > 0 and (data := self._read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        data: bytes = (
            self._file.read1(size) if hasattr(self._file, "read1") else self._file.read(size)
        )
        self._position += len(data)
        return data


class _Section(io.RawIOBase):
    """The next `size` bytes of a tar."""

    def __init__(self, tar: Tar, size: int) -> None:
        self._tar, self._left = tar, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._tar._read(min(len(buffer), self._left))
        if self._left and not data:
            raise EOFError("the tar ends inside this member")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _skip_reason(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link in a tar, which is not followed"
    if info.issparse():
        return "is a sparse file in a tar, which cannot be read"
    return "" if info.isreg() else "is a device or pipe in a tar, not a file"
