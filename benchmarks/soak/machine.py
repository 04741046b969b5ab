"""What a report's first line needs to know, and the event loop of the benchmarks' clients."""

import asyncio
import subprocess
from collections.abc import Callable

from benchmarks.chaos.stack import ROOT


def commit() -> str:
    """What was measured; `-dirty` where files had changes that are not committed."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
