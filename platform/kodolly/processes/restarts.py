"""How long to wait before a process that ended is started again."""

from __future__ import annotations


class RestartBackoff:
    """Waits that double from restart to restart, and are short again after a long run."""

    def __init__(self, first: float, longest: float, healthy_run: float) -> None:
        """All in seconds. `healthy_run`: a process that ran longer begins with `first` again."""
        self._first = first
        self._longest = longest
        self._healthy_run = healthy_run
        self._next = first

    def wait_after(self, run_time: float) -> float:
        """Seconds to wait after a process that ran for `run_time` seconds (0: it did not start)."""
        if run_time > self._healthy_run:
            self._next = self._first
        wait = self._next
        self._next = min(wait * 2, self._longest)
        return wait
