"""A command measured from outside: wall and CPU seconds, and memory of its processes."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

INTERVAL = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Memory in bytes of resident pages: of the largest process, and of all at one moment.

    Pages that several processes share count once for each in `peak_sum`, which is so an upper bound.
    """

    wall: float
    cpu: float  # user and system, children included
    peak: int
    peak_sum: int
    output: str


class RunFailed(RuntimeError):
    """The command ended with an error or took too long; the text holds the end of what it wrote."""


def measure(
    command: Sequence[str], env: Mapping[str, str] | None = None, limit: float = 900.0
) -> Measured:
    """Run `command` to its end. Raises RunFailed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env and dict(env)
        )
        peak, peak_sum = 0, 0
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                if time.perf_counter() - start > limit:
                    raise RunFailed(f"{command[0]} took more than {limit:.0f} s")
                sizes = _sizes(child.pid)
                peak, peak_sum = max(peak, *sizes), max(peak_sum, sum(sizes))
                time.sleep(INTERVAL)
        except BaseException:
            _end(child.pid)
            raise
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode != 0:
            tail = err.read().decode(errors="replace")[-2_000:]
            raise RunFailed(f"{' '.join(command)}: exit status {child.returncode}\n{tail}")
    # The kernel's peak is exact, but a child starts as a copy of this process: only above our own it tells.
    kernel = usage.ru_maxrss * 1024
    if kernel > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024:
        peak = max(peak, kernel)
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak, max(peak_sum, peak), text)


def _sizes(pid: int) -> list[int]:
    """Resident bytes of the process and its descendants now; [0] when it is gone."""
    sizes = [0]
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                sizes.append(one.memory_info().rss)
    return sizes


def _end(pid: int) -> None:
    """Ends the process and its descendants, and waits for them."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(family, timeout=10)


def warm(path: Path) -> int:
    """Reads a file once, so that every contender finds it in the page cache; its bytes."""
    size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(block)
    return size
