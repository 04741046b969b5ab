"""The API's own copy of the controller's table, kept by its watch stream.

No request waits for the controller. When it is away the last table stays in force; when it comes
back with an empty one, the old rows stay for a grace period in which workers register again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.api.request import Preset
from kodolly.protocol.wire import Change, Extension, Snapshot, WorkerRow, WorkerState

log = logging.getLogger(__name__)

# Grace periods: a worker of the earlier controller registers again within two of its heartbeats, or
# a little later (s) where machines are busy; a FastChat worker sends one every 45 s.
GRACE_BEATS, LEAST_GRACE, FASTCHAT_GRACE = 2.0, 5.0, 100.0
# Seconds for which a worker that failed a request is used last, or until its state changes.
SUSPECT_S = 2.0
# Seconds without a snapshot after which other processes' requests in the last one do not count.
QUEUE_NEWS_LIFETIME_S = 10.0


@dataclass
class Worker:
    """One worker as the router sees it.

    `inflight` counts this process's open requests, `foreign` those of other processes: the worker's
    queue without our own. A heartbeat is a moment old when it arrives, so our own are taken to be
    `peak`, the most that were open since the last one: one that just ended is not foreign.
    """

    row: WorkerRow
    queue: int = -1  # requests there by its last heartbeat
    inflight: int = 0
    foreign: int = 0
    peak: int = 0
    suspect_until: float = 0.0
    # Whether its engine takes `return_token_ids`; None before it has been sent any.
    takes_token_ids: bool | None = None
    grace_until: float = 0.0  # only for one that has not registered at a new controller yet

    @property
    def extension(self) -> Extension | None:
        """What a KoDolly worker sends beyond FastChat's protocol; None for a FastChat worker."""
        return self.row.kodolly

    @property
    def load(self) -> int:
        """Requests that run or wait there, as of the last heartbeat and our own bookings."""
        return self.inflight + self.foreign

    def context_of(self, model: str) -> int | None:
        """Tokens of prompt and answer together for one of its models; None if unknown."""
        return self.row.kodolly.context_of(model) if self.row.kodolly else None

    def expected_wait(self) -> float:
        """Load divided by speed."""
        return self.load / self.row.speed

    def book(self, requests: int = 1) -> None:
        """Counts requests that go there from now on, before a heartbeat can count them."""
        self.inflight += requests
        self.peak = max(self.peak, self.inflight)

    def release(self, requests: int = 1) -> None:
        """Counts them no more."""
        self.inflight -= requests

    def take_load(self, queue: int) -> None:
        """Takes the queue length of a heartbeat; an unchanged one tells nothing new."""
        if queue != self.queue:
            self.queue = queue
            self.foreign = max(0, queue - max(self.peak, self.inflight))
            self.peak = self.inflight

    def update(self, row: WorkerRow) -> None:
        """Takes a row of a snapshot, which may be unchanged: a snapshot holds all rows."""
        self.take_load(row.queue_length)
        if row.state is not self.row.state:
            self.suspect_until = 0.0
            self.takes_token_ids = None  # perhaps another engine by now
        self.row = row


def _presets(workers: list[Worker]) -> dict[str, Preset]:
    """Name of a model or alias -> its preset, for those that have any.

    An alias that several models claim stands for that of the ready worker that registered last. So it
    moves when a new worker claims it, and back when that one goes.
    """
    own = [w for w in workers if w.extension and (w.extension.aliases or w.extension.defaults)]
    if not own:
        return {}
    presets: dict[str, Preset] = {}
    for worker in sorted(own, key=lambda w: (w.row.state is WorkerState.READY, w.row.number)):
        extension = worker.extension
        assert extension is not None
        defaults = extension.defaults.model_dump(exclude_none=True) if extension.defaults else {}
        if defaults:
            presets |= {name: Preset(name, defaults) for name in worker.row.model_names}
        presets |= {alias: Preset(name, defaults) for alias, name in extension.aliases.items()}
    served = {name for worker in workers for name in worker.row.model_names}
    return {
        name: preset
        for name, preset in presets.items()
        if preset.model == name or name not in served
    }


