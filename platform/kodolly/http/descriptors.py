"""File descriptors: as many as the machine allows, and whether an error means that there are none left.

Each stream takes two, and Docker may start us with a soft limit of 1,024. Running out of them is our own fault:
it says nothing of the worker, engine or controller that could not be reached.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import time

log = logging.getLogger(__name__)

OUT = (errno.EMFILE, errno.ENFILE)  # too many open files: in this process, on this machine
# Descriptors kept for connections to engines, logs and files: a quarter of the limit, at most so many.
RESERVE = 64
LINE_INTERVAL = 10.0  # seconds between two lines about refused connections


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, for this process and its children; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # macOS names a hard limit that it does not give
        log.warning("the limit of open files stays at %d: %s", soft, error)
        return soft
    return hard


def limit() -> int:
    """How many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Reserve:
    """Turns clients away while a few descriptors are left, so that those who are served can go on."""

    def __init__(self) -> None:
        self._refused = 0
        self._last_line = -LINE_INTERVAL

    def is_reached(self, descriptor: int) -> bool:
        """Whether a new connection is one too many; the kernel gives each the lowest free number."""
        most = limit()
        if descriptor < most - min(RESERVE, most // 4):
            return False
        self._refused += 1
        if time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            log.error(
                "too many open files: this process may have %d, and has refused %d connections for "
                "want of more. Raise the hard limit (ulimit -Hn, or ulimits.nofile in compose)",
                most,
                self._refused,
            )
        return True


def are_exhausted(error: BaseException) -> bool:
    """Whether `error`, a failure to connect, happened for want of a descriptor."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OUT:
            return True
        cause = cause.__cause__ or cause.__context__
    # A resolver, or several addresses that failed at once, do not tell the number.
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as lack:
        return lack.errno in OUT
    return False
