"""Which process runs which response, and who takes over when one dies: no clocks are compared.

Every process raises its own row's `beat` twice a second, and watches the others' by its own clock. A beat that
has not moved for WATCH seconds is of a dead process: its row is deleted, unless it moved in that moment. The
unfinished responses of processes without a row are then claimed, each by one process. A process that was only
stopped finds its row gone when it goes on: it is fenced, ends its runs, and begins again under a new id.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from kodolly.errors import StoreUnavailable
from kodolly.store.database import Database
from kodolly.store.flusher import Flusher
from kodolly.store.notices import END, notify
from kodolly.store.tables import batches, processes, responses

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds
WATCH = 2.0  # seconds without a beat after which a process counts as dead
MIN_LOOKS = 4  # and so often it must have been seen without one: this process may be slow itself
MAX_CLAIMS = 16  # responses claimed at one beat: the other processes take their part
STATEMENT_TIMEOUT = 3.0  # seconds
LOST_RESULT = {
    "error": {
        "code": "server_error",
        "message": "The store could not be reached while the response was made.",
    }
}


@dataclass
class _Sight:
    """What another process's beat was, since when by this process's clock, and how often it was seen."""

    beat: int
    since: float
    looks: int = 1


class Leases:
    """This process's lease, and its eye on the others'."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.process_id = uuid.uuid4().hex
        self._sights: dict[str, _Sight] = {}
        self._flusher: Flusher | None = None
        # Called with the ids of responses that this process has to go on with. None: it takes none.
        self.on_takeover: Callable[[Sequence[str]], None] | None = None
        # The same for batches.
        self.on_batch_takeover: Callable[[Sequence[str]], None] | None = None
        # Called once this process has lost its responses to others.
        self.on_fenced: Callable[[], None] | None = None

    def set_flusher(self, flusher: Flusher) -> None:
        """Whose lost responses are marked once the database is back."""
        self._flusher = flusher

    async def open(self) -> None:
        """Take the lease. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(sa.insert(processes).values(id=self.process_id, beat=0))

    async def close(self) -> None:
        """Give it back: others go on with what is unfinished, and need not wait."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(processes).where(processes.c.id == self.process_id))

    async def run(self) -> None:
        """Beat and watch until cancelled."""
        while True:
            started = time.monotonic()
            try:
                async with asyncio.timeout(STATEMENT_TIMEOUT):
                    await self._beat()
                    await self._watch()
                    await self._claim()
                    await self._mark_lost()
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("no beat: %s", error)
                self._sights.clear()  # the others could not beat either
            except Exception:  # the lease outlives a fault of ours
                log.exception("a beat failed")
            await asyncio.sleep(max(0.05, started + BEAT - time.monotonic()))

    async def _beat(self) -> None:
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.update(processes)
                .where(processes.c.id == self.process_id)
                .values(beat=processes.c.beat + 1)
            )
        if result.rowcount:
            return
        log.warning("this process was taken for dead, and others go on with its responses")
        self.process_id = uuid.uuid4().hex
        self._sights.clear()
        await self.open()
        if self.on_fenced is not None:
            self.on_fenced()

    async def _watch(self) -> None:
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(processes).where(processes.c.id != self.process_id)
            )
            beats = {row.id: row.beat for row in rows}
        now = time.monotonic()
        self._sights = {
            key: sight for key, sight in self._sights.items() if sight.beat == beats.get(key)
        }
        for process_id, beat in beats.items():
            sight = self._sights.setdefault(process_id, _Sight(beat, now, 0))
            sight.looks += 1
            if now - sight.since >= WATCH and sight.looks >= MIN_LOOKS:
                await self._declare_dead(process_id, beat)

    async def _declare_dead(self, process_id: str, beat: int) -> bool:
        """False if it has beaten in this moment."""
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.delete(processes).where(processes.c.id == process_id, processes.c.beat == beat)
            )
        if result.rowcount:
            log.warning("process %s of the store is dead", process_id)
        return bool(result.rowcount)

    async def _claim(self) -> None:
        """Take over responses and batches that no living process runs."""
        for table, takeover in ((responses, self.on_takeover), (batches, self.on_batch_takeover)):
            if takeover is not None:
                await self._claim_from(table, takeover)

    async def _claim_from(self, table: sa.Table, takeover: Callable[[Sequence[str]], None]) -> None:
        orphans = (
            sa.select(table.c.id, table.c.run_by)
            .where(table.c.run_by.is_not(None), table.c.run_by.not_in(sa.select(processes.c.id)))
            .limit(MAX_CLAIMS)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(orphans)).all()
        for row in rows:
            async with self._database.write() as connection:
                result = await connection.execute(
                    sa.update(table)
                    .where(table.c.id == row.id, table.c.run_by == row.run_by)
                    .values(run_by=self.process_id)
                )
            if result.rowcount:
                takeover([row.id])  # at once: the next claim may fail, and nobody else has this one

    async def _mark_lost(self) -> None:
        """Say of responses that ended while the database was away that they have failed."""
        if self._flusher is None or not (lost := self._flusher.unstored()):
            return
        async with self._database.write() as connection:
            await connection.execute(
                sa.update(responses)
                .where(responses.c.id.in_(lost), responses.c.run_by == self.process_id)
                .values(status="failed", result=LOST_RESULT, completed_at=time.time(), run_by=None)
            )
            await connection.run_sync(notify, END, lost)
        self._flusher.marked(lost)
