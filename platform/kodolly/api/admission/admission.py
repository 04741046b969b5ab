"""How many requests of a model run at once, who waits for a place, and who is refused.

    ticket = admission.ticket(model, key=client_key, priority=class_of(service_tier))
    async with ticket:  # another task can read ticket.position and ticket.wait meanwhile
        ...

A request beyond the bound waits; beyond the queue's bound, or too long, it gets 429 with Retry-After.
While no worker of a model is ready but one is starting, requests wait for it by the same rules, and
get 503 when it has not come in time.
Each API process counts for itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kodolly.api.admission.fair_queue import FairQueue, class_of
from kodolly.api.errors import RETRY_AFTER
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import NoWorker, Overloaded

__all__ = ["Admission", "Ticket", "class_of"]

# How long (s) a request is expected to run before the first has ended; the weight of each new one
# in the mean.
FIRST_GUESS, WEIGHT = 5.0, 0.05
LONGEST_RETRY_AFTER = 300


@dataclass
class _Lane:
    """One model: how many requests run, which wait, and how long one takes."""

    model: str
    running: int = 0
    queue: FairQueue[Ticket] = field(default_factory=FairQueue)
    mean_duration: float = FIRST_GUESS  # seconds
    completions: int = 0

    def learn(self, seconds: float) -> None:
        self.completions += 1
        self.mean_duration += (seconds - self.mean_duration) * max(WEIGHT, 1 / self.completions)


class Ticket:
    """One request's right to run, from `async with` on to its end."""

    __slots__ = ("_admission", "_lane", "_start", "_turn", "key", "model", "priority")

    def __init__(self, admission: Admission, model: str, key: str, priority: str) -> None:
        self.model, self.key, self.priority = model, key, priority
        self._admission = admission
        self._lane: _Lane | None = None
        self._turn: asyncio.Future[None] | None = None  # while it waits, and how that ended
        self._start = 0.0

    @property
    def position(self) -> int:
        """Place in the queue: 1 is next; 0 when the request does not wait."""
        lane = self._lane
        return lane.queue.ahead(self) + 1 if lane is not None and self in lane.queue else 0

    @property
    def wait(self) -> float:
        """About how long (s) it will have to wait from now on; 0 when it does not wait."""
        lane = self._lane
        if lane is None or self not in lane.queue:
            return 0.0
        return self._admission.wait_at(lane, self.position)

    async def enter(self) -> None:
        """Takes a slot, or waits for one. Raises Overloaded. `leave` must follow in any case."""
        await self._admission._enter(self)

    def leave(self) -> None:
        """Gives the slot back, if there is one."""
        self._admission._leave(self)

    async def __aenter__(self) -> Self:
        await self.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()


