"""One supervised process: started, and started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from kodolly.http.client import CALL_ERRORS, request_bounded
from kodolly.processes.leashed_process import LeashedProcess
from kodolly.processes.restarts import RestartBackoff
from kodolly.supervisor.log_file import END_TIMEOUT, LogFile

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between two readiness checks
STARTS = 4  # of a process that was never ready; it would end the next time too
READY_TIMEOUT = 2.0  # seconds for one readiness check


@dataclass(frozen=True)
class ServiceSpec:
    """What to run. `ready_url` answers 200 once it is ready. `grace`: seconds from SIGTERM to SIGKILL.

    `env`: variables added to this process's environment. `without`: those that are taken away.
    """

    name: str
    argv: Sequence[str]
    ready_url: str
    grace: float = 10.0
    env: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()


class Service:
    """A process that is started again when it ends. Its output goes to `log_file`, which `stop` closes."""

    def __init__(self, spec: ServiceSpec, log_file: LogFile) -> None:
        self.spec = spec
        self.log_file = log_file
        self.restarts = 0
        self.gave_up = asyncio.Event()  # it ended again and again before it was ever ready
        self._was_ready = False
        self._process: LeashedProcess | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The program's process id; 0 while it does not run."""
        process = self._process
        return process.pid if process is not None and process.running else 0

    def start(self) -> None:
        """Starts it, and starts it again until `stop`."""
        self._task = asyncio.create_task(self._keep_running())

    async def until_ready(self, client: httpx.AsyncClient) -> float:
        """Waits until it is ready; returns how long that took, in seconds."""
        started = time.monotonic()
        while not await is_ready(self.spec.ready_url, client):
            await asyncio.sleep(POLL)
        self._was_ready = True
        return time.monotonic() - started

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace; returns when the process is gone."""
        self._stopping = True
        runs = self._process is not None and self._process.running
        if self._process is not None:
            await self._process.stop()
        if self._task is not None and runs:  # its last lines go to the log
            await asyncio.wait({self._task}, timeout=END_TIMEOUT + 1)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.log_file.close()

    async def _keep_running(self) -> None:
        backoff = RestartBackoff(first=0.5, longest=15.0, healthy_run=30.0)
        while not self._stopping:
            started = time.monotonic()
            end = await self._run_once()
            if self._stopping:
                return
            if not self._was_ready and self.restarts + 1 >= STARTS:
                log.error("%s %s, %d times", self.spec.name, end, STARTS)
                self.gave_up.set()
                return
            wait = backoff.wait_after(time.monotonic() - started)
            self.restarts += 1
            log.warning(
                "%s %s; starting it again in %.1f s (log: %s)",
                *(self.spec.name, end, wait, self.log_file.path),
            )
            await asyncio.sleep(wait)

    async def _run_once(self) -> str:
        """Runs the process until it ends; returns how it ended, for the log."""
        try:
            read, output = self.log_file.open_pipe()
            copying = asyncio.create_task(self.log_file.copy(read))
            with output:
                self._process = await LeashedProcess.start(
                    self.spec.argv,
                    env=self.spec.env,
                    without=self.spec.without.__contains__,
                    output=output,
                    grace=self.spec.grace,
                )
        except OSError as error:  # no memory or file descriptor: the next try may work
            return f"cannot be started ({error.strerror})"
        end = f"ended with code {await self._process.wait()}"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(copying, END_TIMEOUT)
        return end


async def is_ready(url: str, client: httpx.AsyncClient) -> bool:
    """Whether a URL answers 200 within READY_TIMEOUT."""
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            status, _ = await request_bounded(
                client, "GET", url, timeout=None, follow_redirects=True
            )
    except CALL_ERRORS:
        return False
    return status == 200
