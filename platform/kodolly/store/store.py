"""The store of one process: what opens it, and the doors to what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from kodolly.errors import StoreUnavailable
from kodolly.store.batches import Batches
from kodolly.store.conversations import Conversations
from kodolly.store.database import Database
from kodolly.store.files import Files
from kodolly.store.flusher import GAP, RETRY_TIME, Flusher
from kodolly.store.follower import Follower
from kodolly.store.leases import Leases
from kodolly.store.quota import Quota
from kodolly.store.responses import Items, Responses
from kodolly.store.sweeper import Sweeper

DAY = 86_400.0


class Store:
    """Responses, conversations, items, files and batches; made at once, usable between `open` and `close`."""

    def __init__(
        self,
        url: str,
        *,
        ttl: float = 30 * DAY,
        owner_bytes: int = 2**30,
        gap: float = GAP,
        retry_time: float = RETRY_TIME,
    ) -> None:
        """`url`: a checked one of SQLite or PostgreSQL. `ttl` in seconds; `gap`, `retry_time`: see flusher."""
        self.database = Database(url)
        self.leases = Leases(self.database)
        self.follower = Follower(self.database)
        self.flusher = Flusher(
            self.database,
            lambda: self.leases.process_id,
            self.follower,
            gap=gap,
            retry_time=retry_time,
        )
        self.leases.set_flusher(self.flusher)
        self.follower.set_local(self.flusher.runs)
        quota = Quota(self.database, owner_bytes)
        self.responses = Responses(
            self.database, self.flusher, self.follower, self.leases, quota, ttl
        )
        self.items = Items(self.database)
        self.conversations = Conversations(self.database, quota, ttl)
        self.files = Files(self.database, quota, ttl)
        self.batches = Batches(self.database, self.leases, self.files, ttl)
        self.sweeper = Sweeper(self.database)
        self._flushing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Bring the tables up to date, take a lease, start the background work.

        Raises StoreUnavailable, or StoreError for a database that this program cannot use.
        """
        try:
            await self.database.open()
            await self.leases.open()
        except BaseException:
            await self.database.close()
            raise
        work = (self.leases.run(), self.follower.run(), self.sweeper.run())
        self._flushing = asyncio.create_task(self.flusher.run())
        self._tasks = [asyncio.create_task(each) for each in work]

    async def close(self) -> None:
        """Commit what is queued, give the lease back, close the connections."""
        self.flusher.stop()
        if self._flushing is None:
            return
        await self._flushing
        self._flushing = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(2):
                await self.leases.close()
        await self.database.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def open_store(url: str, *, ttl: float = 30 * DAY, owner_bytes: int = 2**30) -> Store:
    """A store that is open. Raises as Store.open does."""
    store = Store(url, ttl=ttl, owner_bytes=owner_bytes)
    await store.open()
    return store
