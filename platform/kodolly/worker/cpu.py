"""CPU time of an engine and all its processes, to tell a long step on a CPU from a frozen engine."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name, which may hold anything up to its last parenthesis.
SESSION, UTIME, STIME = 3, 11, 12


def session_seconds(pid: int) -> float | None:
    """Seconds of CPU used by the living processes of `pid`'s session; None where none is told.

    An engine of ours has a session of its own, in which its children stay.
    """
    try:
        session = os.getsid(pid)
        names = [entry.name for entry in os.scandir(PROC) if entry.name.isdigit()]
    except OSError:
        return None
    ticks = sum(_ticks(name, session) for name in names)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(name: str, session: int) -> int:
    try:
        text = (PROC / name / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return 0
    fields = text.rpartition(")")[2].split()
    if int(fields[SESSION]) != session:
        return 0
    return int(fields[UTIME]) + int(fields[STIME])
