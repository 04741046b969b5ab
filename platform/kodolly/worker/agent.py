"""The agent of one engine: starts and restarts it, keeps the controllers informed, drains it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kodolly.engines.client import EngineClient, context_of_card
from kodolly.engines.command import EngineCommand
from kodolly.errors import EngineCallError, EngineStartError, SettingsError
from kodolly.http import server
from kodolly.observe.histogram import LOAD_SECONDS, Histogram
from kodolly.processes.leashed_process import LeashedProcess
from kodolly.processes.logged_output import logged_output
from kodolly.processes.restarts import RestartBackoff
from kodolly.protocol.wire import Extension, WorkerState, WorkerStatus
from kodolly.settings import is_foreign_to_engines
from kodolly.worker.cpu import engine_seconds
from kodolly.worker.gpus.lease import Lease
from kodolly.worker.gpus.request import GpuRequest
from kodolly.worker.health import EngineMonitor, HealthLimits
from kodolly.worker.registration import ControllerClient, Heartbeat

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.5  # seconds between two looks at an engine that starts or drains
LOAD_TIMEOUT = 2.0  # seconds an engine has to report its load
ENGINE_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
# A worker that drains must be idle for this long (seconds): a request sent just before the
# controller took it out of rotation may still arrive.
IDLE_BEFORE_STOP = 1.0
# Engines that ended one after the other without a token: after so many the worker says that it does not
# work, and after so many it ends, since the next engine would end as well.
# The second comes late: Docker counts anew after it, and must have called the worker unhealthy before.
FAILURES_TO_REPORT, FAILURES_TO_END = 2, 10


@dataclass(frozen=True)
class Announcement:
    """What the controllers are told about a worker, without its state and load.

    `name`: the worker's base URL, which is its key in the table. `speed`: its weight.
    """

    name: str
    model_names: tuple[str, ...]
    speed: float
    extension: Extension


class Agent:
    """Runs one engine from `start()` to `drain()`."""

    def __init__(
        self,
        announcement: Announcement,
        engine: EngineClient,
        controllers: Sequence[ControllerClient],
        command: EngineCommand | None,
        *,
        start_timeout: float,
        drain_timeout: float,
        limits: HealthLimits | None = None,
        first_wait: float = 1.0,
        engine_log: logging.Logger | None = None,
        gpus: GpuRequest | None = None,
    ) -> None:
        """`command`: starts the engine; None for an engine that somebody else runs.

        `start_timeout`: seconds until the engine's first token. `drain_timeout`: seconds for
        running requests. `first_wait`: seconds before an engine that ended is started again; each
        further wait is twice as long. `engine_log`: takes the engine's lines; without one they go
        where this process's own go, as they are. `gpus`: what the engine must have before it starts.
        """
        self.state = WorkerState.STARTING
        self.announcement = announcement
        self.engine = engine
        self.context_length: int | None = None
        self._context_lengths: dict[str, int] = {}  # of further models, where they differ
        # Why the engine was given up: no further one is started, and this process is told to end.
        self.failure: str | None = None
        self.is_loading = True  # the first engine has not made its first token yet
        self._engine_problem: str | None = None
        self.engine_kind = announcement.extension.engine
        self._command = command
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self._limits = limits or HealthLimits()
        self._first_wait = first_wait
        self._engine_log = engine_log
        self._gpus = gpus
        self.gpu_wait: str | None = None  # why the engine has no GPU yet
        self._made_token = False
        self._process: LeashedProcess | None = None
        self._monitor: EngineMonitor | None = None
        self._draining = self._was_ready = False
        self._drain_start: float | None = None
        self.engine_starts = self.stalls = 0
        self.load_times = Histogram(LOAD_SECONDS)  # from an engine's start to its first token
        self._last_load = 0
        self._engine_task: asyncio.Task[None] | None = None
        self._heartbeats = [Heartbeat(controller, self) for controller in controllers]
        self._heartbeat_tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The worker's base URL."""
        return self.announcement.name

    @property
    def engine_pid(self) -> int:
        """The engine's process id; 0 while it does not run, or is not ours."""
        process = self._process
        return process.pid if process is not None and process.running else 0

    @property
    def heartbeats(self) -> tuple[int, int]:
        """Heartbeats that controllers took, and those that failed."""
        beats = self._heartbeats
        return sum(beat.sent for beat in beats), sum(beat.failed for beat in beats)

    @property
    def problem(self) -> str | None:
        """Why this worker cannot serve, in a sentence: its engine ends, or no controller takes it."""
        if self._engine_problem is not None:
            return self._engine_problem
        refusals = [beat.refusal for beat in self._heartbeats]
        if refusals and all(refusals):
            return f"the controller refuses this worker: {refusals[0]}"
        return None

    def start(self) -> None:
        """Starts the engine and the heartbeats."""
        engine = self._run_engine() if self._command else self._follow_engine()
        self._engine_task = _critical_task(engine)
        self._heartbeat_tasks = [_critical_task(beat.run()) for beat in self._heartbeats]

    def leave_rotation(self) -> None:
        """Takes no new requests from now on, and says so to the controllers at once."""
        if self._draining:
            return
        self._draining = True
        self._was_ready = self.state is WorkerState.READY
        self._drain_start = time.monotonic()
        if self.state is not WorkerState.STALLED:
            self._set_state(WorkerState.DRAINING)

    async def drain(self) -> None:
        """Waits for running requests, stops the engine, and deregisters.

        The drain timeout counts from `leave_rotation`, which the HTTP server may have called
        before, when it began to wait for its own open responses.
        """
        self.leave_rotation()
        log.info("draining: up to %.0f s for running requests", self._drain_timeout)
        if self._was_ready:
            await self._until_idle((self._drain_start or 0.0) + self._drain_timeout)
        process = self._process
        await server.cancel_and_wait(self._engine_task)
        if process is not None:
            await process.stop()
        if self._gpus is not None:
            self._gpus.close()
        # Heartbeats end first: one that followed the deregistration would register the worker again.
        await server.cancel_and_wait(*self._heartbeat_tasks)
        await asyncio.gather(*(beat.deregister() for beat in self._heartbeats))
        log.info("drained")

    async def queue_length(self) -> int:
        """Requests running and waiting in the engine; the last known number if it is too busy."""
        with contextlib.suppress(EngineCallError, TimeoutError):
            async with asyncio.timeout(LOAD_TIMEOUT):
                self._last_load = max(0, await self.engine.load() or 0)
        return self._last_load if self.engine_pid or self._command is None else 0

    async def status(self) -> WorkerStatus:
        """FastChat's worker_status."""
        return self._status(await self.queue_length())

    def last_status(self) -> WorkerStatus:
        """The same from the monitor's last sample: heartbeats must not wait for the engine."""
        return self._status(self._monitor.load if self._monitor is not None else 0)

    def _status(self, load: int) -> WorkerStatus:
        return WorkerStatus(
            model_names=list(self.announcement.model_names),
            speed=self.announcement.speed,
            queue_length=load,
        )

    def extension(self) -> Extension:
        """KoDolly's additions to a registration or heartbeat, with the current state."""
        update = {
            "state": self.state,
            "context_length": self.context_length,
            "context_lengths": self._context_lengths,
            "chat_only": self.engine.chat_only,
            "pooling": self.engine.pooling,
            "capabilities": self._capabilities(),
            "engine": self.engine_kind,
        }
        return self.announcement.extension.model_copy(update=update)

    def _capabilities(self) -> list[str] | None:
        """What was announced, corrected by what the first canary showed."""
        announced = self.announcement.extension.capabilities
        if self.engine.pooling:
            return ["embeddings"]
        if announced is not None and self.engine.chat_only:
            return [name for name in announced if name != "completions"]
        return announced

    # the engine

    async def _run_engine(self) -> None:
        backoff = RestartBackoff(first=self._first_wait, longest=30.0, healthy_run=60.0)
        failures = 0
        while True:
            started = time.monotonic()
            self._made_token = False
            try:
                end = f"ended with code {await self._one_engine_life()}"
            except (EngineStartError, OSError) as error:
                end = f"cannot be started: {error}"
            if self._draining:
                return
            self._set_state(WorkerState.STARTING)
            failures = 0 if self._made_token else failures + 1
            if failures >= FAILURES_TO_REPORT:
                self._engine_problem = f"the engine {end}, {failures} times without a token"
            if failures >= FAILURES_TO_END:
                self._give_up(f"{self._engine_problem}: its own lines say why")
                return
            wait = backoff.wait_after(time.monotonic() - started)
            log.error("engine %s; starting it again in %.0f s", end, wait)
            await asyncio.sleep(wait)

    def _give_up(self, failure: str) -> None:
        log.error("%s", failure)
        self.failure = failure
        os.kill(os.getpid(), signal.SIGTERM)

    async def _one_engine_life(self) -> int:
        if self._command is None:
            raise EngineStartError("this engine is not ours to start")
        command = self._command
        lease = await self._lease_gpus()
        await self._require_free_port()
        log.info("starting engine: %s", " ".join(command.argv))
        log_to = self._engine_log
        with contextlib.nullcontext() if log_to is None else logged_output(log_to) as output:
            process = await LeashedProcess.start(
                command.argv,
                env={**command.env, "CUDA_VISIBLE_DEVICES": ",".join(lease.uuids)}
                if lease
                else command.env,
                without=is_foreign_to_engines,
                output=output,
                grace=ENGINE_GRACE,
                descriptors=lease.descriptors if lease else (),
            )
        self._process = process
        self.engine_starts += 1
        started = time.monotonic()
        end = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._until_token(self._start_timeout))
        try:
            await asyncio.wait({end, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not end.done() and ready.exception() is None:
                log.info("engine made its first token (pid %d)", process.pid)
                self.load_times.observe(time.monotonic() - started)
                self._made_token = True
                self._engine_problem = None
                self._set_state(WorkerState.READY)
                await self._until_stuck_or(end, process.pid)
            elif not end.done():
                log.error("engine: %s", ready.exception())
            if not end.done():
                self._set_state(WorkerState.STARTING)
                await process.stop()
            self._last_load = 0
            return await end
        finally:
            await server.cancel_and_wait(ready)

    async def _lease_gpus(self) -> Lease | None:
        """The GPUs of the next engine; waits until there are enough, and their memory is free."""
        if self._gpus is None:
            return None

        def waits(reason: str | None) -> None:
            self.gpu_wait = reason

        try:
            lease = await self._gpus.lease(waits)
        except SettingsError as error:
            raise EngineStartError(str(error)) from error
        await self._gpus.until_memory_is_free(lease)
        return lease

    async def _require_free_port(self) -> None:
        """Raises EngineStartError if another process listens on the engine's port."""
        url = urlsplit(self.engine.url)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(url.hostname, url.port)
            writer.close()
            raise EngineStartError(
                f"port {url.port} is taken by another process; choose another with --engine-port"
            )

    async def _until_stuck_or(self, end: asyncio.Task[int], pid: int) -> None:
        """Returns when the engine has ended, or has been stuck for `restart_after` seconds."""
        stuck = asyncio.create_task(self._until_stuck(pid))
        try:
            await asyncio.wait({end, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if stuck.done():
                stuck.result()
                log.error("the engine stays stuck: it is stopped and started anew")
        finally:
            await server.cancel_and_wait(stuck)

    async def _until_stuck(self, pid: int) -> None:
        """Switches between READY and STALLED; returns when a stall lasts for `restart_after`."""
        on_cpu = self._command is not None and self._command.on_cpu
        async with self._monitoring(lambda: engine_seconds(pid) if on_cpu else None) as monitor:
            while True:
                try:
                    problem = await monitor.until_stalled()
                except EngineCallError as error:  # its process ends, or only its HTTP server has
                    problem = f"is gone: {error}"
                self._stall(problem)
                if not await monitor.until_token(self._limits.restart_after):
                    return
                self._recover()

    @contextlib.asynccontextmanager
    async def _monitoring(
        self, cpu_seconds: Callable[[], float | None] = lambda: None
    ) -> AsyncIterator[EngineMonitor]:
        """A monitor of the running engine."""
        self._monitor = monitor = EngineMonitor(
            self.engine,
            self.announcement.model_names[0],
            self._limits,
            tracks_load=self._command is not None,  # our own engines get the flag for it
            cpu_seconds=cpu_seconds,
        )
        try:
            yield monitor
        finally:
            self._monitor = None
            await monitor.close()

    def _stall(self, problem: str) -> None:
        self.stalls += 1
        log.error("the engine %s: it leaves rotation", problem)
        self._set_state(WorkerState.STALLED)

    def _recover(self) -> None:
        log.info("the engine makes tokens again")
        self._set_state(WorkerState.READY)

    async def _until_token(self, timeout: float) -> None:
        """Returns once the engine has made a token. Raises EngineStartError after `timeout`."""
        deadline = time.monotonic() + timeout
        model, cause = self.announcement.model_names[0], ""
        while time.monotonic() < deadline:
            self.engine.forget()
            try:
                await self.engine.require_health()
                await self.engine.canary(model)
                await self._learn_contexts()
                self.engine_kind = self.engine_kind or await self.engine.owner(model)
                return
            except EngineCallError as error:
                if str(error) != cause:  # one line for one cause, not two a second
                    log.info("no token yet: %s", error)
                cause = str(error)
            await asyncio.sleep(POLL_INTERVAL)
        raise EngineStartError(f"made no token within {timeout:.0f} s" + (cause and f": {cause}"))

    async def _learn_contexts(self) -> None:
        """Asks the engine for the context lengths of its models."""
        first, *others = self.announcement.model_names
        self.context_length = await self.engine.context_length(first)
        if self._command is not None or not others:
            return  # adapters have their base's
        with contextlib.suppress(EngineCallError):
            cards = {card["id"]: context_of_card(card) for card in await self.engine.cards()}
            lengths = {name: cards.get(name) for name in others}
            self._context_lengths = {
                name: length
                for name, length in lengths.items()
                if length is not None and length != self.context_length
            }

    async def _follow_engine(self) -> None:
        """Monitors an engine that somebody else runs."""
        while True:
            try:
                await self._until_token(self._start_timeout)
            except EngineStartError as error:
                log.error("engine: %s; still trying", error)
                continue
            self._set_state(WorkerState.READY)
            async with self._monitoring() as monitor:
                with contextlib.suppress(EngineCallError):
                    while True:
                        self._stall(await monitor.until_stalled())
                        await monitor.until_token(None)
                        self._recover()
            log.error("engine no longer answers")
            self._set_state(WorkerState.STARTING)

    async def _until_idle(self, deadline: float) -> None:
        """Returns once the engine has been idle for a moment, or at the deadline."""
        last_busy = time.monotonic()
        while (now := time.monotonic()) < deadline and now - last_busy < IDLE_BEFORE_STOP:
            await asyncio.sleep(min(POLL_INTERVAL, IDLE_BEFORE_STOP / 4))
            if await self.queue_length():
                last_busy = time.monotonic()

    def _set_state(self, state: WorkerState) -> None:
        # A worker that drains stays out of rotation. But a stall is still reported: the streams of
        # this engine would otherwise wait for it, instead of continuing on another worker.
        if self._draining and state is not WorkerState.STALLED:
            state = WorkerState.DRAINING
        if state is WorkerState.READY:
            self.is_loading = False
        if state is not self.state:
            log.info("%s -> %s", self.state.value, state.value)
            self.state = state
            for heartbeat in self._heartbeats:
                heartbeat.send_now()


def _critical_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that must not fail: if it does, this process ends, so that it is started again."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the worker's own task failed", exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task
