"""How much a client may keep: beyond, its oldest finished things go first."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kodolly.errors import StoreFull
from kodolly.store.database import Database
from kodolly.store.records import TERMINAL
from kodolly.store.tables import conversations, files, responses

RECOUNT = (
    10.0  # seconds for which a count of the database is good; then other processes' writes are seen
)
MAX_OWNERS = 10_000
ROW_BYTES = 512  # of a row beside its JSON: keys and indexes, roughly
EVICT_AT_ONCE = 100


def size_of(*values: Any) -> int:
    """Roughly the bytes that these JSON values take in the database."""
    return sum(ROW_BYTES + len(orjson.dumps(value)) for value in values)


class Quota:
    """The bytes of each owner, as this process knows them."""

    def __init__(self, database: Database, owner_bytes: int) -> None:
        """`owner_bytes`: that one client may keep; 0: any number."""
        self._database = database
        self._limit = owner_bytes
        self._counts: dict[str, tuple[float, int]] = {}  # when, bytes
        self._counting: dict[str, asyncio.Lock] = {}  # a burst of one owner's requests counts once

    async def reserve(self, owner: str, size: int) -> None:
        """Make room for `size` more bytes.

        Deletes the owner's oldest finished responses where needed. Raises StoreFull where that is not enough.
        """
        if not self._limit:
            return
        if size > self._limit:
            raise self._full()
        if self._fits(owner, size):
            return self._add(owner, size)
        lock = self._counting.setdefault(owner, asyncio.Lock())
        try:
            async with lock:
                if not self._fits(owner, size):
                    await self._count(owner, size)
                self._add(owner, size)
        finally:
            if not lock.locked() and self._counting.get(owner) is lock:
                del self._counting[owner]

    def _fits(self, owner: str, size: int) -> bool:
        """Whether there is room by a count that is still good."""
        when, used = self._counts.get(owner, (-math.inf, 0))
        return time.monotonic() - when <= RECOUNT and used + size <= self._limit

    def _add(self, owner: str, size: int) -> None:
        when, used = self._counts[owner]
        self._counts[owner] = (when, used + size)

    async def _count(self, owner: str, size: int) -> None:
        """Counts anew, and makes room. Raises StoreFull."""
        now = time.monotonic()
        async with self._database.read() as connection:
            used = await self._used(connection, owner)
        if used + size > self._limit:
            used = await self._evict(owner, used, size)
        if len(self._counts) >= MAX_OWNERS:
            self._counts.clear()
        self._counts[owner] = (now, used)

    async def _evict(self, owner: str, used: int, size: int) -> int:
        while used + size > self._limit:
            async with self._database.write() as connection:
                oldest = await connection.execute(
                    sa.select(responses.c.id, responses.c.bytes)
                    .where(responses.c.owner == owner, responses.c.status.in_(TERMINAL))
                    .order_by(responses.c.completed_at)
                    .limit(EVICT_AT_ONCE)
                )
                ids, freed = [], 0
                for row in oldest:
                    if used - freed + size <= self._limit:
                        break
                    ids.append(row.id)
                    freed += row.bytes
                if not ids:
                    raise self._full()
                await connection.execute(sa.delete(responses).where(responses.c.id.in_(ids)))
            used -= freed
        return used

    async def _used(self, connection: AsyncConnection, owner: str) -> int:
        total = 0
        for table in (responses, conversations, files):
            total += int(
                await connection.scalar(
                    sa.select(sa.func.coalesce(sa.func.sum(table.c.bytes), 0)).where(
                        table.c.owner == owner
                    )
                )
                or 0
            )
        return total

    def _full(self) -> StoreFull:
        return StoreFull(
            f"Your stored responses, conversations and files would take more than {self._limit} bytes."
            " Delete some, or send `store: false`."
        )


def text_bytes(table: sa.Table, column: sa.ColumnElement[Any], where: Mapping[str, Any]) -> Any:
    """SQL for the characters in a column's rows, as a number; 0 where there are none."""
    size = sa.func.coalesce(sa.func.sum(sa.func.length(column)), 0)
    conditions = [table.c[name] == value for name, value in where.items()]
    return sa.select(size).select_from(table).where(*conditions).scalar_subquery()