class WorkerTable:
    """Workers by base URL, as of the newest snapshot."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers: dict[str, Worker] = {}
        self._by_number: dict[int, Worker] = {}
        self._clock = clock
        self._epoch: str | None = None
        self._orphans: dict[str, Worker] = {}
        self._applied = clock()
        # Ready workers by model, good until a snapshot comes or an orphan's grace ends.
        self._ready: dict[str, list[Worker]] = {}
        self._presets: dict[str, Preset] = {}
        self._unequal: set[str] = set()  # models whose ready workers cannot all take the same
        self._ready_until = -math.inf
        self._listeners: list[Callable[[], None]] = []
        self.loaded = asyncio.Event()

    def apply(self, snapshot: Snapshot) -> None:
        """Takes a new snapshot; counts of running requests and suspicions stay."""
        if self._epoch not in (None, snapshot.epoch):
            log.info("the controller is new: its workers get two beats to register again")
            self._orphan_all()
        self._epoch = snapshot.epoch
        self._workers = {row.name: self._updated(row) for row in snapshot.workers}
        self._rows_changed()
        self.loaded.set()

    def apply_change(self, change: Change) -> None:
        """Takes what has changed since the last snapshot or change."""
        for name in change.removed:
            self._workers.pop(name, None)
        for row in change.rows:
            self._workers[row.name] = self._updated(row)
        if change.rows or change.removed:
            self._rows_changed()
        for number, queue in change.loads:
            if (worker := self._by_number.get(number)) is not None:
                worker.take_load(queue)
        self._applied = self._clock()

    def _updated(self, row: WorkerRow) -> Worker:
        """The worker of a row, new or as it was with all that is counted for it."""
        worker = self._workers.get(row.name) or self._orphans.pop(row.name, None) or Worker(row)
        worker.update(row)
        return worker

    def _rows_changed(self) -> None:
        self._by_number = {worker.row.number: worker for worker in self._workers.values()}
        self._applied = self._clock()
        self._ready_until = -math.inf
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every snapshot or change that brings more than loads."""
        self._listeners.append(listener)

    def _orphan_all(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            extension = worker.extension
            beat = extension.heart_beat_interval if extension else None
            worker.grace_until = now + (
                FASTCHAT_GRACE if beat is None else max(LEAST_GRACE, GRACE_BEATS * beat)
            )
        self._orphans |= self._workers
        self._workers = {}

    def all(self) -> list[Worker]:
        """Every worker of the table, and those that may still register at a new controller."""
        now = self._clock()
        orphans = [w for w in self._orphans.values() if w.grace_until > now]
        return [*self._workers.values(), *orphans]

    def ready(self, model: str) -> list[Worker]:
        """Ready workers of `model`, suspects included; the list is the table's own."""
        now = self._clock()
        if now >= self._ready_until:
            self._index()
        if now - self._applied > QUEUE_NEWS_LIFETIME_S:
            for worker in self._ready.get(model, ()):
                worker.foreign = 0
        return self._ready.get(model) or []

    def trusted(self, model: str) -> list[Worker]:
        """Ready workers of `model` without the suspects, or the suspects if there are no others."""
        ready, now = self.ready(model), self._clock()
        return [w for w in ready if w.suspect_until <= now] or ready

    def by_wait(self, model: str) -> list[Worker]:
        """As `trusted`, the least loaded first."""
        return sorted(self.trusted(model), key=Worker.expected_wait)

    def suspect(self, worker: Worker) -> None:
        """Makes a worker that failed the last choice, for a moment."""
        worker.suspect_until = self._clock() + SUSPECT_S

    def preset(self, name: str) -> Preset | None:
        """What a request for a model, or for one of its aliases, is changed to; None for nothing."""
        if self._clock() >= self._ready_until:
            self._index()
        return self._presets.get(name)

    def aliases(self) -> dict[str, str]:
        """Alias -> the model that it stands for now, of those with a ready worker."""
        self.ready("")
        return {
            name: preset.model
            for name, preset in sorted(self._presets.items())
            if preset.model != name and preset.model in self._ready
        }

    def _index(self) -> None:
        self._ready = {}
        now = self._clock()
        self._orphans = {n: w for n, w in self._orphans.items() if w.grace_until > now}
        self._ready_until = min((w.grace_until for w in self._orphans.values()), default=math.inf)
        for worker in self.all():
            if worker.row.state is WorkerState.READY:
                for model in dict.fromkeys(worker.row.model_names):
                    self._ready.setdefault(model, []).append(worker)
        self._presets = _presets(self.all())
        self._unequal = {
            model
            for model, workers in self._ready.items()
            if len(
                {
                    (w.context_of(model), bool(w.extension and w.extension.chat_only))
                    for w in workers
                }
            )
            > 1
        }

    def is_unequal(self, model: str) -> bool:
        """Whether the ready workers of a model differ in context length or in what they offer.

        As of the last call of `ready` or `trusted`.
        """
        return model in self._unequal

    def smaller_context(self, worker: Worker, model: str) -> int | None:
        """The worker's context in tokens, if another ready worker of the model has a larger one."""
        own = worker.context_of(model)
        if own is None:
            return None
        larger = any((other.context_of(model) or 0) > own for other in self.ready(model))
        return own if larger else None

    def is_starting(self, model: str) -> bool:
        """Whether a worker of this model is starting, so that waiting for it makes sense."""
        return any(
            worker.row.state is WorkerState.STARTING and model in worker.row.model_names
            for worker in self.all()
        )

    def models(self) -> list[str]:
        """Names of the models with a ready worker, sorted."""
        return sorted(
            {m for w in self.all() if w.row.state is WorkerState.READY for m in w.row.model_names}
        )

    def has_offered(self, model: str) -> bool:
        """Whether any worker, in whatever state, has offered this model."""
        return any(model in w.row.model_names for w in self.all())
