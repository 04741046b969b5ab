"""The processes of `kodolly api`, one unless told otherwise, behind one port.

The parent holds the listening socket and answers nothing itself: what comes in while a process is
away waits in the socket for another. A process that ends is started again; SIGHUP replaces all of
them one after the other; SIGTERM lets each finish what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from kodolly.errors import KodollyError
from kodolly.http import descriptors
from kodolly.http.listener import bind
from kodolly.observe.families import Family
from kodolly.observe.hub import VARIABLE as METRICS
from kodolly.observe.hub import Hub
from kodolly.processes.restarts import RestartBackoff
from kodolly.protocol.addresses import base_url
from kodolly.settings import ApiSettings, foreign_secrets

log = logging.getLogger(__name__)

# How a process finds the socket it listens on, the pipe by which it tells that it does, and the pipe
# that the kernel closes when its parent is gone.
LISTENER, STARTED, PARENT = "_KODOLLY_LISTENER", "_KODOLLY_STARTED", "_KODOLLY_PARENT"
START_TIMEOUT = 60.0
BACKLOG = 2048


def inherited_listener() -> socket.socket | None:
    """The listening socket that a parent passed on to this process, if there is a parent."""
    number = os.environ.get(LISTENER)
    return socket.socket(fileno=int(number)) if number else None


def report_started() -> None:
    """Tells the parent, if there is one, that this process serves."""
    if number := os.environ.get(STARTED):
        with contextlib.suppress(OSError):
            os.write(int(number), b"1")
            os.close(int(number))


async def end_with_parent() -> None:
    """End this process as SIGTERM would once its parent is gone; returns at once where there is none."""
    if not (number := os.environ.get(PARENT)):
        return
    await _readable(int(number))
    log.warning("the parent is gone")
    for _ in range(2):  # the second one ends --drain-delay: the port is for the next parent
        os.kill(os.getpid(), signal.SIGTERM)


class Child:
    """One process and how long it has lived."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.start_time = time.monotonic()
        self.is_retired = False

    def end(self) -> None:
        """Asks it to finish; it is not started again."""
        self.is_retired = True
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()


class EndedEarly(OSError):
    """A process had to end before it served: its successor is there already."""


class Processes:
    """The parent of `count` API processes that listen on one socket."""

    def __init__(self, argv: Sequence[str], listener: socket.socket, count: int) -> None:
        self._argv = [sys.executable, "-m", "kodolly", "api", *argv]
        self._listener = listener
        self._count = count
        self._children: set[Child] = set()
        self._lives: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._renewing = asyncio.Lock()
        self._parent, self._lifeline = os.pipe()  # children see its end when this process is gone
        self._hub = Hub(self._families)
        self._restarts = 0

    async def run(self) -> None:
        """Start all, keep them running, and return when SIGTERM has ended them.

        Raises KodollyError where the first does not start: the next would not either.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._keep(self.renew()))
        try:
            first = await self._start()
        except EndedEarly:
            pass
        except OSError as error:
            raise KodollyError(f"an API process {error}: its own lines say why") from error
        else:
            self._keep(self._life(first))
        for _ in range(self._count - 1):
            self._keep(self._life())
        await self._ending.wait()
        self._listener.close()  # or the kernel would go on taking connections that nobody accepts
        await asyncio.gather(*(child.process.wait() for child in self._children))
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    def _families(self) -> list[Family]:
        """What the parent itself counts."""
        restarts = Family(
            "kodolly_api_process_restarts_total",
            "counter",
            "API processes that ended by themselves.",
        )
        return [restarts.set(self._restarts)]

    def _end(self) -> None:
        """Pass SIGTERM on; a second one ends what the first lets go on for a while."""
        self._ending.set()
        for child in self._children:
            child.end()

    async def renew(self) -> None:
        """Replaces every process by a new one: each goes only when its successor serves."""
        async with self._renewing:
            for child in [child for child in self._children if not child.is_retired]:
                try:
                    successor = await self._start()
                except OSError as error:
                    return log.error("not renewed: %s", error)
                self._keep(self._life(successor))
                child.end()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)

    async def _life(self, child: Child | None = None) -> None:
        """A process and those that follow when it ends by itself."""
        backoff = RestartBackoff(first=0.2, longest=10.0, healthy_run=30.0)
        while not self._ending.is_set():
            try:
                child = child or await self._start()
                code = await child.process.wait()
            except EndedEarly:
                return
            except OSError as error:
                log.error("an API process: %s", error)
                run_time = 0.0
            else:
                self._children.discard(child)
                if child.is_retired or self._ending.is_set():
                    return
                log.error("an API process ended with code %d", code)
                self._restarts += 1
                run_time = time.monotonic() - child.start_time
            child = None
            await asyncio.sleep(backoff.wait_after(run_time))

    async def _start(self) -> Child:
        """A new process that serves. Raises OSError if it does not within the time."""
        ready_read, ready_write = os.pipe()
        metrics = self._hub.connect()
        try:
            descriptors_to_pass = (
                self._listener.fileno(),
                ready_write,
                self._parent,
                metrics.fileno(),
            )
            variables = (LISTENER, STARTED, PARENT, METRICS)
            names = zip(variables, map(str, descriptors_to_pass), strict=True)
            foreign = foreign_secrets(ApiSettings)
            env = {n: v for n, v in os.environ.items() if n not in foreign} | dict(names)
            process = await asyncio.create_subprocess_exec(
                *self._argv, env=env, pass_fds=descriptors_to_pass, start_new_session=True
            )
        finally:
            os.close(ready_write)
            metrics.close()
        child = Child(process)
        self._children.add(child)
        try:
            await asyncio.wait_for(_readable(ready_read), START_TIMEOUT)
            if os.read(ready_read, 1) == b"1":
                log.info("API process %d serves", process.pid)
                return child
        except TimeoutError:
            process.kill()
        finally:
            os.close(ready_read)
        self._children.discard(child)
        if child.is_retired:
            raise EndedEarly
        raise ChildProcessError(f"did not start: code {await process.wait()}")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def serve(argv: Sequence[str], host: str, port: int, count: int, scheme: str = "http") -> None:
    """Run `count` processes of `kodolly api ARGV` on one port until SIGTERM or Ctrl-C.

    Raises SettingsError when host or port cannot be had, KodollyError when no process can be started.
    """
    descriptors.raise_limit()
    listener, *others = bind(host, port)
    for other in others:  # the processes inherit one socket
        other.close()
    listener.listen(BACKLOG)
    with listener:
        log.info("listening on %s (%d)", base_url(host, listener.getsockname()[1], scheme), count)
        asyncio.run(Processes(argv, listener, count).run())
