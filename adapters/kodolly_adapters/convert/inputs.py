"""From the arguments a person gave to named byte streams: files, folders, zips, gz, zst, standard input.

Containers are known by their first bytes, never by their names.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from backports import zstd

from .errors import InputError

STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and empty
BROKEN = (EOFError, zlib.error, zipfile.BadZipFile, zstd.ZstdError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class Member:
    """One stream of bytes to convert.

    `name` is shown to people and written into provenance: relative to the folder it was found in, and
    `archive.zip!member` inside a zip. `size` is in uncompressed bytes, None where unknown before reading.
    """

    name: str
    open: Callable[[ExitStack], BinaryIO]  # what it opens is closed with the stack
    size: int | None = None
    asked_for: bool = True  # named by the person, not merely found in a folder


def members(arguments: Sequence[str]) -> Iterator[Member]:
    """Every stream behind `arguments`, folders and zips in the order of their names.

    Raises InputError for an argument that is not there or cannot be read.
    """
    for argument in arguments:
        if argument == STDIN:
            yield Member("standard input", _standard_input)
            continue
        path = Path(argument)
        if path.is_dir():
            for file in _files(path):
                yield from _of_file(file, file.relative_to(path).as_posix(), asked_for=False)
        elif path.exists():
            yield from _of_file(path, path.name, asked_for=True)
        else:
            raise InputError(argument, "there is no such file or folder")


@contextmanager
def reading(member: Member) -> Iterator[Callable[[int], bytes]]:
    """A function `read(size)` over the member's bytes, b"" at the end.

    Raises InputError naming the byte offset reached when the stream is cut short or damaged.
    """
    offset = 0
    closing = ExitStack()
    try:
        stream = member.open(closing)
    except (*BROKEN, OSError) as error:
        closing.close()
        raise InputError(member.name, f"cannot be opened: {error}") from error

    def read(size: int) -> bytes:
        nonlocal offset
        try:
            data = stream.read(size)
        except (*BROKEN, OSError, RuntimeError) as error:  # RuntimeError: an encrypted zip
            raise InputError(member.name, f"cannot be read on: {error}", offset) from error
        offset += len(data)
        return data

    with closing:
        yield read


def _files(folder: Path) -> list[Path]:
    """Regular files below `folder` in a fixed order; hidden ones are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _of_file(path: Path, name: str, *, asked_for: bool) -> Iterator[Member]:
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise InputError(name, f"cannot be opened: {error.strerror or error}") from error
    if magic in ZIP_MAGICS:
        yield from _of_zip(path, name, asked_for=asked_for)
    elif magic.startswith(GZIP_MAGIC) or magic == ZSTD_MAGIC:
        yield Member(
            name, lambda stack: _unpacked(stack, _plain(stack, path), magic), None, asked_for
        )
    else:
        yield Member(name, lambda stack: _plain(stack, path), path.stat().st_size, asked_for)


def _of_zip(path: Path, name: str, *, asked_for: bool) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
    except BROKEN as error:
        raise InputError(name, f"is a broken zip: {error}") from error
    for info in infos:
        parts = info.filename.split("/")
        if info.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        yield Member(
            f"{name}!{info.filename}",
            partial(_zip_member, path=path, member=info.filename),
            info.file_size,
            asked_for,
        )


def _plain(stack: ExitStack, path: Path) -> BinaryIO:
    return stack.enter_context(path.open("rb"))


def _zip_member(stack: ExitStack, path: Path, member: str) -> BinaryIO:
    archive = stack.enter_context(zipfile.ZipFile(path))
    stream = stack.enter_context(archive.open(member))
    head = stack.enter_context(io.BufferedReader(stream))  # type: ignore[type-var]
    return _unpacked(stack, head, head.peek(4)[:4])


def _standard_input(stack: ExitStack) -> BinaryIO:
    stream = sys.stdin.buffer
    magic = stream.peek(4)[:4] if isinstance(stream, io.BufferedReader) else b""
    if magic in ZIP_MAGICS:
        raise InputError("standard input", "is a zip, which needs a file: give its path instead")
    return _unpacked(stack, stream, magic)


def _unpacked(stack: ExitStack, stream: BinaryIO, magic: bytes) -> BinaryIO:
    """`stream` itself, or what it holds when `magic` says gz or zst (several frames included)."""
    if magic.startswith(GZIP_MAGIC):
        return stack.enter_context(gzip.open(stream))  # type: ignore[return-value]
    if magic == ZSTD_MAGIC:
        return stack.enter_context(zstd.ZstdFile(stream))  # type: ignore[return-value]
    return stream
