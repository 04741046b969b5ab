"""`kodolly api --processes N`: several API processes behind one port.

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

from kodolly import serving
from kodolly.errors import SettingsError

log = logging.getLogger(__name__)

# How a process finds the socket it listens on, and the pipe by which it tells that it does.
LISTENER, STARTED = "_KODOLLY_LISTENER", "_KODOLLY_STARTED"
PARENT = "_KODOLLY_PARENT"  # its process id: a parent may be gone before its child looks
START_TIMEOUT = 60.0
BACKLOG = 2048
FIRST_BACKOFF, LAST_BACKOFF, HEALTHY_RUN = 0.2, 10.0, 30.0
ORPHAN_POLL = 1.0


def has_parent() -> bool:
    """Whether this is one of several processes that `serve` started."""
    return LISTENER in os.environ


def inherited() -> socket.socket | None:
    """The listening socket that a parent handed to this process."""
    number = os.environ.get(LISTENER)
    return socket.socket(fileno=int(number)) if number else None


def tell_started() -> None:
    """Tells the parent, if there is one, that this process serves."""
    if number := os.environ.get(STARTED):
        with contextlib.suppress(OSError):
            os.write(int(number), b"1")
            os.close(int(number))


async def end_with_parent() -> None:
    """Ends this process as SIGTERM would once its parent is gone; never returns without one."""
    parent = int(os.environ.get(PARENT) or os.getppid())
    while os.getppid() == parent:
        await asyncio.sleep(ORPHAN_POLL)
    log.warning("the parent is gone")
    os.kill(os.getpid(), signal.SIGTERM)


class Child:
    """One process and how long it has lived."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.born = time.monotonic()
        self.retired = False

    def end(self) -> None:
        """Asks it to finish; it is not started again."""
        self.retired = True
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()


class RetiredError(OSError):
    """A process was told to end before it served: its successor is there already."""


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

    async def run(self) -> None:
        """Starts all, keeps them running, and returns when SIGTERM has ended them."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._keep(self.renew()))
        for _ in range(self._count):
            self._keep(self._life())
        await self._ending.wait()
        for child in self._children:
            child.end()
        self._listener.close()  # or the kernel would go on taking connections that nobody accepts
        await asyncio.gather(*(child.process.wait() for child in self._children))
        await serving.cancel_and_wait(*self._lives)

    async def renew(self) -> None:
        """Replaces every process by a new one: each goes only when its successor serves."""
        async with self._renewing:
            for child in list(self._children):
                try:
                    successor = await self._started()
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
        backoff = FIRST_BACKOFF
        while not self._ending.is_set():
            try:
                child = child or await self._started()
                code = await child.process.wait()
            except RetiredError:
                return
            except OSError as error:
                log.error("an API process: %s", error)
            else:
                self._children.discard(child)
                if child.retired or self._ending.is_set():
                    return
                log.error("an API process ended with code %d", code)
                if time.monotonic() - child.born > HEALTHY_RUN:
                    backoff = FIRST_BACKOFF
            child = None
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _started(self) -> Child:
        """A new process that serves. Raises OSError if it does not within the time."""
        seen, told = os.pipe()
        try:
            handed = (self._listener.fileno(), told)
            told_by = {LISTENER: str(handed[0]), STARTED: str(told), PARENT: str(os.getpid())}
            env = {**os.environ, **told_by}
            process = await asyncio.create_subprocess_exec(
                *self._argv, env=env, pass_fds=handed, start_new_session=True
            )
        finally:
            os.close(told)
        child = Child(process)
        self._children.add(child)
        try:
            await asyncio.wait_for(_readable(seen), START_TIMEOUT)
            if os.read(seen, 1) == b"1":
                log.info("API process %d serves", process.pid)
                return child
        except TimeoutError:
            process.kill()
        finally:
            os.close(seen)
        self._children.discard(child)
        if child.retired:
            raise RetiredError
        raise ChildProcessError(f"did not start: code {await process.wait()}")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def serve(argv: Sequence[str], host: str, port: int, count: int) -> None:
    """Runs `count` processes of `kodolly api ARGV` on one port until SIGTERM or Ctrl-C.

    Raises SettingsError when the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"--port: cannot listen on {host}:{port}: {error.strerror}") from error
    with listener:
        log.info("%d API processes on http://%s:%d", count, host, listener.getsockname()[1])
        asyncio.run(Processes(argv, listener, count).run())
