"""The controller's table of workers: who registered, how they are, when they last beat."""

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
    HeartBeat,
    Registration,
    Snapshot,
    WorkerRow,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

MAX_WORKERS = 4096
# Sweeps further apart mean that the controller itself stood still, and heard no beat meanwhile.
STOOD_STILL = 1.5
# A lost worker stays visible this long, so that an operator sees what went missing.
FORGET_LOST_AFTER = 600.0


@dataclass
class Entry:
    """One registered worker; times are of the registry's monotonic clock, in seconds."""

    row: WorkerRow
    check_heart_beat: bool
    last_beat: float
    drained: bool = False  # by an operator; holds until the worker registers anew


class Registry:
    """All workers by base URL. Not thread-safe: it lives on one event loop."""

    def __init__(
        self,
        expiration: float,
        missed_beats: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = uuid.uuid4().hex
        self.version = 0
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Event()
        self._expiration = expiration
        self._missed_beats = missed_beats
        self._clock = clock
        self._swept: float | None = None

    def register(self, registration: Registration, status: WorkerStatus) -> None:
        """Adds or replaces a worker. Raises BadRequest when the table is full."""
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
        self._entries[name] = Entry(row, registration.check_heart_beat, self._clock())
        log.info("registered %s: %s, %s", name, ", ".join(row.model_names), row.state.value)
        self._bump()

    def beat(self, beat: HeartBeat) -> bool:
        """Notes a heartbeat; False if the worker is unknown and must register again."""
        entry = self._entries.get(beat.worker_name)
        if entry is None:
            return False
        entry.last_beat = self._clock()
        state = beat.kodolly.state if beat.kodolly else WorkerState.READY
        extension = beat.kodolly or entry.row.kodolly
        self._update(entry, state, beat.queue_length, extension)
        return True

    def drain(self, name: str) -> bool:
        """Takes a worker out of rotation until it registers again; False if unknown."""
        if name in self._entries:
            self._entries[name].drained = True
        return self._set_state(name, WorkerState.DRAINING)

    def remove(self, name: str) -> bool:
        """Forgets a worker that said goodbye; False if unknown."""
        if self._entries.pop(name, None) is None:
            return False
        log.info("deregistered %s", name)
        self._bump()
        return True

    def lose(self, name: str) -> bool:
        """Marks a worker that does not answer; False if unknown."""
        return self._set_state(name, WorkerState.LOST)

    def refresh(self, name: str, status: WorkerStatus) -> None:
        """Takes a worker's own answer to /worker_get_status."""
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.last_beat = self._clock()
        entry.row = entry.row.model_copy(update=dict(status))
        self._bump()
        if entry.row.state is WorkerState.LOST and entry.row.kodolly is None:
            self._set_state(name, WorkerState.READY)

    def sweep(self) -> None:
        """Marks workers whose heartbeats stopped as lost, and forgets those lost for long."""
        now = self._clock()
        self._forgive(now)
        for name, entry in list(self._entries.items()):
            silent = now - entry.last_beat
            if entry.row.state is WorkerState.LOST:
                if silent > FORGET_LOST_AFTER:
                    self.remove(name)
            elif entry.check_heart_beat and silent > self._patience(entry):
                log.warning("lost %s: no heartbeat for %.1f s", name, silent)
                self.lose(name)

    def _forgive(self, now: float) -> None:
        """Holds nobody's silence against him for the time in which this process was not running."""
        pause = 0.0 if self._swept is None else now - self._swept
        self._swept = now
        if pause > STOOD_STILL:
            log.warning("the controller stood still for %.1f s", pause)
            for entry in self._entries.values():
                entry.last_beat += pause

    def rows(self) -> list[WorkerRow]:
        """Every worker, in the order of registration."""
        return [entry.row for entry in self._entries.values()]

    def ready(self) -> list[WorkerRow]:
        """The workers that may get requests."""
        return [row for row in self.rows() if row.state is WorkerState.READY]

    def snapshot(self) -> Snapshot:
        """The whole table, for a follower."""
        return Snapshot(epoch=self.epoch, version=self.version, workers=self.rows())

    async def wait_beyond(self, version: int) -> None:
        """Returns once the table is newer than `version`."""
        while self.version <= version:
            await self._changed.wait()

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
        if entry.drained and state not in (WorkerState.LOST, WorkerState.STALLED):
            state = WorkerState.DRAINING
        if state is not row.state:
            log.info("%s: %s -> %s", row.name, row.state.value, state.value)
        update = {"state": state, "queue_length": queue, "kodolly": extension}
        new = row.model_copy(update=update)
        if new != row:
            entry.row = new
            self._bump()

    def _patience(self, entry: Entry) -> float:
        """Seconds a worker may be silent: by its own interval if it told one."""
        if entry.row.kodolly is None:
            return self._expiration
        return entry.row.kodolly.heart_beat_interval * self._missed_beats

    def _bump(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()
