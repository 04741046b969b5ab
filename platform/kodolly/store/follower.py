"""Readers of running responses: one follower a process tells all of them what was committed, by whomever.

This process's own commits come straight from its flusher. Those of others: on PostgreSQL by LISTEN, on SQLite
by a look at `PRAGMA data_version` every TICK seconds while anybody waits for another process's response.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import sqlalchemy as sa

from kodolly.errors import StoreUnavailable
from kodolly.store.database import Database
from kodolly.store.notices import CANCEL, CHANNEL, CHUNK, END
from kodolly.store.records import TERMINAL
from kodolly.store.tables import chunks, responses

log = logging.getLogger(__name__)

TICK = 0.025  # seconds between two looks at a SQLite file; while only a cancellation may come: CANCEL_TICK
CANCEL_TICK = 0.25
MAX_PENDING = 256  # chunks kept for a reader that is slow; beyond, it reads them from the database
RECONNECT_PAUSE = 0.5

Events = list[tuple[int, Any]]  # (sequence number, event)


class _Reader:
    """One reader: where it is, and what has come since it last looked."""

    def __init__(self, after_seq: int) -> None:
        self.next_seq = after_seq + 1
        self.pending: list[tuple[int, Sequence[Any]]] = []
        self.must_read = True  # something may be in the database alone
        self.wake = asyncio.Event()

    def offer(self, seq: int, deltas: Sequence[Any]) -> None:
        if not self.must_read:
            self.pending.append((seq, deltas))
            if len(self.pending) > MAX_PENDING:
                self.look()
        self.wake.set()

    def look(self) -> None:
        """Have it read the database."""
        self.pending.clear()
        self.must_read = True
        self.wake.set()

    def take(self, pieces: Sequence[tuple[int, Sequence[Any]]], *, stored: bool) -> Events:
        """The events in `pieces` that it has not had. `stored`: they are all that the database has."""
        events: Events = []
        for seq, deltas in pieces:
            if seq > self.next_seq and not stored:  # a notice was missed
                self.must_read = True
                break
            skip = max(0, self.next_seq - seq)
            events += zip(range(seq + skip, seq + len(deltas)), deltas[skip:], strict=True)
            self.next_seq = max(self.next_seq, seq + len(deltas))
        return events


class Follower:
    """All readers of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_local: Callable[[str], bool] = lambda _: False
        self._readers: defaultdict[str, set[_Reader]] = defaultdict(set)
        self._cancellable: dict[str, asyncio.Event] = {}
        self._has_watchers = asyncio.Event()

    def set_local(self, is_local: Callable[[str], bool]) -> None:
        """`is_local`: whether this process makes a response."""
        self._is_local = is_local

    async def follow(self, response_id: str, after_seq: int = -1) -> AsyncIterator[Events]:
        """The events of a response after number `after_seq`, until it is finished or deleted.

        What is stored already comes as one list, what follows as it is committed. Raises StoreUnavailable.
        """
        reader = _Reader(after_seq)
        self._readers[response_id].add(reader)
        self._has_watchers.set()
        try:
            while True:
                if reader.must_read:
                    reader.must_read = False
                    pieces, is_over = await self._read(response_id, reader.next_seq)
                    events = reader.take(pieces, stored=True)
                    later, reader.pending = reader.pending, []
                    events += reader.take(later, stored=False)
                    if events:
                        yield events
                    if is_over:
                        return
                elif reader.pending:
                    pieces, reader.pending = reader.pending, []
                    if events := reader.take(pieces, stored=False):
                        yield events
                else:
                    reader.wake.clear()
                    await reader.wake.wait()
        finally:
            self._readers[response_id].discard(reader)
            if not self._readers[response_id]:
                del self._readers[response_id]

    @contextlib.contextmanager
    def cancellable(self, response_id: str) -> Any:
        """An asyncio.Event that is set once somebody, anywhere, wants the response cancelled."""
        event = self._cancellable[response_id] = asyncio.Event()
        self._has_watchers.set()
        try:
            yield event
        finally:
            self._cancellable.pop(response_id, None)

    def publish(self, response_id: str, seq: int, deltas: Sequence[Any]) -> None:
        """Events that this process has committed."""
        for reader in self._readers.get(response_id, ()):
            reader.offer(seq, deltas)

    def publish_end(self, response_id: str) -> None:
        """A response has ended, or was deleted."""
        for reader in self._readers.get(response_id, ()):
            reader.look()

    def publish_cancel(self, response_id: str) -> None:
        """A response is to be cancelled."""
        if event := self._cancellable.get(response_id):
            event.set()

    async def run(self) -> None:
        """Follow the other processes until cancelled."""
        while True:
            try:
                await (self._watch_file() if self._database.is_sqlite else self._listen())
            except (StoreUnavailable, sqlite3.Error, OSError) as error:
                log.warning("the store cannot be followed: %s", error)
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _read(
        self, response_id: str, next_seq: int
    ) -> tuple[list[tuple[int, Sequence[Any]]], bool]:
        """The chunks from `next_seq` on, and whether there will be no more."""
        async with self._database.read() as connection:
            status = await connection.scalar(
                sa.select(responses.c.status).where(responses.c.id == response_id)
            )
            rows = await connection.execute(
                sa.select(chunks.c.seq, chunks.c.deltas)
                .where(chunks.c.response_id == response_id, chunks.c.seq + chunks.c.n > next_seq)
                .order_by(chunks.c.seq)
            )
            return [(row.seq, row.deltas) for row in rows], status is None or status in TERMINAL

    # SQLite

    async def _watch_file(self) -> None:
        connection = sqlite3.connect(self._database.file, timeout=0, isolation_level=None)
        try:
            last_row, version = await self._newest_row(), -1
            self._look_everywhere()
            while True:
                if not self._readers and not self._cancellable:
                    self._has_watchers.clear()
                    await self._has_watchers.wait()
                remote = [key for key in self._readers if not self._is_local(key)]
                await asyncio.sleep(TICK if remote else CANCEL_TICK)
                now = connection.execute("PRAGMA data_version").fetchone()[0]
                if now != version:
                    version = now
                    last_row = await self._look(last_row, remote)
        finally:
            connection.close()

    async def _newest_row(self) -> int:
        async with self._database.read() as connection:
            row: sa.ColumnClause[int] = sa.literal_column("row", sa.Integer)
            newest = await connection.scalar(sa.select(sa.func.max(row)).select_from(chunks))
            return newest or 0

    async def _look(self, last_row: int, remote: list[str]) -> int:
        """Pass on the chunks after `last_row` of responses made elsewhere; the newest row there is."""
        newest = await self._newest_row()
        running = list(self._cancellable)
        row: sa.ColumnClause[int] = sa.literal_column("row", sa.Integer)
        async with self._database.read() as connection:
            if remote:
                rows = await connection.execute(
                    sa.select(chunks.c.response_id, chunks.c.seq, chunks.c.deltas)
                    .where(row > last_row, row <= newest, chunks.c.response_id.in_(remote))
                    .order_by(row)
                )
                for each in rows:
                    self.publish(each.response_id, each.seq, each.deltas)
                going_on = await connection.execute(
                    sa.select(responses.c.id).where(
                        responses.c.id.in_(remote), responses.c.status.not_in(TERMINAL)
                    )
                )
                for response_id in set(remote) - set(going_on.scalars()):
                    self.publish_end(response_id)
            await self._look_for_cancellations(connection, running)
        return newest

    # PostgreSQL

    async def _listen(self) -> None:
        async with self._database.listener() as driver:
            ended = asyncio.Event()
            notices: asyncio.Queue[str] = asyncio.Queue()
            driver.add_termination_listener(lambda *_: ended.set())
            await driver.add_listener(CHANNEL, lambda *args: notices.put_nowait(args[-1]))
            self._look_everywhere()
            running = list(self._cancellable)
            async with self._database.read() as connection:
                await self._look_for_cancellations(connection, running)
            ending = asyncio.create_task(ended.wait())
            try:
                while not ended.is_set():
                    taking = asyncio.create_task(notices.get())
                    await asyncio.wait((taking, ending), return_when=asyncio.FIRST_COMPLETED)
                    if not taking.done():
                        taking.cancel()
                        break
                    texts = [taking.result()]
                    while not notices.empty():
                        texts.append(notices.get_nowait())
                    await self._take_notices(texts)
            finally:
                ending.cancel()

    async def _take_notices(self, texts: list[str]) -> None:
        keys: list[tuple[str, int]] = []
        for text in texts:
            kind, *lines = text.split("\n")
            for line in lines:
                response_id, _, seq = line.partition(" ")
                if kind == CANCEL:
                    self.publish_cancel(response_id)
                elif response_id in self._readers and kind == END:
                    self.publish_end(response_id)
                elif (
                    response_id in self._readers
                    and kind == CHUNK
                    and not self._is_local(response_id)
                ):
                    keys.append((response_id, int(seq)))
        if keys:
            async with self._database.read() as connection:
                rows = await connection.execute(
                    sa.select(chunks.c.response_id, chunks.c.seq, chunks.c.deltas)
                    .where(sa.tuple_(chunks.c.response_id, chunks.c.seq).in_(keys))
                    .order_by(chunks.c.response_id, chunks.c.seq)
                )
                for row in rows:
                    self.publish(row.response_id, row.seq, row.deltas)

    def _look_everywhere(self) -> None:
        """Something may have been missed: every reader reads the database."""
        for readers in self._readers.values():
            for reader in readers:
                reader.look()

    async def _look_for_cancellations(self, connection: Any, running: list[str]) -> None:
        """Responses that run here and are to be cancelled, or were deleted.

        `running`: those that ran here before the read began, which sees no response that came later.
        """
        if running:
            going_on = await connection.execute(
                sa.select(responses.c.id).where(
                    responses.c.id.in_(running), ~responses.c.cancel_requested
                )
            )
            for response_id in set(running) - set(going_on.scalars()):
                self.publish_cancel(response_id)
