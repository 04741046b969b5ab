"""How often a call may be tried, and for how long it waits for a worker to come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kodolly.api.call import Call, WorkerGone
from kodolly.api.engine_errors import RETRY_AFTER
from kodolly.errors import ApiError, NoWorker

# Attempts that cost an engine's work and gave the client nothing.
MAX_FRUITLESS = 3
# Workers one call may lose in all: a request that kills its engine must not kill them all.
MAX_LOST = 8
# An unfinished stream waits this long for a worker of its model, asking this often.
PATIENCE, PAUSE = 15.0, 0.2


class Tries:
    """The attempts of one call. `avoid`: workers that failed it since a worker last did well."""

    def __init__(
        self,
        call: Call,
        allows: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`allows` withdraws one retry from a model's budget, and tells whether there was one."""
        self.avoid: set[str] = set()
        self._call = call
        self._allows = allows
        self._clock = clock
        self._fruitless = self._lost = 0
        self._had = 0
        self.begun = False  # some worker was tried
        self._told: ApiError | None = None
        self._deadline = clock() + PATIENCE

    def failed(self, worker: str, error: WorkerGone, had: int) -> None:
        """Notes a failure after which the client has `had` tokens. Raises ApiError to give up.

        Only fruitless work is budgeted: a worker that dies costs each of its streams one move, but
        requests that are tried again and again would double the load of an outage.
        """
        self.begun = True
        self.avoid.add(worker)
        self._told = error.told or self._told
        if had > self._had:
            self._had, self._fruitless = had, 0
            self._deadline = self._clock() + PATIENCE
            self.avoid = {worker}
        elif error.worked:
            self._fruitless += 1
        self._lost += error.worked
        spent = self._fruitless > 0 and error.worked and not self._allows(self._call.model)
        if spent or self._fruitless >= MAX_FRUITLESS or self._lost >= MAX_LOST:
            raise self.refusal()

    async def wait(self, *, begun: bool) -> None:
        """Waits a moment for another worker. Raises ApiError when there was none for too long.

        A call of which the client has nothing is refused at once: it may come again.
        """
        if not begun or self._clock() > self._deadline:
            raise self.refusal()
        self.avoid.clear()
        await asyncio.sleep(PAUSE)

    def refusal(self) -> ApiError:
        """What the client hears when nobody could do it."""
        return self._told or NoWorker(
            f"No worker of model '{self._call.model}' answered. Try again in a moment.",
            headers=RETRY_AFTER,
        )
