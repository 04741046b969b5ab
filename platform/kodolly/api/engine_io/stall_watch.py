"""Open calls to the engines, and the one task that takes them off a worker that is gone.

A dead engine ends its connections by itself. One that hangs, or that a cut network hides, does
not: its worker's state tells, or else its silence and a health call that fails twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from kodolly.api.request import WorkerGone
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.http import descriptors
from kodolly.protocol.wire import WorkerState

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK = 0.5
# A call silent for this long on a worker that left rotation goes on elsewhere.
SILENT_ON_LOST = 1.0
# A call silent for this long on a worker in rotation makes us ask after its health.
SILENT = 2.0
PROBE_TIMEOUT, PROBES = 1.2, 2
SERVING = (WorkerState.READY, WorkerState.DRAINING)


class Flight:
    """One open call to an engine, watched within the `with`. It belongs to the task that opened it.

    `bound`: what the call ends with when the engine is silent for longer than its seconds.
    """

    def __init__(self, worker: Worker, watch: Watch) -> None:
        self.worker = worker
        self._watch = watch
        self.bound: tuple[float, Exception] | None = None
        self._heard: float | None = None  # None while the client is what we wait for
        self._ended: Exception | None = None
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

    async def waiting(self, work: Awaitable[T]) -> T:
        """Waits for the engine. Raises what the watch ends the call with meanwhile."""
        self._task = asyncio.current_task()
        self._heard = time.monotonic()
        try:
            return await work
        except asyncio.CancelledError:
            if self._ended is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._ended from None
        finally:
            self._heard = None

    def heard(self) -> None:
        """The engine said something while we went on waiting."""
        if self._heard is not None:
            self._heard = time.monotonic()

    def silent(self, now: float) -> float:
        """Seconds that we have been waiting for the engine."""
        return 0.0 if self._heard is None else now - self._heard

    def end(self, error: Exception) -> None:
        """Ends the call if it still waits for the engine."""
        if self._heard is not None and self._ended is None and self._task is not None:
            self._ended = error
            self._task.cancel()


class Watch:
    """All flights of one process."""

    def __init__(
        self,
        table: WorkerTable,
        session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._session = session
        self._clock = clock
        self._flights: dict[str, set[Flight]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def following(self, worker: Worker) -> Flight:
        """A call to a worker, to be entered."""
        return Flight(worker, self)

    def add(self, flight: Flight) -> None:
        """From now on the flight is looked at."""
        self._flights.setdefault(flight.worker.row.name, set()).add(flight)

    def discard(self, flight: Flight) -> None:
        """Its call is over."""
        name = flight.worker.row.name
        flights = self._flights[name]
        flights.discard(flight)
        if not flights:
            del self._flights[name]

    async def run(self) -> None:
        """Looks at all flights twice a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(TICK)
                self.look()
        finally:
            for probe in self._probes.values():
                probe.cancel()

    def look(self) -> None:
        """Takes silent calls off workers out of rotation, and asks after silent ones in it."""
        now = self._clock()
        rows = {worker.row.name: worker for worker in self._table.all()}
        for name, flights in list(self._flights.items()):
            for flight in flights:
                if flight.bound is not None and flight.silent(now) > flight.bound[0]:
                    flight.end(flight.bound[1])
            known = rows.get(name)
            state = known.row.state if known else WorkerState.LOST
            if state not in SERVING:
                if self._replaceable(flights):
                    self._end(name, f"is {state.value} and silent", SILENT_ON_LOST)
            elif known and name not in self._probes and self._suspicious(known, flights, now):
                self._probes[name] = asyncio.create_task(self._probe(known))

    def _suspicious(self, worker: Worker, flights: set[Flight], now: float) -> bool:
        silent = any(flight.silent(now) > SILENT for flight in flights)
        return silent or worker.suspect_until > now

    async def _probe(self, worker: Worker) -> None:
        name = worker.row.name
        try:
            for _ in range(PROBES):
                if await self._answers(worker):
                    return
            self._table.suspect(worker)
            if self._replaceable(self._flights.get(name, ())):
                log.warning("%s does not answer: its silent calls are moved", name)
                self._end(name, "does not answer", SILENT)
        finally:
            del self._probes[name]

    def _replaceable(self, flights: Iterable[Flight]) -> bool:
        """Whether others could go on: a lone engine that is only slow would do its work twice."""
        models = {model for flight in flights for model in flight.worker.row.model_names}
        names = {flight.worker.row.name for flight in flights}
        return all(
            any(worker.row.name not in names for worker in self._table.trusted(model))
            for model in models
        )

    async def _answers(self, worker: Worker) -> bool:
        extension = worker.extension
        if extension is None or extension.engine_url is None:
            return True
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
        try:
            async with self._session.get(
                extension.engine_url + "/health", timeout=timeout
            ) as answer:
                await answer.read()
                return True
        except (aiohttp.ClientError, TimeoutError) as error:
            return descriptors.are_exhausted(error)  # then it was not asked

    def _end(self, name: str, why: str, silent: float) -> None:
        now = self._clock()
        for flight in self._flights.get(name, ()):
            if flight.silent(now) >= silent:
                flight.end(WorkerGone(why))
