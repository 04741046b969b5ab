"""The controller's table of workers: their state, their load and their last heartbeat."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.errors import BadRequest
from kodolly.protocol.wire import (
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


@dataclass
class Entry:
    """One worker. Times are in seconds, by the registry's monotonic clock."""

    row: WorkerRow
    check_heart_beat: bool
    last_heartbeat: float
    drain_requested: bool = False  # by an operator; reset when the worker registers again
    owner: str | None = None  # the group whose token registered it; None: the controller's own


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
        self.epoch = uuid.uuid4().hex
        self.version = 0
        self._entries: dict[str, Entry] = {}
        self._change = asyncio.Event()
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
        row = WorkerRow(
            name=name,
            model_names=status.model_names,
            speed=status.speed,
            queue_length=status.queue_length,
            state=extension.state if extension else WorkerState.READY,
            multimodal=registration.multimodal,
            kodolly=extension,
        )
        self._entries[name] = Entry(row, registration.check_heart_beat, self._clock(), owner=owner)
        log.info("registered %s: %s, %s", name, ", ".join(row.model_names), row.state.value)
        self._publish()

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
        entry.last_heartbeat = self._clock()
        state = request.kodolly.state if request.kodolly else WorkerState.READY
        extension = request.kodolly or entry.row.kodolly
        self._update(entry, state, request.queue_length, extension)
        return True

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
        self._publish()
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
        self._publish()
        if entry.row.state is WorkerState.LOST and entry.row.kodolly is None:
            self._set_state(name, WorkerState.READY)

    def sweep(self) -> None:
        """Marks workers without heartbeats as lost, and removes those lost long ago."""
        now = self._clock()
        self._extend_after_pause(now)
        for name, entry in list(self._entries.items()):
            silence = now - entry.last_heartbeat
            if entry.row.state is WorkerState.LOST:
                if silence > REMOVE_LOST_AFTER:
                    self.remove(name)
            elif entry.check_heart_beat and silence > self._silence_limit(entry):
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

    def ready(self) -> list[WorkerRow]:
        """The workers that may get requests."""
        return [row for row in self.rows() if row.state is WorkerState.READY]

    def snapshot(self) -> Snapshot:
        """The whole table, as the watch stream sends it."""
        return Snapshot(epoch=self.epoch, version=self.version, workers=self.rows())

    async def wait_beyond(self, version: int) -> None:
        """Returns once the table is newer than `version`."""
        while self.version <= version:
            await self._change.wait()

    def _set_state(self, name: str, state: WorkerState) -> bool:
        entry = self._entries.get(name)
        if entry is None:
            return False
        extension = entry.row.kodolly
        if extension is not None:
            extension = extension.model_copy(update={"state": state})
        self._update(entry, state, entry.row.queue_length, extension)
        return True

    def _update(
        self, entry: Entry, state: WorkerState, queue: int, extension: Extension | None
    ) -> None:
        row = entry.row
        if entry.drain_requested and state not in (WorkerState.LOST, WorkerState.STALLED):
            state = WorkerState.DRAINING
        if state is not row.state:
            log.info("%s: %s -> %s", row.name, row.state.value, state.value)
        update = {"state": state, "queue_length": queue, "kodolly": extension}
        new = row.model_copy(update=update)
        if new != row:
            entry.row = new
            self._publish()

    def _silence_limit(self, entry: Entry) -> float:
        """Seconds without a heartbeat after which the worker is lost."""
        if entry.row.kodolly is None:
            return self._expiration
        return entry.row.kodolly.heart_beat_interval * self._missed_beats

    def _publish(self) -> None:
        """The table has changed: wakes everyone in `wait_beyond`."""
        self.version += 1
        self._change.set()
        self._change = asyncio.Event()
