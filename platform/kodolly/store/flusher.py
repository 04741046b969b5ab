"""One group commit a process: events are committed first, and delivered to clients after that.

A running response hands over its events by `append`, and its ends by `run_operation`, in order. Whatever has
come since the last commit of all is committed together, GAP seconds after it. A new response and a response's first
event are committed at once, by themselves: many that begin would otherwise have the others' events committed one by
one. A response that asks by `before_commit` can make its events just before a commit, all at once, instead of one at
a time as they come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kodolly.errors import KodollyError, StoreUnavailable
from kodolly.store.commit import (
    Chunk,
    Group,
    NewResponse,
    OnCommit,
    Operation,
    OperationFailed,
    QueuedOperation,
    Row,
    commit_group,
    commit_to_postgresql,
    commit_to_sqlite,
    reasons,
    rows_of,
)
from kodolly.store.database import Database
from kodolly.store.notices import Notices

log = logging.getLogger(__name__)

GAP = 0.08  # seconds between commits of all: benchmarks/store measures what other gaps cost
RETRY_TIME = 5.0  # seconds for which a commit is tried again while the database is away
ATTEMPT_TIMEOUT = 5.0  # seconds for one attempt
RETRY_PAUSE = 0.2


class Flusher:
    """Commits what this process's running responses make."""

    def __init__(
        self,
        database: Database,
        process_id: Callable[[], str],
        notices: Notices,
        *,
        gap: float = GAP,
        retry_time: float = RETRY_TIME,
    ) -> None:
        """`process_id`: under which this process runs responses. Times in seconds."""
        self._database = database
        self._process_id = process_id
        self._notices = notices
        self._gap = gap
        self._retry_time = retry_time
        self._group = Group()
        self._to_call: dict[str, Callable[[], None]] = {}
        self._urgent: set[str] = set()  # responses whose first event is to be committed at once
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False  # a commit of all
        self._last_commit = 0.0
        self._is_down = False
        self._is_stopping = False
        self._running: set[str] = set()
        self._lost: dict[str, KodollyError] = {}  # their events are stored no more
        self.commits = 0  # transactions
        self.lost = 0  # responses that went on without the store

    @property
    def is_down(self) -> bool:
        """Whether the last commit failed: the database is away."""
        return self._is_down

    def append(
        self,
        response_id: str,
        seq: int,
        deltas: Sequence[Any],
        token_ids: Sequence[int],
        on_commit: OnCommit,
    ) -> None:
        """Hand over events seq, seq + 1, ... of a response that this process runs.

        `on_commit`, the same for all of a response, is called once for the oldest N calls of this: with None and N
        when their events are committed, so that the client may get them. Or with an error and N, for the
        response's first lost event and every later one:
        StoreUnavailable: the database is away. Deliver this event and go on without the store.
        Fenced: another process has taken the response over. Stop, and deliver nothing.
        ResponseDeleted: its owner has deleted it. Stop.
        """
        if (error := self._lost.get(response_id)) is not None:
            asyncio.get_running_loop().call_soon(_call, on_commit, error, 1)
            return
        chunk = self._group.chunks.get(response_id)
        if chunk is None:
            self._group.chunks[response_id] = Chunk(seq, list(deltas), list(token_ids), on_commit)
        else:
            assert seq == chunk.seq + len(chunk.deltas), "events come in order, without gaps"
            chunk.deltas += deltas
            chunk.token_ids += token_ids
            chunk.appends += 1
        if response_id not in self._running:
            self._running.add(response_id)
            self._urgent.add(response_id)
            self._wake.set()
        else:
            self._set_timer()

    def before_commit(self, response_id: str, call: Callable[[], None]) -> None:
        """Call this once, right before the next commit: it may `append` what is to be committed then."""
        self._to_call[response_id] = call
        self._set_timer()

    async def create(self, row: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Store a new response that this process runs, with those that come at the same time.

        A transaction for each would let a burst of them hold up the answers that run.
        Raises StoreUnavailable.
        """
        future = asyncio.get_running_loop().create_future()
        self._group.new.append(NewResponse(row, items, future))
        self._wake.set()
        await future

    async def run_operation(self, response_id: str, operation: Operation) -> Any:
        """Run `operation` in the next commit of all, after the events before it; its result once committed.

        Raises StoreUnavailable, Fenced, ResponseDeleted, or what the operation raises.
        """
        future = asyncio.get_running_loop().create_future()
        self._group.operations.append(QueuedOperation(response_id, operation, future))
        self._set_timer()
        return await future

    def forget(self, response_id: str) -> None:
        """The response is finished here, stored or not."""
        self._to_call.pop(response_id, None)
        self._running.discard(response_id)
        if not isinstance(self._lost.get(response_id), StoreUnavailable):
            self._lost.pop(response_id, None)

    def runs(self, response_id: str) -> bool:
        """Whether this process makes the response."""
        return response_id in self._running

    def unstored(self) -> list[str]:
        """Responses that have ended here while the database was away: it does not say so yet."""
        return [
            response_id
            for response_id, error in self._lost.items()
            if response_id not in self._running and isinstance(error, StoreUnavailable)
        ]

    def marked(self, response_ids: Sequence[str]) -> None:
        """The database says now that these have failed."""
        for response_id in response_ids:
            self._lost.pop(response_id, None)
            self._notices.publish_end(response_id)

    def stop(self) -> None:
        """Have `run` commit what is queued, and return."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Commit until stopped. To be awaited, not cancelled: a commit under way would be lost."""
        while not (self._is_stopping and self._group.is_empty and not self._to_call):
            await self._wake.wait()
            await self._flush()

    async def _flush(self) -> None:
        self._wake.clear()
        is_of_all = self._is_due or self._is_stopping
        self._is_due = False
        for response_id in (
            list(self._to_call) if is_of_all else self._urgent & self._to_call.keys()
        ):
            try:
                self._to_call.pop(response_id)()
            except Exception:  # one response's fault is no other's
                log.exception("events could not be made")
        group = self._take_all() if is_of_all else self._take_urgent()
        if not group.is_empty:
            await self._commit(group)
        if is_of_all:
            self._last_commit = time.monotonic()
        if self._is_stopping or self._group.new or self._urgent:
            self._wake.set()
        if not self._group.is_empty or self._to_call:
            self._set_timer()

    def _take_all(self) -> Group:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._urgent.clear()
        group, self._group = self._group, Group()
        return group

    def _take_urgent(self) -> Group:
        """What is new, and all that waits of responses with a first event."""
        chunks, operations, urgent = self._group.chunks, self._group.operations, self._urgent
        group = Group(
            new=self._group.new,
            chunks={each: chunks.pop(each) for each in urgent if each in chunks},
            operations=[each for each in operations if each.response_id in urgent],
        )
        self._group.new = []
        if group.operations:
            self._group.operations = [each for each in operations if each.response_id not in urgent]
        self._urgent = set()
        return group

    def _set_timer(self) -> None:
        if self._timer is None:
            wait = max(0.0, self._last_commit + self._gap - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._commit_all_now)

    def _commit_all_now(self) -> None:
        self._timer = None
        self._is_due = True
        self._wake.set()

    async def _commit(self, group: Group) -> None:
        """Commit a group, or tell everybody in it why not."""
        deadline = time.monotonic() + (0 if self._is_down else self._retry_time)
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT):
                    await self._attempt(group)
            except (StoreUnavailable, TimeoutError) as cause:
                error = (
                    cause
                    if isinstance(cause, StoreUnavailable)
                    else StoreUnavailable("The store does not answer.")
                )
                if time.monotonic() < deadline:
                    group.is_retry = True
                    await asyncio.sleep(RETRY_PAUSE)
                    continue
                self._fail(group, error)
            except Exception as cause:  # a fault of ours: nobody may wait for ever
                log.exception("a group commit failed")
                self._fail(group, StoreUnavailable(f"The store failed: {type(cause).__name__}"))
            else:
                self._is_down = False
                self._deliver(group)
            return

    async def _attempt(self, group: Group) -> None:
        rows, unstorable = rows_of(group.chunks)
        if group.operations or group.new:
            await self._commit_all(group, rows)
        else:
            process_id = self._process_id()
            if self._database.is_sqlite:
                own = await self._database.run_write(
                    lambda connection: commit_to_sqlite(connection, process_id, rows)
                )
            else:
                async with self._database.driver() as driver:
                    own = await commit_to_postgresql(driver, process_id, rows)
            group.errors = {}
            if missing := set(group.chunks) - own - set(unstorable):
                async with self._database.read() as connection:
                    group.errors = await connection.run_sync(reasons, missing)
        group.errors |= unstorable
        self.commits += 1

    async def _commit_all(self, group: Group, rows: list[Row]) -> None:
        process_id = self._process_id()
        for each_by_itself in (False, True):
            commit = partial(
                commit_group,
                group=group,
                rows=rows,
                process_id=process_id,
                each_by_itself=each_by_itself,
            )
            try:
                return await self._database.run_write(commit)
            except OperationFailed:
                continue

    def _deliver(self, group: Group) -> None:
        for response_id, chunk in group.chunks.items():
            error = group.errors.get(response_id)
            if error is None:
                self._notices.publish(response_id, chunk.seq, chunk.deltas)
            else:
                self._lost[response_id] = error
                self._running.discard(response_id)
                self._notices.publish_end(response_id)
            _call(chunk.on_commit, error, chunk.appends)
        for new in group.new:
            if not new.future.done():
                new.future.set_result(None)
        for operation in group.operations:
            if operation.error is not None:
                _set(operation.future, operation.error)
            elif not operation.future.done():
                operation.future.set_result(operation.result)

    def _fail(self, group: Group, error: StoreUnavailable) -> None:
        if not self._is_down:
            log.error("running responses go on without the store: %s", error)
        self._is_down = True
        for response_id in group.response_ids():
            self.lost += response_id not in self._lost
            self._lost[response_id] = error
        later, self._group.chunks = self._group.chunks, {}
        for chunks_by_id in (group.chunks, later):
            for response_id, chunk in chunks_by_id.items():
                self.lost += response_id not in self._lost
                self._lost[response_id] = error
                _call(chunk.on_commit, error, chunk.appends)
        for new in group.new:
            _set(new.future, error)
        for operation in group.operations:
            _set(operation.future, error)


def _call(on_commit: OnCommit, error: KodollyError | None, appends: int) -> None:
    try:
        on_commit(error, appends)
    except Exception:  # one response's fault is no other's
        log.exception("a delivery failed")


def _set(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
