"""The agent beside one engine: starts it, waits for a token, registers, beats, restarts, drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

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
# An engine that leaves this many health calls in a row unanswered is hung, not busy.
WATCH_INTERVAL, MISSED_CALLS = 2.0, 4


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
        self._last_load = 0
        self._engine_task: asyncio.Task[None] | None = None
        self._controller_task: asyncio.Task[None] | None = None

    @property
    def engine_pid(self) -> int:
        """The engine's process id; 0 while none of ours runs."""
        process = self._process
        return process.pid if process is not None and process.running else 0

    def start(self) -> None:
        """Begins to run the engine and to tell the controller."""
        engine = self._run_engine() if self._command else self._follow_engine()
        self._engine_task = _vital(engine)
        self._controller_task = _vital(self._tell_controller())

    def leave_rotation(self) -> None:
        """Takes no new requests from now on; the controller is told at once."""
        if self.state is WorkerState.DRAINING:
            return
        self._was_ready = self.state is WorkerState.READY
        self._set_state(WorkerState.DRAINING)

    async def drain(self) -> None:
        """Lets running requests finish within the bound, says goodbye, stops the engine."""
        self.leave_rotation()
        log.info("draining: up to %.0f s for running requests", self._drain_timeout)
        deadline = time.monotonic() + self._drain_timeout
        while self._was_ready and time.monotonic() < deadline and await self.queue_length():
            await asyncio.sleep(POLL_INTERVAL)
        # No beat may follow the goodbye: the controller would ask us to register again.
        await serving.cancel_and_wait(self._controller_task)
        await self._controller.deregister(self.announcement.name)
        process = self._process
        await serving.cancel_and_wait(self._engine_task)
        if process is not None:
            await process.stop()
        log.info("drained")

    async def queue_length(self) -> int:
        """Requests running and waiting in the engine; what it told last when it is too busy to.

        A beat must not wait for a slow engine, or a loaded worker would look like a lost one.
        """
        patience = min(2.0, self.announcement.extension.heart_beat_interval / 2)
        with contextlib.suppress(EngineCallError, TimeoutError):
            async with asyncio.timeout(patience):
                self._last_load = max(0, await self.engine.load() or 0)
        return self._last_load if self.engine_pid or self._command is None else 0

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
            try:
                end = f"ended with code {await self._one_engine_life()}"
            except (EngineStartError, OSError) as error:
                end = f"cannot be started: {error}"
            if self.state is WorkerState.DRAINING:
                return
            self._set_state(WorkerState.STARTING)
            if time.monotonic() - started > HEALTHY_RUN:
                backoff = FIRST_BACKOFF
            log.error("engine %s; starting it again in %.0f s", end, backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _one_engine_life(self) -> int:
        if self._command is None:
            raise EngineStartError("this engine is not ours to start")
        command = self._command
        await self._require_free_port()
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
                await self._until_hung_or(end)
            elif not end.done():
                log.error("engine: %s", ready.exception())
            if not end.done():
                self._set_state(WorkerState.STARTING)
                await process.stop()
            self._last_load = 0
            return await end
        finally:
            await serving.cancel_and_wait(ready)

    async def _require_free_port(self) -> None:
        """Raises EngineStartError if somebody else's server holds the engine's port."""
        url = urlsplit(self.engine.url)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(url.hostname, url.port)
            writer.close()
            raise EngineStartError(
                f"port {url.port} is taken by another process; choose another with --engine-port"
            )

    async def _until_hung_or(self, end: asyncio.Task[int]) -> None:
        """Returns when the engine has ended, or no longer answers."""
        hung = asyncio.create_task(self._until_silent())
        try:
            await asyncio.wait({end, hung}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await serving.cancel_and_wait(hung)

    async def _until_silent(self) -> None:
        """Returns once the engine has left several health calls in a row unanswered."""
        missed = 0
        while missed < MISSED_CALLS:
            await asyncio.sleep(WATCH_INTERVAL)
            missed = 0 if await self.engine.healthy() else missed + 1
        log.error("engine left %d health calls unanswered: it is hung", missed)

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
            # Not wait_for: Python 3.11's forgets a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

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


def _vital(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task the worker cannot live without: if it fails, the process ends to be started anew."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the worker's own task failed", exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task
