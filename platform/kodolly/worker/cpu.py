"""CPU time of an engine's processes: on a CPU, it tells a long step from a frozen engine."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
# Indices of fields in /proc/PID/stat, counted after the program's name. The name is in parentheses
# and may itself contain spaces and parentheses.
SESSION, UTIME, STIME = 3, 11, 12


def engine_seconds(pid: int) -> float | None:
    """CPU time (seconds) of the processes that compute in engine `pid`; None if it is unknown.

    An engine of ours runs in a session of its own, together with its children. If the children
    compute, the first process is only the HTTP server. It uses the CPU even while they are frozen,
    so it is not counted then.
    """
    try:
        session = os.getsid(pid)
        names = [entry.name for entry in os.scandir(PROC) if entry.name.isdigit()]
    except OSError:
        return None
    ticks = {int(name): ticks for name in names if (ticks := _ticks(name, session)) is not None}
    children = {process: count for process, count in ticks.items() if process not in (pid, session)}
    second = os.sysconf("SC_CLK_TCK")
    computing = children if max(children.values(), default=0) > second / 2 else ticks
    return sum(computing.values()) / second


def _ticks(name: str, session: int) -> int | None:
    """Clock ticks of CPU time that a process has used; None if it is not in the session."""
    try:
        text = (PROC / name / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has just ended
        return None
    fields = text.rpartition(")")[2].split()
    if int(fields[SESSION]) != session:
        return None
    return int(fields[UTIME]) + int(fields[STIME])
