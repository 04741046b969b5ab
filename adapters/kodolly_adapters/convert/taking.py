"""Bytes of a file by place: from a stream that is read once, or from a file that any process may read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import xxhash

from kodolly_adapters.errors import InputError

from .reading.inputs import Member, reading
from .reading.records import Shard
from .split import Take


@contextmanager
def taking(member: Member) -> Iterator[Take]:
    """A function `take(offset, size)` over the member's bytes; offsets must not go back.

    It gives fewer bytes only at the end. Raises InputError as `reading` does.
    """
    if member.path is None:
        with reading(member) as read:
            yield Held(read).take
        return
    try:
        stream = member.path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(member.name, f"cannot be opened: {error}") from error
    with stream:
        yield lambda offset, size: _at(stream.fileno(), offset, size, member.name)


def filled(shard: Shard) -> Shard:
    """The shard with its bytes in it. Raises InputError where they are no longer what they were."""
    if not shard.path:
        return shard
    try:
        with Path(shard.path).open("rb", buffering=0) as stream:
            data = _at(stream.fileno(), shard.offset, shard.size, shard.file)
    except OSError as error:
        raise InputError(shard.file, f"cannot be opened: {error}", shard.offset) from error
    if xxhash.xxh3_128_hexdigest(data) != shard.digest:
        raise InputError(shard.file, "has changed while it was being converted", shard.offset)
    return msgspec.structs.replace(shard, data=data, path="", size=0)


class Held:
    """A stream of which the bytes given last are held, so that they can be asked for again."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._start, self._data = 0, b""

    def take(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end; `offset` is inside what was given last."""
        parts, self._data = [self._data[offset - self._start :]], b""
        missing = size - len(parts[0])
        while missing > 0 and (more := self._read(missing)):
            parts.append(more)
            missing -= len(more)
        self._start, self._data = offset, b"".join(parts)
        return self._data[:size]  # more is held where more was asked for before


class Measured:
    """A `take` that measures and hashes all that passes, each byte once, by a second thread.

    Offsets must leave nothing out. `sha256` and `size` are the file's once its end was taken.
    """

    def __init__(self, take: Take, told: Callable[[int], None]) -> None:
        self.size, self.sha256 = 0, ""
        self._take, self._told = take, told
        self._hash = hashlib.sha256()
        self._beside = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._beside.shutdown()
        self.sha256 = self._hash.hexdigest()

    def take(self, offset: int, size: int) -> bytes:
        data = self._take(offset, size)
        new = memoryview(data)[self.size - offset :]
        self.size += len(new)
        self._told(len(new))
        if self._hashing is not None:
            self._hashing.result()  # never more than one piece behind
        self._hashing = self._beside.submit(self._hash.update, new)
        return data


def _at(file: int, offset: int, size: int, name: str) -> bytes:
    """`size` bytes of an open file, fewer at its end."""
    parts: list[bytes] = []
    missing = size
    try:
        while missing and (data := os.pread(file, missing, offset + size - missing)):
            parts.append(data)
            missing -= len(data)
    except OSError as error:
        raise InputError(name, f"cannot be read on: {error}", offset + size - missing) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)
