"""From the arguments a person gave to named byte streams: files, folders, archives, standard input.

Archives, compressed files and tables are recognised by their first bytes, never by their names.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from kodolly_adapters.errors import InputError

from ..schema import CARD_FILE, SUMMARY_FILE, WORK
from .packing import HEAD, UNPACK_ERRORS, packing_of, unpacked
from .tables import TableReader, table_kind
from .tars import MAGIC, Entry, Tar
from .text_encoding import Recoder

STDIN = "-"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and empty
TAR_HEAD = 512  # bytes


@dataclass(frozen=True, slots=True)
class Member:
    """One stream of bytes to convert.

    `name` is unique, shown to people and written into provenance: relative to the folder given as SOURCE
    (with that folder's own name in front where there are several arguments), and `archive.zip!member`
    inside a zip or tar. `size` is in uncompressed bytes, None where unknown before reading.
    """

    name: str
    path: Path | None = None  # None: standard input
    zip_member: zipfile.ZipInfo | None = None  # in the zip at `path`
    size: int | None = None
    is_argument: bool = True  # a SOURCE itself; not a file in a folder or archive
    skip_reason: str = ""  # "": it is to be read
    tar: Tar | None = None  # shared by all members of the tar
    entry: Entry | None = None  # in the tar
    is_last: bool = True  # the tar's file can be closed after it


class Stream:
    """The bytes of one member, read once: `peek` returns the next ones, `skip` goes past them.

    `size` and `sha256` are those of all bytes skipped so far; each `skip` calls `report` with its size. After
    `recode`, or with `original` (the file whose table `file` gives as JSON lines), they are the original's, complete
    at the end, and `read_as` says what the original is. Raises InputError, which names the byte offset reached, when
    the stream is truncated or damaged.
    """

    def __init__(
        self,
        name: str,
        file: Any,
        report: Callable[[int], None],
        original: Any = None,
        read_as: str = "",
    ) -> None:
        self.size = 0
        self.read_as = read_as
        self._name, self._report = name, report
        # read1 returns what there is, so that everything before a damaged place is delivered and counted.
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self.sha256 = hashlib.sha256()
        self._ahead, self._offset = b"", 0
        self._recoder: Recoder | None = None
        self._counts_skips = original is None
        if original:
            self.sha256 = hashlib.file_digest(original, "sha256")
            self.size = original.tell()
            original.seek(0)

    def recode(self, codec: str) -> None:
        """From now on the text's bytes in UTF-8, whatever its `codec`; before the first `skip`."""
        self.read_as = codec.upper()
        self._counts_skips, self._recoder = False, Recoder(codec)
        self._ahead = self._recoded(self._ahead) if self._ahead else b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        parts, missing = [self._ahead], size - len(self._ahead)
        while missing > 0 and (more := self._more(missing)):
            parts.append(more)
            missing -= len(more)
        self._ahead = b"".join(parts)
        return self._ahead[:size]

    def skip(self, size: int) -> None:
        """Go past `size` bytes that `peek` has returned."""
        if self._counts_skips:
            self._count(memoryview(self._ahead)[:size])
        self._ahead = self._ahead[size:]

    def _count(self, data: bytes | memoryview) -> None:
        self.sha256.update(data)
        self.size += len(data)
        self._report(len(data))

    def _recoded(self, data: bytes) -> bytes:
        assert self._recoder
        self._count(data)
        return self._recoder.utf8(data)

    def _more(self, size: int) -> bytes:
        try:
            data = self._read(size)
        except UNPACK_ERRORS as error:
            raise InputError(self._name, f"cannot be read on: {error}", self._offset) from error
        self._offset += len(data)
        if self._recoder is None:
            return data
        # Half a character gives nothing yet, which would look like the end.
        return self._recoded(data) or (self._more(size) if data else b"")


@contextmanager
def open_member(
    member: Member, report: Callable[[int], None] = lambda size: None
) -> Iterator[Stream]:
    """The member's stream. Raises InputError where it cannot be opened."""
    with ExitStack() as stack:
        try:
            if tar := member.tar:
                stack.push(lambda *error: tar.close() if member.is_last or error[0] else None)
            file = _open(member, stack)
            stream = Stream(member.name, file, report)
            if kind := table_kind(head := stream.peek(8)):
                table = _with_seek(file, head, stack)
                stream = Stream(member.name, TableReader(table, kind), report, table, kind)
        except UNPACK_ERRORS as error:
            raise InputError(member.name, f"cannot be opened: {error}") from error
        yield stream


def members(arguments: Sequence[str]) -> Iterator[Member]:
    """Every stream that `arguments` name; those of a folder or zip in the order of their names.

    Pipes, which can be read only once, are not opened yet. Raises InputError for an argument that does not exist
    or cannot be read.
    """
    names: set[str] = set()
    for member in _members(arguments):
        name, number = member.name, 1
        while name in names:
            number += 1
            name = f"{member.name} ({number})"
        names.add(name)
        yield member if number == 1 else replace(member, name=name)


def _members(arguments: Sequence[str]) -> Iterator[Member]:
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            yield Member("standard input")
        elif path.is_dir():
            folder = Path(os.path.abspath(path)).name if len(arguments) > 1 else ""
            for file in _files(path):
                name = (Path(folder) / file.relative_to(path)).as_posix()
                if file.is_dir():
                    reason = "is a conversion's output"
                    yield Member(name, file, size=0, is_argument=False, skip_reason=reason)
                else:
                    yield from _of_file(file, name, is_argument=False)
        elif path.is_file():
            yield from _of_file(path, path.name, is_argument=True)
        elif path.exists():  # a pipe, such as the shell's <(command)
            yield Member(path.name, path)
        else:
            raise InputError(argument, "there is no such file or folder")


def _files(folder: Path) -> list[Path]:
    """Regular files below `folder` in a fixed order, without hidden ones.

    A folder that holds a conversion's output is in the list itself, in place of its files.
    """

    def fail(error: OSError) -> None:
        raise InputError(str(error.filename), f"cannot be listed: {error.strerror}")

    paths: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=fail):
        here = Path(place)
        visible = [name for name in folders if not name.startswith(".")]
        outputs = [name for name in visible if _is_output(here / name)]
        folders[:] = [name for name in visible if name not in outputs]
        paths += [here / name for name in outputs]
        paths += [here / n for n in files if not n.startswith(".") and (here / n).is_file()]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _is_output(folder: Path) -> bool:
    """Is `folder` the output of a conversion, finished or not?"""
    finished = (folder / SUMMARY_FILE).is_file() and (folder / CARD_FILE).is_file()
    return finished or (folder / WORK / "lock").is_file()


