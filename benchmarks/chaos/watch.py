"""The controller's watch stream, read as every API process reads it: who is in rotation, since when."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import aiohttp

from kodolly.api.routing.table_copy import TableCopy

READY = "ready"
GONE = "gone"
AGAIN = 0.1


@dataclass(slots=True)
class Watch:
    """States of the workers as they changed: (time, worker's URL, state)."""

    url: str
    token: str
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    now: dict[str, str] = field(default_factory=dict)
    epoch: str = ""  # names one life of the controller

    async def run(self) -> None:
        """Follows for ever, over every end of the controller."""
        headers = {"Authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=10)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                    await self._follow(session)
                await asyncio.sleep(AGAIN)

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        copy, is_first = TableCopy(), True
        async with session.get(self.url + "/watch", read_bufsize=2**20) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.strip():
                    copy.take(line, first=is_first)
                    is_first, table = False, copy.snapshot()
                    self.epoch = table.epoch
                    self.take({row.name: row.state.value for row in table.workers})

    def take(self, rows: dict[str, str]) -> None:
        """A new table; a worker that is no longer in it is gone."""
        at = time.time()
        fresh = dict.fromkeys(self.now, GONE) | rows
        for name, state in fresh.items():
            if self.now.get(name) != state:
                self.changes.append((at, name, state))
        self.now = fresh

    def first(self, name: str, since: float, *, ready: bool) -> float | None:
        """When a worker was first told to be ready (or not to be), at `since` or later."""
        state = None
        for at, worker, new in self.changes:
            if worker != name:
                continue
            if at > since and state is not None and (state == READY) is ready:
                break
            state = new
            if at >= since and (new == READY) is ready:
                return at
        return since if state is not None and (state == READY) is ready else None
