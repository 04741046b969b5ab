"""The controller's table of workers: their state, their load and their last heartbeat."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kodolly.errors import BadRequest
from kodolly.protocol.wire import (
    MAX_QUEUE,
    Change,
    Extension,
    HeartbeatRequest,
    Registration,
    Snapshot,
    WorkerRow,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

MAX_WORKERS = 4096
# Sweeps this far apart (seconds) mean that the controller itself was paused: no heartbeat could be
# received meanwhile.
PAUSE_THRESHOLD = 1.5
# A lost worker stays in the table this long (seconds), so that an operator can see it.
REMOVE_LOST_AFTER = 600.0
UNKNOWN = object()  # equal to no `kodolly` object of a heartbeat


@dataclass
class Entry:
    """One worker. Times are in seconds, by the registry's monotonic clock."""

    row: WorkerRow
    check_heart_beat: bool
    last_heartbeat: float
    silence_limit: float = (
        math.inf
    )  # seconds without a heartbeat after which it is lost, or removed
    drain_requested: bool = False  # by an operator; reset when the worker registers again
    owner: str | None = None  # the group whose token registered it; None: the controller's own
    # The `kodolly` object of the last heartbeat, not decoded further, while the row is as that
    # heartbeat made it: an equal one brings nothing but a queue length.
    last_extension: Any = UNKNOWN


@dataclass
class Pending:
    """What has changed since the last `Change`: workers by name. `is_urgent`: more than loads."""

    rows: dict[str, None] = field(default_factory=dict)
    removed: dict[str, None] = field(default_factory=dict)
    loads: dict[str, None] = field(default_factory=dict)
    any: asyncio.Event = field(default_factory=asyncio.Event)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)


