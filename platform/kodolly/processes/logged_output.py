"""A child process's own lines as records of our log, such as an engine's where the log is JSON."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from typing import IO

PIPE_SIZE = 2**20  # bytes that a process may write while nobody reads
MAX_LINE = 2**16  # bytes; a longer line is broken


def logged_output(log: logging.Logger) -> IO[bytes]:
    """A file to be a child's output, and to be closed here once it has started.

    A thread logs each line until every writer is gone: it waits for no event loop, and so neither does
    the child. Blank lines are left out.
    """
    read, write = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it, and bounds it
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    name = f"lines of {log.name}"
    threading.Thread(target=_copy, args=(read, log), name=name, daemon=True).start()
    return os.fdopen(write, "wb")


def _copy(read: int, log: logging.Logger) -> None:
    with os.fdopen(read, "rb") as lines:
        while line := lines.readline(MAX_LINE):
            if text := line.decode("utf-8", "backslashreplace").rstrip():
                log.info("%s", text)
