"""The stored responses that this process makes, and those it takes over from processes that have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.responses.prepared import Prepared, prepare
from kodolly.api.responses.request import check_request
from kodolly.api.responses.stored.history import History
from kodolly.api.responses.stored.run import Run
from kodolly.api.runner import CompletionRunner
from kodolly.errors import ApiError, Fenced, KodollyError, ResponseDeleted
from kodolly.store.patience import until_reachable
from kodolly.store.records import TERMINAL, ResponseRecord, StoredEvents, owner_of

if TYPE_CHECKING:
    from kodolly.store.store import Store

log = logging.getLogger(__name__)


class Runs:
    """What runs here, by the response's id."""

    def __init__(self, store: Store, runner: CompletionRunner) -> None:
        self.store = store
        self._runner = runner
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        store.leases.on_takeover = self._take_over
        store.leases.on_fenced = self._move_all

    def get(self, response_id: str) -> Run | None:
        """The response's run, if this process makes it."""
        return self._runs.get(response_id)

    def start(self, prepared: Prepared, key: str) -> Run:
        """Begins to make a response whose record is stored. `key`: whose turn in the queue it takes."""
        is_public = bool(prepared.request.background)
        run = self._runs[prepared.id] = Run(prepared, self.store, is_public=is_public)
        self._keep(prepared.id, self._make(run, key, None))
        return run

    async def aclose(self) -> None:
        """Leaves what is unfinished to other processes; what is queued for the store is still stored."""
        self._move_all()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _move_all(self) -> None:
        for response_id, run in list(self._runs.items()):
            run.move()
            if task := self._tasks.get(response_id):
                task.cancel()

    def _keep(self, response_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[response_id] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self._tasks.get(response_id) is done:
                del self._tasks[response_id]

        task.add_done_callback(forget)

    async def _make(self, run: Run, key: str, events: StoredEvents | None) -> None:
        async def stream(client: ClientStream) -> None:
            await self._runner.stream(run.prepared.chat, key, client)

        try:
            await run.make(stream, events)
            if run.failure is not None:
                await self.store.responses.delete(run.id, owner_of(key))
        except KodollyError as error:
            log.warning("%s: %s", run.id, error)
        finally:
            if self._runs.get(run.id) is run:
                del self._runs[run.id]

    def _take_over(self, response_ids: Sequence[str]) -> None:
        for response_id in response_ids:
            self._keep(response_id, self._go_on(response_id))

    async def _go_on(self, response_id: str) -> None:
        """Goes on with a response of a process that has ended; it fails if it cannot be prepared any more."""
        responses = self.store.responses
        record = await until_reachable(lambda: responses.get(response_id, None))
        if record is None or record.status in TERMINAL:
            return
        log.warning("%s: its process has ended, this one goes on", response_id)
        try:
            events = await until_reachable(lambda: responses.events(response_id))
            prepared = await until_reachable(lambda: restored(record, self.store))
        except ApiError as error:  # such as an earlier response that was deleted meanwhile
            log.warning("%s: %s", response_id, error.message)
            fault = {"code": error.code or error.type, "message": error.message}
            with contextlib.suppress(Fenced, ResponseDeleted):
                await until_reachable(
                    lambda: responses.finish(response_id, "failed", {"error": fault}, [])
                )
            return
        run = self._runs[response_id] = Run(prepared, self.store, is_public=True)
        if record.cancel_requested:
            run.cancel()
        await self._make(run, record.owner, events)


async def restored(record: ResponseRecord, store: Store) -> Prepared:
    """What was prepared when the response was created. Raises ApiError, StoreUnavailable."""
    request = check_request(record.request)
    page = await store.responses.list_input_items(
        record.id, record.owner, limit=10_000, order="asc"
    )
    own = page.items if page else []
    earlier = await History(store).earlier(request, record.owner)
    return prepare(
        request,
        [*earlier, *own],
        record.id,
        store=True,
        response_id=record.id,
        created_at=record.created_at,
    )
