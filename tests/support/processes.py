"""Real processes for tests: free ports, starting, waiting by polling, and killing whole groups.

    with start([sys.executable, "-m", "kodolly", "controller", "--port", str(port)]) as controller:
        wait_http(f"http://127.0.0.1:{port}/health", process=controller)

The waits block, which is right for processes. A test whose own event loop must go on meanwhile,
because a scripted engine lives on it, awaits `eventually` instead of calling `wait_until`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

T = TypeVar("T")

TIMEOUT = 30.0  # seconds; generous, since nothing waits longer than it must
POLL = 0.05
GRACE = 5.0
LOG_TAIL = 4000  # characters of a log that a failure repeats
# Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a port between
# our look and its use; above every default port of the project.
PORTS = range(23000, 30000)
ENGINE_OFFSET = 1000  # `kodolly up` gives an engine the port so far above its worker's
# The surroundings of the test run must not reach the processes under test.
UNWANTED = ("http_proxy", "https_proxy", "all_proxy", "vllm_api_key", "openai_api_key")
# No proxy stands before loopback.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


# Ports that are given and not bound yet look free.
_given: set[int] = set()
_random = random.SystemRandom()  # a test may have seeded the other one, like that of a parallel run


def free_port() -> int:
    """A loopback port nobody listens on, drawn at random so that parallel runs do not meet; each once."""
    for port in _random.sample(PORTS, len(PORTS)):
        if _given & {port - ENGINE_OFFSET, port, port + ENGINE_OFFSET}:
            continue
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise RuntimeError("no free port found")


class Process:
    """A started program with a process group of its own; leaving its `with` kills the group."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, log: Path | None) -> None:
        self.popen, self.name, self.log = popen, name, log

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """The end of what it wrote to its log; "" without one."""
        if self.log is None:
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]

    def kill(self) -> None:
        """SIGKILL to the whole group, at once."""
        self._signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self, grace: float = GRACE) -> int:
        """SIGTERM, then SIGKILL for what is left of the group; returns the exit code."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(grace)
        self.kill()
        return self.popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    argv: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> Process:
    """Starts `argv`; both its outputs are appended to `log`, or dropped.

    `env` goes over this environment, from which proxies, keys and every KODOLLY_ setting are
    taken. An API by itself has no store unless one is named: tests beside each other would share the
    default one. Use the result in a `with`, or call its stop().
    """
    settings = {"KODOLLY_API_STORE": "none"} if "api" in argv else {}
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
        popen = subprocess.Popen(
            [str(part) for part in argv],
            env=dict(_clean_environment()) | settings | dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(popen, " ".join(str(part) for part in argv[:4]), log)


def _clean_environment() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if not name.startswith("KODOLLY_") and name.lower() not in UNWANTED:
            yield name, value


def wait_until(
    condition: Callable[[], T],
    timeout: float = TIMEOUT,
    *,
    what: str = "",
    process: Process | None = None,
) -> T:
    """Polls until `condition()` is true and returns its value; OSError counts as not yet.

    Raises AssertionError after `timeout` seconds, or as soon as `process` has ended.
    """
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        _still_hopeful(deadline, what, process)
        time.sleep(POLL)


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]],
    timeout: float = TIMEOUT,
    *,
    what: str = "",
    process: Process | None = None,
) -> T: ...


@overload
async def eventually(
    condition: Callable[[], T],
    timeout: float = TIMEOUT,
    *,
    what: str = "",
    process: Process | None = None,
) -> T: ...


async def eventually(
    condition: Callable[[], Any],
    timeout: float = TIMEOUT,
    *,
    what: str = "",
    process: Process | None = None,
) -> Any:
    """`wait_until` that lets the event loop run; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError):
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
        _still_hopeful(deadline, what, process)
        await asyncio.sleep(POLL)


def _still_hopeful(deadline: float, what: str, process: Process | None) -> None:
    wanted = what or "the condition"
    if process is not None and not process.running:
        code = process.popen.returncode
        raise AssertionError(f"{process.name} ended ({code}), no {wanted}:\n{process.output()}")
    if time.monotonic() > deadline:
        raise AssertionError(f"no {wanted} in time\n{process.output() if process else ''}")


def wait_http(
    url: str, timeout: float = TIMEOUT, *, status: int = 200, process: Process | None = None
) -> None:
    """Polls GET `url` until it answers `status`. Raises AssertionError as `wait_until` does."""
    wait_until(
        lambda: _status_of(url) == status, timeout, what=f"{status} from {url}", process=process
    )


def _status_of(url: str) -> int:
    try:
        with _open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
