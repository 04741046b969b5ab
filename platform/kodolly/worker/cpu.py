"""CPU time of an engine and all its processes, to tell a long step on a CPU from a frozen engine."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name, which may hold anything up to its last parenthesis.
SESSION, UTIME, STIME = 3, 11, 12


def engine_seconds(pid: int) -> float | None:
    """Seconds of CPU used by what computes in the engine `pid`; None where that is not told.

    An engine of ours has a session of its own, in which its children stay. If they compute, the
    first process is only their server, which is at work even while they are frozen.
    """
    try:
        session = os.getsid(pid)
        names = [entry.name for entry in os.scandir(PROC) if entry.name.isdigit()]
    except OSError:
        return None
    ticks = {int(name): _ticks(name, session) for name in names}
    found = {process: used for process, used in ticks.items() if used is not None}
    children = {p: used for p, used in found.items() if p not in (pid, session)}
    second = os.sysconf("SC_CLK_TCK")
    computing = children if max(children.values(), default=0) > second / 2 else found
    return sum(computing.values()) / second


def _ticks(name: str, session: int) -> int | None:
    """Clock ticks a process of the session has used; None for any other process."""
    try:
        text = (PROC / name / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return None
    fields = text.rpartition(")")[2].split()
    if int(fields[SESSION]) != session:
        return None
    return int(fields[UTIME]) + int(fields[STIME])
