"""The watch stream: the table first, then its changes, each serialised once for all followers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from kodolly.controller.registry import Registry

# Seconds without a change after which the watch stream sends an empty line. After a few such times
# without any line, the API takes this controller for dead.
KEEPALIVE = 0.5
# Changes within this time (seconds) are sent in one line.
COALESCE = 0.01
# Least time (seconds) between two lines that bring nothing but loads: a thousand busy workers
# change theirs a thousand times a second.
LOAD_INTERVAL = 0.25
# Lines that may wait for a follower which reads slowly. It gets the whole table instead of more.
MAX_BACKLOG = 64


@dataclass(eq=False)
class Follower:
    """One open watch stream."""

    backlog: deque[bytes] = field(default_factory=deque)
    needs_table: bool = True  # it has missed changes, or has nothing yet
    table_version: int = -1  # version of the last whole table it was given
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, line: bytes, version: int) -> None:
        """Takes a change to be sent, unless the whole table has brought it already."""
        if version <= self.table_version:
            return
        if len(self.backlog) >= MAX_BACKLOG:
            self.backlog.clear()
            self.needs_table = True
        if not self.needs_table:
            self.backlog.append(line)
        self.wake.set()


class Feed:
    """Sends a registry's table to all followers."""

    def __init__(
        self,
        registry: Registry,
        stopping: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stopping`: once set, every watch stream ends."""
        self._registry = registry
        self._stopping = stopping
        self._clock = clock
        self._followers: set[Follower] = set()
        self._last_line = -LOAD_INTERVAL  # time of the last one
        self._table: tuple[int, bytes] = (-1, b"")  # version and line of the last whole table

    @property
    def followers(self) -> int:
        """Watch streams that are open."""
        return len(self._followers)

    async def run(self) -> None:
        """Sends changes as they come, until cancelled."""
        while True:
            await self._registry.wait_for_change()
            await self._coalesce()
            change = self._registry.take_change()
            self._last_line = self._clock()
            if self._followers:
                line = change.model_dump_json(exclude_defaults=True).encode() + b"\n"
                for follower in self._followers:
                    follower.add(line, change.version)

    async def end_at_stop(self) -> None:
        """Ends all watch streams when the controller stops."""
        await self._stopping.wait()
        for follower in self._followers:
            follower.wake.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """One watch stream, for as long as the controller runs."""
        follower = Follower()
        self._followers.add(follower)
        try:
            while not self._stopping.is_set():
                follower.wake.clear()
                if follower.needs_table:
                    follower.needs_table = False
                    version, line = self._whole_table()
                    follower.table_version = version
                    yield line
                elif follower.backlog:
                    lines = b"".join(follower.backlog)
                    follower.backlog.clear()
                    yield lines
                else:
                    yield b"\n"
                if not follower.backlog and not follower.needs_table:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(KEEPALIVE):
                            await follower.wake.wait()
        finally:
            self._followers.discard(follower)

    async def _coalesce(self) -> None:
        """Waits for changes that may go into the same line."""
        wait = self._last_line + LOAD_INTERVAL - self._clock()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._registry.wait_for_urgent_change()
        await asyncio.sleep(COALESCE)

    def _whole_table(self) -> tuple[int, bytes]:
        """Its version and its line."""
        version = self._registry.version
        if self._table[0] != version:
            line = self._registry.snapshot().model_dump_json().encode() + b"\n"
            self._table = (version, line)
        return self._table
