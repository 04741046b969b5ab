"""The API's own copy of the controller's table, kept by its watch stream.

Nobody is asked per request. When the controller is away the last table stays in force; when it
comes back with an empty one, the old rows stay for a grace in which workers register again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState

log = logging.getLogger(__name__)

# A worker known to the controller before this one registers again within two of its beats;
# a stock FastChat worker beats every 45 s.
GRACE_BEATS, STOCK_GRACE = 2.0, 100.0
# A worker that refused a connection is passed over this long, or until the controller tells more.
SUSPECT_FOR = 2.0


@dataclass
class Worker:
    """One worker as the router sees it; `inflight` counts this process's open requests."""

    row: WorkerRow
    inflight: int = 0
    suspect_until: float = 0.0
    kept_until: float = 0.0  # only for one that a new controller has not heard of yet

    @property
    def extension(self) -> Extension | None:
        """What a KoDolly worker told beyond FastChat's protocol."""
        return self.row.kodolly

    def expected_wait(self) -> float:
        """Load per speed. The queue a heartbeat told includes our own requests: no double count."""
        return max(self.inflight, self.row.queue_length) / self.row.speed


class WorkerTable:
    """Workers by base URL, as of the newest snapshot."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers: dict[str, Worker] = {}
        self._clock = clock
        self._epoch: str | None = None
        self._orphans: dict[str, Worker] = {}
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
            if worker.row.state is not row.state:
                worker.suspect_until = 0.0
            worker.row = row
            fresh[row.name] = worker
        self._workers = fresh
        self.loaded.set()

    def _orphan_all(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            extension = worker.extension
            beat = extension.heart_beat_interval if extension else None
            worker.kept_until = now + (STOCK_GRACE if beat is None else GRACE_BEATS * beat)
        self._orphans |= self._workers
        self._workers = {}

    def all(self) -> list[Worker]:
        """Every worker known, and those a new controller may still hear of."""
        now = self._clock()
        kept = [w for w in self._orphans.values() if w.kept_until > now]
        return [*self._workers.values(), *kept]

    def ready(self, model: str) -> list[Worker]:
        """Workers that may take a request for `model` now, least loaded first."""
        now = self._clock()
        able = [w for w in self.all() if w.row.serves(model)]
        trusted = [w for w in able if w.suspect_until <= now]
        return sorted(trusted or able, key=Worker.expected_wait)

    def suspect(self, worker: Worker) -> None:
        """Passes over a worker that did not answer, for a moment."""
        worker.suspect_until = self._clock() + SUSPECT_FOR

    def models(self) -> list[str]:
        """Names that can be asked for now, sorted."""
        return sorted(
            {m for w in self.all() if w.row.state is WorkerState.READY for m in w.row.model_names}
        )

    def knows(self, model: str) -> bool:
        """Whether any worker, in whatever state, has offered this model."""
        return any(model in w.row.model_names for w in self.all())