class Admission:
    """Slots and queues of every model. Lives on one event loop."""

    def __init__(
        self,
        table: WorkerTable,
        *,
        worker_limit: int,
        queue_size: int,
        queue_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._worker_limit = worker_limit
        self._queue_size = queue_size
        self._queue_timeout = queue_timeout
        self._clock = clock
        # One lane for each model that a worker ever served: clients cannot make new ones.
        self._lanes: dict[str, _Lane] = {}
        table.on_change(self._workers_changed)

    def ticket(self, model: str, *, key: str = "", priority: str = "default") -> Ticket:
        """A context manager that holds one of the model's slots; entering it waits for one.

        Entering raises Overloaded. A model without a ready worker needs no slot: the router refuses it
        with the right error.
        """
        return Ticket(self, model, key, priority)

    def capacity(self, model: str) -> int:
        """Requests of a model that may run at once."""
        return self._worker_limit * len(self._table.ready(model))

    def knows(self, model: str) -> bool:
        """Whether the model is one that a worker has served."""
        return model in self._lanes

    def counts(self) -> list[tuple[str, int, int]]:
        """(model, requests that run, requests that wait) for each model."""
        return [(lane.model, lane.running, len(lane.queue)) for lane in self._lanes.values()]

    def running(self, model: str) -> int:
        """Requests of a model that run now."""
        lane = self._lanes.get(model)
        return lane.running if lane else 0

    def waiting(self, model: str) -> int:
        """Requests of a model that wait now."""
        lane = self._lanes.get(model)
        return len(lane.queue) if lane else 0

    def wait_at(self, lane: _Lane, position: int) -> float:
        """Seconds until the one at `position` may run: slots come free every mean duration / capacity."""
        return position * lane.mean_duration / max(1, self.capacity(lane.model))

    async def _enter(self, ticket: Ticket) -> None:
        capacity = self.capacity(ticket.model)
        if not capacity and not self._table.is_starting(ticket.model):
            return
        lane = self._lanes.get(ticket.model)
        if lane is None:
            lane = self._lanes[ticket.model] = _Lane(ticket.model)
        if lane.running < capacity and not lane.queue:
            self._run(lane, ticket)
        else:
            await self._wait(lane, ticket)

    async def _wait(self, lane: _Lane, ticket: Ticket) -> None:
        self._make_room(lane, ticket)
        loop = asyncio.get_running_loop()
        turn = ticket._turn = loop.create_future()
        ticket._lane = lane
        lane.queue.push(ticket, ticket.key, ticket.priority)
        alarm = loop.call_later(self._queue_timeout, self._refuse, lane, ticket, "too long")
        try:
            await turn
        except BaseException:
            lane.queue.remove(ticket)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(ticket)  # the client left in the moment its turn came
            else:
                ticket._lane = None
            raise
        finally:
            alarm.cancel()

    def _make_room(self, lane: _Lane, ticket: Ticket) -> None:
        if len(lane.queue) < self._queue_size:
            return
        other = lane.queue.crowded_out(ticket.key, ticket.priority)
        if other is None:
            raise self._overloaded(lane, "too many requests wait")
        self._refuse(lane, other, "too many requests wait")

    def _refuse(self, lane: _Lane, ticket: Ticket, why: str) -> None:
        """Ends a ticket's wait with 429, if it still waits."""
        if lane.queue.remove(ticket) and ticket._turn is not None and not ticket._turn.done():
            ticket._turn.set_exception(self._refusal(lane, why))

    def _refusal(self, lane: _Lane, why: str) -> Overloaded | NoWorker:
        if self.capacity(lane.model):
            return self._overloaded(lane, why)
        return NoWorker(
            f"No worker of model '{lane.model}' is ready yet: {why}. Try again in a moment.",
            headers=RETRY_AFTER,
        )

    def _overloaded(self, lane: _Lane, why: str) -> Overloaded:
        seconds = math.ceil(self.wait_at(lane, len(lane.queue) + 1))
        return Overloaded(
            f"Model '{lane.model}' is busy: {why}. Try again in a moment.",
            headers={"Retry-After": str(min(max(1, seconds), LONGEST_RETRY_AFTER))},
        )

    def _run(self, lane: _Lane, ticket: Ticket) -> None:
        lane.running += 1
        ticket._lane = lane
        ticket._start = self._clock()

    def _leave(self, ticket: Ticket) -> None:
        lane = ticket._lane
        if lane is None:
            return
        ticket._lane = None
        lane.running -= 1
        lane.learn(self._clock() - ticket._start)
        if lane.queue:
            self._promote(lane)

    def _promote(self, lane: _Lane) -> None:
        """Starts the requests that are next, as far as there is room."""
        free = self.capacity(lane.model) - lane.running
        while free > 0 and lane.queue:
            ticket = lane.queue.pop()
            if ticket._turn is not None and not ticket._turn.done():  # done: its client left
                self._run(lane, ticket)
                ticket._turn.set_result(None)
                free -= 1

    def _workers_changed(self) -> None:
        for lane in self._lanes.values():
            if not lane.queue:
                continue
            if self.capacity(lane.model) or self._table.is_starting(lane.model):
                self._promote(lane)
            elif not lane.running:
                self._dismiss(lane)

    def _dismiss(self, lane: _Lane) -> None:
        """Ends all waits for a worker that will not come: the starting one is gone."""
        while lane.queue:
            ticket = lane.queue.pop()
            if ticket._turn is not None and not ticket._turn.done():
                ticket._turn.set_exception(self._refusal(lane, "the one that was starting is gone"))