class Registry:
    """All workers by base URL. Not thread-safe: for one event loop."""

    def __init__(
        self,
        expiration: float,
        missed_beats: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        pause_threshold: float = PAUSE_THRESHOLD,
    ) -> None:
        """`expiration`: seconds without a heartbeat after which a FastChat worker is lost.

        `missed_beats`: the same for our own workers, in their heartbeat intervals.
        `pause_threshold`: seconds between two sweeps that mean this process was paused.
        """
        self.heartbeats = self.registrations = 0  # that were taken
        self.epoch = uuid.uuid4().hex
        self.version = 0
        self._entries: dict[str, Entry] = {}
        self._next_number = 0
        self._pending = Pending()
        self._last_change = 0  # version of the last `Change`
        self._expiration = expiration
        self._missed_beats = missed_beats
        self._clock = clock
        self._last_sweep: float | None = None
        self._pause_threshold = pause_threshold

    def register(
        self, registration: Registration, status: WorkerStatus, owner: str | None = None
    ) -> None:
        """Adds or replaces a worker. `owner`: its group. Raises BadRequest when the table is full."""
        name = registration.worker_name
        if name not in self._entries and len(self._entries) >= MAX_WORKERS:
            raise BadRequest(f"the table is full: {MAX_WORKERS} workers")
        extension = registration.kodolly
        previous = self._entries.get(name)
        if previous is None:
            self._next_number += 1
        row = WorkerRow(
            name=name,
            model_names=status.model_names,
            speed=status.speed,
            queue_length=status.queue_length,
            state=extension.state if extension else WorkerState.READY,
            multimodal=registration.multimodal,
            kodolly=extension,
            number=previous.row.number if previous else self._next_number,
        )
        entry = Entry(row, registration.check_heart_beat, self._clock(), owner=owner)
        entry.silence_limit = self._silence_limit(entry)
        self._entries[name] = entry
        self.registrations += 1
        log.info("registered %s: %s, %s", name, ", ".join(row.model_names), row.state.value)
        self._row_changed(name)

    def load_only_heartbeat(self, data: dict[str, Any]) -> bool:
        """Takes a decoded heartbeat that brings no more than a queue length; False for any other.

        This is the path of nearly all heartbeats. Its cost decides how many workers one controller
        can have, so it checks only what may differ from the last one.
        """
        name, queue = data.get("worker_name"), data.get("queue_length")
        if type(name) is not str or type(queue) is not int or not 0 <= queue <= MAX_QUEUE:
            return False
        entry = self._entries.get(name)
        if entry is None or data.get("kodolly") != entry.last_extension:
            return False
        self.heartbeats += 1
        entry.last_heartbeat = self._clock()
        if queue != entry.row.queue_length:
            self._load_changed(entry, queue)
        return True

    def has(self, name: str) -> bool:
        """Whether a worker is in the table."""
        return name in self._entries

    def is_alive(self, name: str) -> bool:
        """Whether a worker is in the table and not lost."""
        return name in self._entries and self._entries[name].row.state is not WorkerState.LOST

    def owner(self, name: str) -> str | None:
        """The group that registered a worker; None if it has none, or is unknown."""
        entry = self._entries.get(name)
        return None if entry is None else entry.owner

    def heartbeat(self, request: HeartbeatRequest) -> bool:
        """Takes a heartbeat; False if the worker is unknown and must register again."""
        entry = self._entries.get(request.worker_name)
        if entry is None:
            return False
        self.heartbeats += 1
        entry.last_heartbeat = self._clock()
        state = request.kodolly.state if request.kodolly else WorkerState.READY
        self._update(entry, state, request.queue_length, request.kodolly or entry.row.kodolly)
        entry.last_extension = UNKNOWN
        return True

    def expect_extension(self, name: str, extension: Any) -> None:
        """The `kodolly` object of the heartbeat just taken, as it came: an equal one will be cheap."""
        if name in self._entries:
            self._entries[name].last_extension = extension

    def drain(self, name: str) -> bool:
        """Takes a worker out of rotation until it registers again; False if unknown."""
        if name in self._entries:
            self._entries[name].drain_requested = True
        return self._set_state(name, WorkerState.DRAINING)

    def remove(self, name: str) -> bool:
        """Removes a worker from the table; False if unknown."""
        if self._entries.pop(name, None) is None:
            return False
        log.info("deregistered %s", name)
        self._pending.rows.pop(name, None)
        self._pending.loads.pop(name, None)
        self._pending.removed[name] = None
        self._publish(urgent=True)
        return True

    def mark_lost(self, name: str) -> bool:
        """Takes a worker that does not answer out of rotation; False if unknown."""
        return self._set_state(name, WorkerState.LOST)

    def refresh(self, name: str, status: WorkerStatus) -> None:
        """Takes a worker's answer to /worker_get_status. It counts as a heartbeat."""
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.last_heartbeat = self._clock()
        entry.row = entry.row.model_copy(update=dict(status))
        entry.last_extension = UNKNOWN
        self._row_changed(name)
        if entry.row.state is WorkerState.LOST and entry.row.kodolly is None:
            self._set_state(name, WorkerState.READY)

    def sweep(self) -> None:
        """Marks workers without heartbeats as lost, and removes those lost long ago."""
        now = self._clock()
        self._extend_after_pause(now)
        silent = [
            (name, entry, silence)
            for name, entry in self._entries.items()
            if (silence := now - entry.last_heartbeat) > entry.silence_limit
        ]
        for name, entry, silence in silent:
            if entry.row.state is WorkerState.LOST:
                self.remove(name)
            else:
                log.warning("lost %s: no heartbeat for %.1f s", name, silence)
                self.mark_lost(name)

    def _extend_after_pause(self, now: float) -> None:
        """Does not count the time in which this process itself did not run."""
        pause = 0.0 if self._last_sweep is None else now - self._last_sweep
        self._last_sweep = now
        if pause > self._pause_threshold:
            log.warning("the controller stood still for %.1f s", pause)
            for entry in self._entries.values():
                entry.last_heartbeat += pause

    def rows(self) -> list[WorkerRow]:
        """Every worker, in the order of registration."""
        return [entry.row for entry in self._entries.values()]

    def silences(self) -> list[tuple[WorkerRow, float]]:
        """Every worker, with the seconds since its last heartbeat."""
        now = self._clock()
        return [(e.row, max(0.0, now - e.last_heartbeat)) for e in self._entries.values()]

    def ready(self) -> list[WorkerRow]:
        """The workers that may get requests."""
        return [row for row in self.rows() if row.state is WorkerState.READY]

    def snapshot(self) -> Snapshot:
        """The whole table, as the watch stream sends it first."""
        return Snapshot(epoch=self.epoch, version=self.version, workers=self.rows())

    async def wait_for_change(self) -> None:
        """Returns once there is something to take by `take_change`."""
        await self._pending.any.wait()

    async def wait_for_urgent_change(self) -> None:
        """The same, if it is more than loads."""
        await self._pending.urgent.wait()

    def take_change(self) -> Change:
        """All that has changed since the last call."""
        pending, self._pending = self._pending, Pending()
        entries, since = self._entries, self._last_change
        self._last_change = self.version
        rows = [entries[name].row for name in pending.rows]
        loads = [entries[name].row for name in pending.loads if name not in pending.rows]
        return Change(
            epoch=self.epoch,
            since=since,
            version=self.version,
            rows=rows,
            removed=[name for name in pending.removed if name not in pending.rows],
            loads=[(row.number, row.queue_length) for row in loads],
        )

    def _set_state(self, name: str, state: WorkerState) -> bool:
        entry = self._entries.get(name)
        if entry is None:
            return False
        extension = entry.row.kodolly
        if extension is not None:
            extension = extension.model_copy(update={"state": state})
        self._update(entry, state, entry.row.queue_length, extension)
        entry.last_extension = UNKNOWN
        return True

    def _update(
        self, entry: Entry, state: WorkerState, queue: int, extension: Extension | None
    ) -> None:
        row = entry.row
        if entry.drain_requested and state not in (WorkerState.LOST, WorkerState.STALLED):
            state = WorkerState.DRAINING
        if state is not row.state:
            log.info("%s: %s -> %s", row.name, row.state.value, state.value)
        if state is row.state and extension == row.kodolly:
            if queue != row.queue_length:
                self._load_changed(entry, queue)
            return
        update = {"state": state, "queue_length": queue, "kodolly": extension}
        entry.row = row.model_copy(update=update)
        entry.silence_limit = self._silence_limit(entry)
        self._row_changed(row.name)

    def _silence_limit(self, entry: Entry) -> float:
        """Seconds without a heartbeat after which a worker is lost, or a lost one removed."""
        extension = entry.row.kodolly
        if entry.row.state is WorkerState.LOST:
            return REMOVE_LOST_AFTER
        if not entry.check_heart_beat:
            return math.inf
        if extension is None:
            return self._expiration
        return extension.heart_beat_interval * self._missed_beats

    def _load_changed(self, entry: Entry, queue: int) -> None:
        entry.row.queue_length = queue
        self._pending.loads[entry.row.name] = None
        self._publish(urgent=False)

    def _row_changed(self, name: str) -> None:
        self._pending.rows[name] = None
        self._publish(urgent=True)

    def _publish(self, *, urgent: bool) -> None:
        """The table has changed: wakes who waits for that."""
        self.version += 1
        self._pending.any.set()
        if urgent:
            self._pending.urgent.set()
