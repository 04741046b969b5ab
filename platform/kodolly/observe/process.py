"""The standard metrics of a process, under the names of Prometheus' own client libraries."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

from kodolly.observe.families import Family

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def _start_time() -> float:
    """When this process began, as Unix time."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        after_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + after_boot / CLOCK_TICKS
    return time.time()


def process_families() -> list[Family]:
    """Start, CPU, memory and file descriptors of this process.

    Over several processes CPU and memory are summed; of the rest the extreme is kept, since a limit holds
    for each process.
    """
    own = resource.getrusage(resource.RUSAGE_SELF)
    start = Family("process_start_time_seconds", "gauge", "Unix time of the start.", "min")
    cpu = Family("process_cpu_seconds_total", "counter", "CPU seconds used.")
    memory = Family("process_resident_memory_bytes", "gauge", "Resident memory in bytes.")
    files = Family("process_open_fds", "gauge", "Open files; the most of any process.", "max")
    most = Family("process_max_fds", "gauge", "Files that may be open.", "min")
    start.set(round(_start_time(), 2))
    cpu.set(round(own.ru_utime + own.ru_stime, 3))
    with contextlib.suppress(OSError, ValueError, IndexError):
        memory.set(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)
    with contextlib.suppress(OSError):
        files.set(len(os.listdir("/proc/self/fd")))
    most.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return [start, cpu, memory, files, most]
