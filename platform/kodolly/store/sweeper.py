"""Deletes what is older than it may get. Every process sweeps: whoever comes first has the work."""

from __future__ import annotations

import asyncio
import logging
import random
import time

import sqlalchemy as sa

from kodolly.errors import StoreUnavailable
from kodolly.store.database import Database
from kodolly.store.tables import batches, conversations, files, responses

log = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds between two sweeps, give or take half
BATCH = 200  # rows deleted in one transaction: others write in between


class Sweeper:
    """Keeps the time to live of all that is stored. What is being made stays."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL * random.uniform(0.5, 1.5))
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("not swept: %s", error)
            except Exception:  # the next sweep may do better
                log.exception("a sweep failed")

    async def sweep(self) -> int:
        """Delete all that has expired. Returns how many responses, conversations, files and batches went."""
        deleted = 0
        for table, is_unused in (
            (responses, responses.c.run_by.is_(None)),
            (batches, batches.c.run_by.is_(None)),
            (conversations, sa.true()),
            (files, sa.true()),
        ):
            old = sa.select(table.c.id).where(table.c.expires_at < time.time(), is_unused)
            deleted += await self._delete(table, old)
        return deleted

    async def _delete(self, table: sa.Table, old: sa.Select[tuple[str]]) -> int:
        total = 0
        while True:
            async with self._database.write() as connection:
                ids = list((await connection.execute(old.limit(BATCH))).scalars())
                if ids:
                    await connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
            total += len(ids)
            if len(ids) < BATCH:
                return total
