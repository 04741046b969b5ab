"""Starting the processes of the benchmark, reading their CPU time, and ending every one of them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SLOW_START = 180.0  # seconds for a rival whose imports alone take a while
START = 60.0  # seconds a server may take until it answers
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own process group and directory; the whole group is dead afterwards."""
    with (directory / f"{name}.out").open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only us; we end the group ourselves
        )
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE)
    # The leader may be gone while a member of its group is not.


def ask(url: str, body: Any = None, timeout: float = 5.0) -> Any:
    """GET, or POST a JSON body; the decoded answer. Raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.loads(response.read() or b"null")


def wait_for(url: str, said: str, child: subprocess.Popen[bytes]) -> None:
    """Wait until a GET answers with a text that contains `said`.

    Raises RuntimeError if the child ends first, TimeoutError after START seconds.
    """
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"a process ended with {child.returncode} before {url} answered")
        with contextlib.suppress(OSError):
            if said in json.dumps(ask(url)):
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url} did not say {said!r} in {START:.0f} s")


def wait_for_answer(port: int, model: str, child: subprocess.Popen[bytes]) -> None:
    """Wait until a short chat is answered. Raises as `wait_for`, after SLOW_START seconds."""
    message = {"role": "user", "content": "?"}
    chat = {"model": model, "messages": [message], "max_tokens": 2}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    deadline = time.monotonic() + SLOW_START
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"a process ended with {child.returncode} before {url} answered")
        with contextlib.suppress(OSError):
            ask(url, chat)
            return
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer in {SLOW_START:.0f} s")


def memory(pids: Sequence[int]) -> float:
    """Bytes that processes and their living descendants hold; shared pages divided among them."""
    total = 0
    for pid in _with_descendants(pids):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(x for x in lines if x.startswith("Pss:")).split()[1]) * 1024
    return float(total)


def wait_for_port(port: int, child: subprocess.Popen[bytes]) -> None:
    """Wait until something accepts connections. Raises as `wait_for`."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"a process ended with {child.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after {START:.0f} s")


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes and all their living descendants."""
    return sum(_cpu(pid) for pid in _with_descendants(pids))


def _cpu(pid: int) -> float:
    # The CPU clock of another process counts all its threads in nanoseconds, where the utime
    # and stime of /proc/PID/stat tick every 10 ms (clock_getcpuclockid(3), Linux).
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _with_descendants(pids: Sequence[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = set(pids)
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family