def _of_file(path: Path, name: str, *, is_argument: bool) -> Iterator[Member]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            magic = file.peek(HEAD)[:HEAD]
        except OSError as error:
            raise InputError(name, f"cannot be opened: {error.strerror or error}") from error
        head = b""
        with suppress(*UNPACK_ERRORS):  # a damaged file is named when it is read
            head = unpacked(file, stack).read(TAR_HEAD)
    if magic[:4] in ZIP_MAGICS:
        yield from _of_zip(path, name)
    elif head[MAGIC] == b"ustar":
        yield from _of_tar(path, name)
    else:
        size = None if packing_of(magic) or table_kind(magic) else path.stat().st_size
        yield Member(name, path, size=size, is_argument=is_argument)


def _of_zip(path: Path, name: str) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
    except UNPACK_ERRORS as error:  # the list of members is at the end of the file
        raise InputError(name, f"is a broken zip: {error}", path.stat().st_size) from error
    for info in infos:
        parts = info.filename.split("/")
        if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield Member(f"{name}!{info.filename}", path, info, info.file_size, is_argument=False)


def _of_tar(path: Path, name: str) -> Iterator[Member]:
    tar = Tar(path)
    try:
        entries = list(tar.entries())
    except UNPACK_ERRORS as error:
        raise InputError(name, f"is a broken tar: {error}", tar.tell()) from error
    last = max((entry for entry in entries if not entry.skip_reason), default=None)
    for entry in entries:
        yield Member(
            f"{name}!{entry.name}", path, None, entry.size, False, entry.skip_reason,
            tar, entry, entry is last,
        )  # fmt: skip


def _open(member: Member, stack: ExitStack) -> Any:
    """The member's bytes, unpacked."""
    stream: Any
    if member.path is None:
        stream = sys.stdin.buffer
    elif member.zip_member:
        archive = stack.enter_context(zipfile.ZipFile(member.path))
        raw: Any = stack.enter_context(archive.open(member.zip_member))
        stream = stack.enter_context(io.BufferedReader(raw))
    elif member.tar and member.entry:
        stream = member.tar.member(member.entry)
    else:
        stream = stack.enter_context(member.path.open("rb"))
    return unpacked(stream, stack) if isinstance(stream, io.BufferedReader) else stream


def _with_seek(file: Any, head: bytes, stack: ExitStack) -> BinaryIO:
    """A file, of which `head` was read, from its beginning: a copy on disk if it cannot go back there."""
    if isinstance(getattr(file, "raw", None), io.FileIO) and file.seekable():
        file.seek(0)
        return file  # type: ignore[no-any-return]
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    copy.write(head)
    shutil.copyfileobj(file, copy, 1 << 20)
    copy.seek(0)
    return copy
