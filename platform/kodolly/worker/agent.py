"""The agent beside one engine: starts it, waits for a token, registers, beats, restarts, drains."""

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

from kodolly.engines.client import EngineClient
from kodolly.engines.command import EngineCommand
from kodolly.errors import EngineCallError, EngineStartError
from kodolly.http import server
from kodolly.processes.leashed_process import LeashedProcess
from kodolly.protocol.wire import Extension, WorkerState, WorkerStatus
from kodolly.worker.cpu import engine_seconds
from kodolly.worker.health import EngineWatch, Patience
from kodolly.worker.registration import ControllerClient, Teller

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
LOAD_TIMEOUT = 2.0
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 30.0
# An engine that ran this long before it died is started again without waiting longer each time.
HEALTHY_RUN = 60.0
ENGINE_GRACE = 10.0
# Requests that were on their way when the worker left rotation arrive within this.
SETTLE = 1.0


@dataclass(frozen=True)
class Announcement:
    """What the agent tells the controller about its worker, state and load aside."""

    name: str  # base URL, the worker's key
    model_names: tuple[str, ...]
    speed: float
    extension: Extension


class Agent:
    """One engine's life, from `start()` to `drain()`."""

    def __init__(
        self,
        announcement: Announcement,
        engine: EngineClient,
        controllers: Sequence[ControllerClient],
        command: EngineCommand | None,
        *,
        start_timeout: float,
        drain_timeout: float,
        patience: Patience | None = None,
    ) -> None:
        self.state = WorkerState.STARTING
        self.announcement = announcement
        self.engine = engine
        self.context_length: int | None = None
        self._command = command
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self._patience = patience or Patience()
        self._process: LeashedProcess | None = None
        self._watch: EngineWatch | None = None
        self._leaving = self._was_ready = False
        self._left_at: float | None = None
        self._last_load = 0
        self._engine_task: asyncio.Task[None] | None = None
        self._tellers = [Teller(controller, self) for controller in controllers]
        self._telling: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The worker's base URL."""
        return self.announcement.name

    @property
    def engine_pid(self) -> int:
        """The engine's process id; 0 while none of ours runs."""
        process = self._process
        return process.pid if process is not None and process.running else 0

    def start(self) -> None:
        """Begins to run the engine and to tell the controllers."""
        engine = self._run_engine() if self._command else self._follow_engine()
        self._engine_task = _vital(engine)
        self._telling = [_vital(teller.run()) for teller in self._tellers]

    def leave_rotation(self) -> None:
        """Takes no new requests from now on; the controllers are told at once."""
        if self._leaving:
            return
        self._leaving = True
        self._was_ready = self.state is WorkerState.READY
        self._left_at = time.monotonic()
        if self.state is not WorkerState.STALLED:
            self._set_state(WorkerState.DRAINING)

    async def drain(self) -> None:
        """Lets running requests finish within the bound, stops the engine, says goodbye.

        The bound counts from `leave_rotation`: the server that waited for its own open answers
        before has used part of it.
        """
        self.leave_rotation()
        log.info("draining: up to %.0f s for running requests", self._drain_timeout)
        if self._was_ready:
            await self._until_idle((self._left_at or 0.0) + self._drain_timeout)
        process = self._process
        await server.cancel_and_wait(self._engine_task)
        if process is not None:
            await process.stop()
        # No beat may follow the goodbye: the controller would ask us to register again.
        await server.cancel_and_wait(*self._telling)
        await asyncio.gather(*(teller.goodbye() for teller in self._tellers))
        log.info("drained")

    async def queue_length(self) -> int:
        """Requests running and waiting in the engine; what it told last when it is too busy to."""
        with contextlib.suppress(EngineCallError, TimeoutError):
            async with asyncio.timeout(LOAD_TIMEOUT):
                self._last_load = max(0, await self.engine.load() or 0)
        return self._last_load if self.engine_pid or self._command is None else 0

    async def status(self) -> WorkerStatus:
        """FastChat's worker_status."""
        return self._status(await self.queue_length())

    def last_status(self) -> WorkerStatus:
        """The same without a question to the engine, which would hold up a beat."""
        return self._status(self._watch.load if self._watch is not None else 0)

    def _status(self, load: int) -> WorkerStatus:
        return WorkerStatus(
            model_names=list(self.announcement.model_names),
            speed=self.announcement.speed,
            queue_length=load,
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
            if self._leaving:
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

    async def _until_stuck_or(self, end: asyncio.Task[int], pid: int) -> None:
        """Returns when the engine has ended, or has made no step for so long that it must go."""
        stuck = asyncio.create_task(self._until_stuck(pid))
        try:
            await asyncio.wait({end, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if stuck.done():
                stuck.result()
                log.error("the engine stays stuck: it is stopped and started anew")
        finally:
            await server.cancel_and_wait(stuck)

    async def _until_stuck(self, pid: int) -> None:
        """READY while tokens come out, STALLED while not; returns after too long a stall."""
        on_cpu = self._command is not None and self._command.on_cpu
        async with self._watching(lambda: engine_seconds(pid) if on_cpu else None) as watch:
            while True:
                try:
                    wrong = await watch.until_stalled()
                except EngineCallError as error:  # about to end, or its server alone is gone
                    wrong = f"is gone: {error}"
                self._stall(wrong)
                if not await watch.until_token(self._patience.restart_after):
                    return
                self._recover()

    @contextlib.asynccontextmanager
    async def _watching(
        self, cpu_seconds: Callable[[], float | None] = lambda: None
    ) -> AsyncIterator[EngineWatch]:
        """A watch of the engine that runs now."""
        self._watch = watch = EngineWatch(
            self.engine,
            self.announcement.model_names[0],
            self._patience,
            tracked=self._command is not None,  # we start engines so that they are
            cpu_seconds=cpu_seconds,
        )
        try:
            yield watch
        finally:
            self._watch = None
            await watch.close()

    def _stall(self, wrong: str) -> None:
        log.error("the engine %s: it leaves rotation", wrong)
        self._set_state(WorkerState.STALLED)

    def _recover(self) -> None:
        log.info("the engine makes tokens again")
        self._set_state(WorkerState.READY)

    async def _until_token(self, timeout: float) -> None:
        """Returns once the engine has made a token. Raises EngineStartError after `timeout`."""
        deadline = time.monotonic() + timeout
        model = self.announcement.model_names[0]
        while time.monotonic() < deadline:
            try:
                if await self.engine.healthy():
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
            async with self._watching() as watch:
                with contextlib.suppress(EngineCallError):
                    while True:
                        self._stall(await watch.until_stalled())
                        await watch.until_token(None)
                        self._recover()
            log.error("engine no longer answers")
            self._set_state(WorkerState.STARTING)

    async def _until_idle(self, deadline: float) -> None:
        """Returns once nothing has run in the engine for a moment, or at the deadline."""
        quiet = time.monotonic()
        while (now := time.monotonic()) < deadline and now - quiet < SETTLE:
            await asyncio.sleep(min(POLL_INTERVAL, SETTLE / 4))
            if await self.queue_length():
                quiet = time.monotonic()

    def _set_state(self, state: WorkerState) -> None:
        # A worker that drains stays out of rotation; that its engine is stuck meanwhile is still
        # told, or its streams would wait for it instead of going on elsewhere.
        if self._leaving and state is not WorkerState.STALLED:
            state = WorkerState.DRAINING
        if state is not self.state:
            log.info("%s -> %s", self.state.value, state.value)
            self.state = state
            for teller in self._tellers:
                teller.tell_now()


def _vital(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task the worker cannot live without: if it fails, the process ends to be started anew."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the worker's own task failed", exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task
