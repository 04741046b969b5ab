"""Processes beside this one, which Ctrl-C is not for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started by the body never get SIGINT: Ctrl-C reaches a whole group, and is its parent's to handle.

    A child that sets this itself has imported its modules first, and an interrupt meanwhile shows as its
    traceback. The mask is this thread's alone: this process itself loses none.
    """
    resource_tracker.ensure_running()  # or the first process would start it, and it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
