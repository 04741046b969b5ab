"""The API's own copy of the controller's table, kept by its watch stream.

Nobody is asked per request. When the controller is away the last table stays in force; when it
comes back with an empty one, the old rows stay for a grace in which workers register again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState

log = logging.getLogger(__name__)

# A worker known to the controller before this one registers again within two of its beats, or a
# little later where machines are busy; a stock FastChat worker beats every 45 s.
GRACE_BEATS, LEAST_GRACE, STOCK_GRACE = 2.0, 5.0, 100.0
# A worker that refused a connection is passed over this long, or until the controller tells more.
SUSPECT_FOR = 2.0
# Seconds without any news after which the queues told last are no longer believed.
TOLD_FOR = 10.0


@dataclass
class Worker:
    """One worker as the router sees it.

    `inflight` counts this process's open requests, `foreign` those of others: what the worker told
    beyond our own. A heartbeat is a moment old when it arrives, so `peak`, the most that was open
    since the last one, is taken for our own: a request of ours that just ended is nobody else's.
    """

    row: WorkerRow
    inflight: int = 0
    foreign: int = 0
    peak: int = 0
    suspect_until: float = 0.0
    kept_until: float = 0.0  # only for one that a new controller has not heard of yet

    @property
    def extension(self) -> Extension | None:
        """What a KoDolly worker told beyond FastChat's protocol."""
        return self.row.kodolly

    @property
    def load(self) -> int:
        """Requests that run or wait there, as far as is known."""
        return self.inflight + self.foreign

    def expected_wait(self) -> float:
        """Load per speed."""
        return self.load / self.row.speed

    def book(self, requests: int = 1) -> None:
        """Counts requests that go there from now on, before the worker can tell of them."""
        self.inflight += requests
        self.peak = max(self.peak, self.inflight)

    def release(self, requests: int = 1) -> None:
        """Counts them no more."""
        self.inflight -= requests

    def tell(self, row: WorkerRow, *, first: bool = False) -> None:
        """Takes what the controller says. A row may be sent again because another one changed."""
        if first or row.queue_length != self.row.queue_length:
            self.foreign = max(0, row.queue_length - max(self.peak, self.inflight))
            self.peak = self.inflight
        if row.state is not self.row.state:
            self.suspect_until = 0.0
        self.row = row


class WorkerTable:
    """Workers by base URL, as of the newest snapshot."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers: dict[str, Worker] = {}
        self._clock = clock
        self._epoch: str | None = None
        self._orphans: dict[str, Worker] = {}
        self._applied = clock()
        # Ready workers by model, good until a snapshot comes or an orphan's grace ends.
        self._ready: dict[str, list[Worker]] = {}
        self._ready_until = -math.inf
        self._listeners: list[Callable[[], None]] = []
        self.loaded = asyncio.Event()

    def apply(self, snapshot: Snapshot) -> None:
        """Takes a new snapshot; counts of running requests and suspicions stay."""
        if self._epoch not in (None, snapshot.epoch):
            log.info("the controller is new: known workers get two beats to register again")
            self._orphan_all()
        self._epoch = snapshot.epoch
        fresh: dict[str, Worker] = {}
        for row in snapshot.workers:
            known = self._workers.get(row.name) or self._orphans.pop(row.name, None)
            worker = known or Worker(row)
            worker.tell(row, first=known is None)
            fresh[row.name] = worker
        self._workers = fresh
        self._applied = self._clock()
        self._ready_until = -math.inf
        self.loaded.set()
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every new snapshot."""
        self._listeners.append(listener)

    def _orphan_all(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            extension = worker.extension
            beat = extension.heart_beat_interval if extension else None
            worker.kept_until = now + (
                STOCK_GRACE if beat is None else max(LEAST_GRACE, GRACE_BEATS * beat)
            )
        self._orphans |= self._workers
        self._workers = {}

    def all(self) -> list[Worker]:
        """Every worker known, and those a new controller may still hear of."""
        now = self._clock()
        kept = [w for w in self._orphans.values() if w.kept_until > now]
        return [*self._workers.values(), *kept]

    def able(self, model: str) -> list[Worker]:
        """Ready workers of `model`, suspects included; the list is the table's own."""
        now = self._clock()
        if now >= self._ready_until:
            self._index()
        if now - self._applied > TOLD_FOR:
            for worker in self._ready.get(model, ()):
                worker.foreign = 0
        return self._ready.get(model) or []

    def trusted(self, model: str) -> list[Worker]:
        """Workers that may take a request for `model` now; suspects if there are no others."""
        able, now = self.able(model), self._clock()
        return [w for w in able if w.suspect_until <= now] or able

    def ready(self, model: str) -> list[Worker]:
        """As `trusted`, least loaded first."""
        return sorted(self.trusted(model), key=Worker.expected_wait)

    def suspect(self, worker: Worker) -> None:
        """Passes over a worker that did not answer, for a moment."""
        worker.suspect_until = self._clock() + SUSPECT_FOR

    def _index(self) -> None:
        self._ready = {}
        now = self._clock()
        self._orphans = {n: w for n, w in self._orphans.items() if w.kept_until > now}
        self._ready_until = min((w.kept_until for w in self._orphans.values()), default=math.inf)
        for worker in self.all():
            if worker.row.state is WorkerState.READY:
                for model in dict.fromkeys(worker.row.model_names):
                    self._ready.setdefault(model, []).append(worker)

    def models(self) -> list[str]:
        """Names that can be asked for now, sorted."""
        return sorted(
            {m for w in self.all() if w.row.state is WorkerState.READY for m in w.row.model_names}
        )

    def knows(self, model: str) -> bool:
        """Whether any worker, in whatever state, has offered this model."""
        return any(model in w.row.model_names for w in self.all())
