"""The agent beside one engine: starts it, waits for a token, registers, beats, restarts, drains."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kodolly import serving
from kodolly.engines.client import EngineClient
from kodolly.engines.command import EngineCommand
from kodolly.errors import ControllerError, EngineCallError, EngineStartError
from kodolly.leash.process import LeashedProcess
from kodolly.protocol.wire import Extension, WorkerState, WorkerStatus
from kodolly.worker.registration import ControllerClient

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
CONTROLLER_RETRY = 1.0
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 30.0
# An engine that ran this long before it died is started again without waiting longer each time.
HEALTHY_RUN = 60.0
ENGINE_GRACE = 10.0


@dataclass(frozen=True)
class Announcement:
    """What the agent tells the controller about its worker, state and load aside."""

    name: str  # base URL, the worker's key
    model_names: tuple[str, ...]
    speed: float
    extension: Extension


class Agent:
    """One engine's life. `run()` until cancelled by `drain()`."""

    def __init__(
        self,
        announcement: Announcement,
        engine: EngineClient,
        controller: ControllerClient,
        command: EngineCommand | None,
        *,
        start_timeout: float,
        drain_timeout: float,
    ) -> None:
        self.state = WorkerState.STARTING
        self.announcement = announcement
        self.engine = engine
        self.context_length: int | None = None
        self._controller = controller
        self._command = command
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self._process: LeashedProcess | None = None
        self._news = asyncio.Event()
        self._was_ready = False
        self._tasks: Sequence[asyncio.Task[None]] = ()

    @property
    def engine_pid(self) -> int:
        """The engine's process id; 0 while none of ours runs."""
        process = self._process
        return process.pid if process is not None and process.running else 0

    def start(self) -> None:
        """Begins to run the engine and to tell the controller."""
        engine = self._run_engine() if self._command else self._follow_engine()
        self._tasks = (asyncio.create_task(engine), asyncio.create_task(self._tell_controller()))

    def leave_rotation(self) -> None:
        """Takes no new requests from now on; the controller is told at once."""
        self._was_ready = self.state is WorkerState.READY
        self._set_state(WorkerState.DRAINING)

    async def drain(self) -> None:
        """Lets running requests finish within the bound, says goodbye, stops the engine."""
        if self.state is not WorkerState.DRAINING:
            self.leave_rotation()
        log.info("draining: up to %.0f s for running requests", self._drain_timeout)
        deadline = time.monotonic() + self._drain_timeout
        while self._was_ready and time.monotonic() < deadline and await self.queue_length():
            await asyncio.sleep(POLL_INTERVAL)
        await self._controller.deregister(self.announcement.name)
        process = self._process
        await serving.cancel_and_wait(*self._tasks)
        if process is not None:
            await process.stop()
        log.info("drained")

    async def queue_length(self) -> int:
        """Requests running and waiting in the engine; 0 when it does not tell."""
        try:
            return await self.engine.load() or 0
        except EngineCallError:
            return 0

    async def status(self) -> WorkerStatus:
        """FastChat's worker_status."""
        return WorkerStatus(
            model_names=list(self.announcement.model_names),
            speed=self.announcement.speed,
            queue_length=await self.queue_length(),
        )

    def extension(self) -> Extension:
        """KoDolly's part of registration and heartbeat, as of now."""
        update = {"state": self.state, "context_length": self.context_length}
        return self.announcement.extension.model_copy(update=update)

    # the engine

    async def _run_engine(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            started = time.monotonic()
            code = await self._one_engine_life()
            if self.state is WorkerState.DRAINING:
                return
            self._set_state(WorkerState.STARTING)
            if time.monotonic() - started > HEALTHY_RUN:
                backoff = FIRST_BACKOFF
            log.error("engine ended with code %s; starting it again in %.0f s", code, backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _one_engine_life(self) -> int:
        if self._command is None:
            raise EngineStartError("this engine is not ours to start")
        command = self._command
        log.info("starting engine: %s", " ".join(command.argv))
        process = await LeashedProcess.start(command.argv, env=command.env, grace=ENGINE_GRACE)
        self._process = process
        end = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._until_token(self._start_timeout))
        try:
            await asyncio.wait({end, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not end.done() and ready.exception() is None:
                log.info("engine made its first token (pid %d)", process.pid)
                self._set_state(WorkerState.READY)
                return await end
            if not end.done():
                log.error("engine: %s", ready.exception())
                await process.stop()
            return await end
        finally:
            await serving.cancel_and_wait(ready)

    async def _until_token(self, timeout: float) -> None:
        """Returns once the engine has made a token. Raises EngineStartError after `timeout`."""
        deadline = time.monotonic() + timeout
        model = self.announcement.model_names[0]
        while time.monotonic() < deadline:
            if await self.engine.healthy():
                try:
                    await self.engine.canary(model)
                    self.context_length = await self.engine.context_length(model)
                    return
                except EngineCallError as error:
                    log.info("no token yet: %s", error)
            await asyncio.sleep(POLL_INTERVAL)
        raise EngineStartError(f"made no token within {timeout:.0f} s")

    async def _follow_engine(self) -> None:
        """Watches an engine that somebody else runs."""
        while True:
            try:
                await self._until_token(self._start_timeout)
            except EngineStartError as error:
                log.error("engine: %s; still trying", error)
                continue
            self._set_state(WorkerState.READY)
            while await self.engine.healthy():
                await asyncio.sleep(POLL_INTERVAL)
            log.error("engine no longer answers")
            self._set_state(WorkerState.STARTING)

    def _set_state(self, state: WorkerState) -> None:
        if self.state is not WorkerState.DRAINING and state is not self.state:
            log.info("%s -> %s", self.state.value, state.value)
            self.state = state
            self._news.set()

    # the controller

    async def _tell_controller(self) -> None:
        known = False
        while True:
            pause = self.announcement.extension.heart_beat_interval
            self._news.clear()  # before telling: a change meanwhile must be told again
            try:
                known = await self._tell_once(known)
            except ControllerError as error:
                log.warning("%s", error)
                pause = min(pause, CONTROLLER_RETRY)
            try:
                await asyncio.wait_for(self._news.wait(), pause)
            except TimeoutError:
                continue

    async def _tell_once(self, known: bool) -> bool:
        """Beats, or registers if the controller does not know us; whether it does now."""
        if self.state is WorkerState.STARTING and not await self._controller.knows_states():
            return False  # a stock controller would send requests at once
        name, extension = self.announcement.name, self.extension()
        if known and await self._controller.beat(name, await self.queue_length(), extension):
            return True
        await self._controller.register(name, await self.status(), extension)
        log.info("registered at %s as %s", self._controller.url, name)
        return True
