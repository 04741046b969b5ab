"""Unpacks gz, bz2, xz and zst, which are recognised by their first bytes and never by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from contextlib import ExitStack
from typing import Any

from backports import zstd

HEAD = 10  # bytes that tell a packing
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")  # with a block, and empty
XZ_MEMORY = 128 << 20  # bytes that unpacking an xz file may take: twice what `xz -9` needs
UNPACK_ERRORS = (  # for damaged files, encrypted ones (RuntimeError) and unsupported methods
    EOFError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError,
    zlib.error, lzma.LZMAError, struct.error, zipfile.BadZipFile, zstd.ZstdError, tarfile.TarError,
)  # fmt: skip


def packing_of(head: bytes) -> str:
    """How a file that begins with `head` is packed: gz, bz2, xz, zst, or "" for not at all."""
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zst"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return "bz2" if BZIP2.match(head) else ""


def unpacked(file: io.BufferedReader, stack: ExitStack) -> Any:
    """The file's bytes, unpacked where it is packed, also from several frames in a row."""
    packing = packing_of(file.peek(HEAD))
    if packing == "gz":
        return stack.enter_context(gzip.GzipFile(fileobj=file))
    if packing == "bz2":
        return stack.enter_context(bz2.BZ2File(file))
    if packing == "zst":
        return stack.enter_context(zstd.ZstdFile(file))
    return stack.enter_context(io.BufferedReader(XzReader(file))) if packing == "xz" else file


class XzReader(io.RawIOBase):
    """Unpacks xz like lzma.LZMAFile, but refuses a file that asks for more memory than XZ_MEMORY."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._start()

    def _start(self) -> None:
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            packed = b""
            if self._decoder.eof:  # another stream may follow, after zeros that fill up
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed:
                    packed = self._file.read(1 << 16)
                    if not packed:
                        return 0
                    packed = packed.lstrip(b"\0")
                self._start()
            elif self._decoder.needs_input:
                packed = self._file.read(1 << 16)
                if not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker")
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)
