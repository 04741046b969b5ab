"""How many calls may be tried again: enough for a worker's death, too few to feed an outage.

When every worker fails, each client's call would otherwise become several and the engines that
come back would drown in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# What a first try allows of later ones, and what a model may spend at once however little runs.
DEPOSIT, FLOOR = 0.2, 20.0
# Seconds after which a spent budget is whole again without any first try.
REFILL = 10.0
ROUNDING = 1e-6


@dataclass
class _Account:
    spent: float = 0.0
    since: float = 0.0


class RetryBudget:
    """Retries and resumes left, by model.

    A model may spend `FLOOR` tries at once, or one for every call that runs when those are more: a
    worker that dies with hundreds of streams must not lose any of them to a bound. Each first try
    gives back `DEPOSIT`, and time gives back the whole in `REFILL` seconds.
    """

    def __init__(
        self,
        running: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._running = running
        self._clock = clock
        # Only models that have spent something; what is whole again is forgotten.
        self._accounts: dict[str, _Account] = {}

    def first_try(self, model: str) -> None:
        """Notes that a call for `model` is tried for the first time."""
        account = self._accounts.get(model)
        if account is not None:
            account.spent -= DEPOSIT
            if account.spent <= 0:
                del self._accounts[model]

    def allows(self, model: str) -> bool:
        """Whether a call for `model` may be tried once more; if so, that try is spent."""
        now = self._clock()
        most = max(FLOOR, float(self._running(model)))
        account = self._accounts.setdefault(model, _Account(since=now))
        account.spent = max(0.0, account.spent - (now - account.since) * most / REFILL)
        account.since = now
        if account.spent + 1 > most + ROUNDING:
            return False
        account.spent += 1
        return True
