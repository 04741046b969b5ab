"""A process's log: private, and a new file at every so many bytes.

The process writes into a pipe, and only the supervisor writes files. So any number of processes may share
a log (a worker and its engine, an API's processes), and none of them fails when the disk is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from kodolly.logs import escape_controls

log = logging.getLogger(__name__)

OLD_FILES = 3  # NAME.log.1 is the newest of them
PIPE_SIZE = 2**20  # bytes that a process may write while the supervisor is busy
MAX_LINE = 2**16  # bytes; a longer line is broken
END_TIMEOUT = 2.0  # seconds for the last lines once the process has ended


class LogFile:
    """The log of one supervised process. The log of its last run becomes NAME.log.1."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._handler = _PrivateHandler(
            path, maxBytes=max_bytes, backupCount=OLD_FILES, encoding="utf-8", delay=True
        )
        if path.is_file() and path.stat().st_size:
            self._handler.doRollover()

    def open_pipe(self) -> tuple[int, IO[bytes]]:
        """Both ends of a pipe: the second is a process's output, to be closed once it has started."""
        read, write = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # only Linux has it, and bounds it
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return read, os.fdopen(write, "wb")

    async def copy(self, read: int) -> None:
        """Copies lines from a pipe's end until all its writers are gone, then closes it."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", 0)
        )
        rest = b""
        try:
            while chunk := await reader.read(MAX_LINE):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._write(line)
                if len(rest) > MAX_LINE:
                    self._write(rest)
                    rest = b""
        finally:
            if rest:
                self._write(rest)
            transport.close()

    def _write(self, line: bytes) -> None:
        text = escape_controls(line.decode("utf-8", "backslashreplace"))
        self._handler.handle(logging.makeLogRecord({"msg": text}))

    def last_line(self) -> str:
        """The last line that says something; "nothing" without one."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "nothing"
        return next((line for line in reversed(lines) if line.strip()), "nothing")

    def close(self) -> None:
        """Closes the file."""
        self._handler.close()


class _PrivateHandler(RotatingFileHandler):
    """Files that only their owner reads. A failure, such as a full disk, is logged once."""

    _failed = False

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)  # one of an older version may be there
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            log.exception("cannot write %s: its lines are lost until that works", self.baseFilename)


def private_directory(path: Path) -> Path:
    """Makes a folder that only its owner can enter, or makes it so; returns it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Replaces a file's text in one step; only its owner can read it."""
    fresh = path.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    fresh.replace(path)
