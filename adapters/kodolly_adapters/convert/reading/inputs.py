"""From the arguments a person gave to named byte streams: files, folders, zips, gz, zst, standard input.

Containers are known by their first bytes, never by their names.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from backports import zstd

from kodolly_adapters.errors import InputError

from ..output.summary import SUMMARY_FILE

STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and empty
BROKEN = (  # what the unpackers raise on damage, on encryption (RuntimeError) and on methods they lack
    EOFError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError,
    zlib.error, lzma.LZMAError, struct.error, zipfile.BadZipFile, zstd.ZstdError,
)  # fmt: skip
OURS = "is a conversion's output"


@dataclass(frozen=True, slots=True)
class Member:
    """One stream of bytes to convert.

    `name` is shown to people and written into provenance, and no two have the same: relative to the folder
    it was found in (after that folder's own name where there are several arguments), and
    `archive.zip!member` inside a zip. `size` is in uncompressed bytes, None where unknown before reading.
    """

    name: str
    open: Callable[[ExitStack], BinaryIO]  # what it opens is closed with the stack
    size: int | None = None
    asked_for: bool = True  # named by the person, not merely found in a folder
    skipped: str = ""  # why it is not to be read, if so
    path: Path | None = None  # of a plain file, which can be read at any place and more than once


def members(arguments: Sequence[str]) -> Iterator[Member]:
    """Every stream behind `arguments`, folders and zips in the order of their names.

    Nothing is opened that can be read only once. Raises InputError for an argument that is not there or
    cannot be read.
    """
    taken: set[str] = set()
    for member in _found(arguments):
        name, number = member.name, 1
        while name in taken:
            number += 1
            name = f"{member.name} ({number})"
        taken.add(name)
        yield member if number == 1 else replace(member, name=name)


def _found(arguments: Sequence[str]) -> Iterator[Member]:
    for argument in arguments:
        if argument == STDIN:
            yield Member("standard input", _standard_input)
            continue
        path = Path(argument)
        if path.is_dir():
            own = Path(os.path.abspath(path)).name if len(arguments) > 1 else ""
            for file in _files(path):
                name = (Path(own) / file.relative_to(path)).as_posix()
                if file.is_dir():
                    yield Member(name, _nothing, 0, asked_for=False, skipped=OURS)
                else:
                    yield from _of_file(file, name, asked_for=False)
        elif path.exists() and not path.is_file():  # a pipe, such as the shell's <(command)
            yield Member(path.name, partial(_once, path=path))
        elif path.exists():
            yield from _of_file(path, path.name, asked_for=True)
        else:
            raise InputError(argument, "there is no such file or folder")


@contextmanager
def reading(member: Member) -> Iterator[Callable[[int], bytes]]:
    """A function `read(size)` over the member's bytes: at most `size` of them, b"" at the end.

    Raises InputError naming the byte offset reached when the stream is cut short or damaged.
    """
    offset = 0
    closing = ExitStack()
    try:
        stream = member.open(closing)
    except BROKEN as error:
        closing.close()
        raise InputError(member.name, f"cannot be opened: {error}") from error

    def read(size: int) -> bytes:
        nonlocal offset
        try:
            # As it comes, so that all there is before the damage is had and counted.
            data = stream.read1(size) if hasattr(stream, "read1") else stream.read(size)
        except BROKEN as error:
            raise InputError(member.name, f"cannot be read on: {error}", offset) from error
        offset += len(data)
        return data

    with closing:
        yield read


def _files(folder: Path) -> list[Path]:
    """Regular files below `folder` in a fixed order, hidden ones left out.

    A folder among them is one that holds what a conversion wrote, or is still writing.
    """

    def fail(error: OSError) -> None:
        raise InputError(str(error.filename), f"cannot be listed: {error.strerror}")

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=fail):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        ours = [name for name in folders if _is_ours(here / name)]
        folders[:] = [name for name in folders if name not in ours]
        visible = [here / name for name in files if not name.startswith(".")]
        found += [here / name for name in ours] + [path for path in visible if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _is_ours(folder: Path) -> bool:
    """Whether a conversion wrote into `folder`, or has begun to."""
    finished = (folder / SUMMARY_FILE).is_file() and (folder / "dataset_card.md").is_file()
    return finished or (folder / ".work" / "lock").is_file()


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
        size = path.stat().st_size
        yield Member(name, lambda stack: _plain(stack, path), size, asked_for, path=path)


def _of_zip(path: Path, name: str, *, asked_for: bool) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
    except BROKEN as error:  # its list of members stands at its end
        raise InputError(name, f"is a broken zip: {error}", path.stat().st_size) from error
    for info in infos:
        parts = info.filename.split("/")
        if info.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        yield Member(
            f"{name}!{info.filename}",
            partial(_zip_member, path=path, member=info),
            info.file_size,
            asked_for,
        )


def _plain(stack: ExitStack, path: Path) -> BinaryIO:
    return stack.enter_context(path.open("rb"))


def _nothing(stack: ExitStack) -> BinaryIO:
    return stack.enter_context(io.BytesIO())


def _once(stack: ExitStack, path: Path) -> BinaryIO:
    return _peeked(stack, _plain(stack, path), path.name)


def _zip_member(stack: ExitStack, path: Path, member: zipfile.ZipInfo) -> BinaryIO:
    archive = stack.enter_context(zipfile.ZipFile(path))
    stream = stack.enter_context(archive.open(member))
    head = stack.enter_context(io.BufferedReader(stream))  # type: ignore[type-var]
    return _unpacked(stack, head, head.peek(4)[:4])


def _standard_input(stack: ExitStack) -> BinaryIO:
    return _peeked(stack, sys.stdin.buffer, "standard input")


def _peeked(stack: ExitStack, stream: BinaryIO, name: str) -> BinaryIO:
    """What a stream holds that cannot be read twice."""
    magic = stream.peek(4)[:4] if isinstance(stream, io.BufferedReader) else b""
    if magic in ZIP_MAGICS:
        raise InputError(name, "is a zip, which needs a file: give its path instead")
    return _unpacked(stack, stream, magic)


def _unpacked(stack: ExitStack, stream: BinaryIO, magic: bytes) -> BinaryIO:
    """`stream` itself, or what it holds when `magic` says gz or zst (several frames included)."""
    if magic.startswith(GZIP_MAGIC):
        return stack.enter_context(gzip.open(stream))  # type: ignore[return-value]
    if magic == ZSTD_MAGIC:
        return stack.enter_context(zstd.ZstdFile(stream))  # type: ignore[return-value]
    return stream
