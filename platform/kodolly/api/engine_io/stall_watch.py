"""The open calls to engines, and the one task that takes them off a worker that is gone.

A dead engine ends its connections by itself. One that hangs, or that a cut network hides, does
not: the worker's state shows it, or else its silence and a health check that fails twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import httpx

from kodolly.api.errors import WorkerFailed
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.http import descriptors
from kodolly.http.client import CALL_ERRORS, request_bounded
from kodolly.protocol.wire import WorkerState

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK = 0.5  # seconds between two looks at all open calls
# A call silent for this long (s) on a worker that left rotation goes on elsewhere.
SILENT_ON_LOST = 1.0
# A call silent for this long (s) on a worker in rotation starts a health check of its engine.
SILENT = 2.0
PROBE_TIMEOUT, PROBES = 1.2, 2  # seconds of one health check, and how many must fail
SERVING = (WorkerState.READY, WorkerState.DRAINING)


class WatchedCall:
    """One open call to an engine, watched within the `with`. It belongs to the task that opened it.

    `limit`: seconds of silence that are allowed, and the error that ends the call after them.
    """

    def __init__(self, worker: Worker, watch: StallWatch) -> None:
        self.worker = worker
        self._watch = watch
        self.limit: tuple[float, Exception] | None = None
        self._last_data: float | None = None  # None while we do not wait for the engine
        self._error: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._watch.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.discard(self)

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Waits for the engine. Raises the error with which the watch ends the call meanwhile."""
        self._task = asyncio.current_task()
        self._last_data = time.monotonic()
        try:
            return await work
        except asyncio.CancelledError:
            if self._error is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._error from None
        finally:
            self._last_data = None

    def note_data(self) -> None:
        """The engine sent something, and we go on waiting for it."""
        if self._last_data is not None:
            self._last_data = time.monotonic()

    def silence(self, now: float) -> float:
        """Seconds without data while we wait for the engine; 0 when the client is waited for."""
        return 0.0 if self._last_data is None else now - self._last_data

    def fail(self, error: Exception) -> None:
        """Ends the call with `error` if it still waits for the engine."""
        if self._last_data is not None and self._error is None and self._task is not None:
            self._error = error
            self._task.cancel()


class StallWatch:
    """All open calls to engines of one API process."""

    def __init__(
        self,
        table: WorkerTable,
        client: httpx.AsyncClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._client = client
        self._clock = clock
        self._calls: dict[str, set[WatchedCall]] = {}  # by the worker's name
        self._probes: dict[str, asyncio.Task[None]] = {}
        self.calls_moved = 0  # off workers that were silent

    def watch(self, worker: Worker) -> WatchedCall:
        """A call to a worker, to be entered by `with`."""
        return WatchedCall(worker, self)

    def add(self, call: WatchedCall) -> None:
        """Begins to watch a call."""
        self._calls.setdefault(call.worker.row.name, set()).add(call)

    def discard(self, call: WatchedCall) -> None:
        """Ends watching a call."""
        name = call.worker.row.name
        calls = self._calls[name]
        calls.discard(call)
        if not calls:
            del self._calls[name]

    async def run(self) -> None:
        """Looks at all calls twice a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(TICK)
                self.look()
        finally:
            for probe in self._probes.values():
                probe.cancel()

    def look(self) -> None:
        """Ends silent calls on workers out of rotation, and checks the health of silent ones in it."""
        now = self._clock()
        rows = {worker.row.name: worker for worker in self._table.all()}
        for name, calls in list(self._calls.items()):
            for call in calls:
                if call.limit is not None and call.silence(now) > call.limit[0]:
                    call.fail(call.limit[1])
            worker = rows.get(name)
            state = worker.row.state if worker else WorkerState.LOST
            if state not in SERVING:
                if self._have_substitutes(calls):
                    self._fail_silent(name, f"is {state.value} and silent", SILENT_ON_LOST)
            elif worker and name not in self._probes and self._is_suspicious(worker, calls, now):
                self._probes[name] = asyncio.create_task(self._probe(worker))

    def _is_suspicious(self, worker: Worker, calls: set[WatchedCall], now: float) -> bool:
        return any(call.silence(now) > SILENT for call in calls) or worker.suspect_until > now

    async def _probe(self, worker: Worker) -> None:
        name = worker.row.name
        try:
            for _ in range(PROBES):
                if await self._is_healthy(worker):
                    return
            self._table.suspect(worker)
            if self._have_substitutes(self._calls.get(name, ())):
                log.warning("%s does not answer: its silent calls are moved", name)
                self._fail_silent(name, "does not answer", SILENT)
        finally:
            del self._probes[name]

    def _have_substitutes(self, calls: Iterable[WatchedCall]) -> bool:
        """Whether other workers could go on: a lone engine that is only slow would do its work twice."""
        models = {model for call in calls for model in call.worker.row.model_names}
        names = {call.worker.row.name for call in calls}
        return all(
            any(worker.row.name not in names for worker in self._table.trusted(model))
            for model in models
        )

    async def _is_healthy(self, worker: Worker) -> bool:
        extension = worker.extension
        if extension is None or extension.engine_url is None:
            return True
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await request_bounded(self._client, "GET", extension.engine_url + "/health")
        except CALL_ERRORS as error:
            return descriptors.are_exhausted(error)  # then no request was sent
        return True

    def _fail_silent(self, name: str, why: str, silence: float) -> None:
        """Ends a worker's calls that have been silent for `silence` seconds."""
        now = self._clock()
        for call in self._calls.get(name, ()):
            if call.silence(now) >= silence:
                self.calls_moved += 1
                call.fail(WorkerFailed(why))
