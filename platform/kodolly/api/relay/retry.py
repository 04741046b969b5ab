"""How often a call may be tried, and for how long it waits for a worker to come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kodolly.api.errors import RETRY_AFTER
from kodolly.api.request import Call, WorkerGone
from kodolly.errors import ApiError, EngineFailed, NoWorker

# Attempts that cost an engine's work, gave the client nothing, and were over soon.
MAX_FRUITLESS = 3
# Engines that broke down in such attempts: a request that has done that to two is not given a third.
MAX_KILLED = 2
# Seconds after which a worker's death is not put down to the call: what kills an engine does so early.
SOON = 5.0
# Workers one call may lose in all: a request that kills its engine must not kill them all.
MAX_LOST = 8
# Seconds that an unfinished stream waits for a worker of its model, and a call of which the client
# has nothing: it may come again, but a worker that leaves while another is missing is no reason to.
PATIENCE, PATIENCE_AT_FIRST = 15.0, 3.0
PAUSE = 0.2
# OpenAI's client libraries repeat a 5xx by themselves, unless this asks them not to.
NO_RETRY = {"x-should-retry": "false"}


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
        self._killed: set[str] = set()
        self._had = 0
        self.begun = False  # some worker was tried
        self._told: ApiError | None = None
        self._since = self._tried = clock()

    def failed(self, worker: str, error: WorkerGone, had: int) -> None:
        """Notes a failure after which the client has `had` tokens. Raises ApiError to give up.

        Only fruitless work is budgeted: a worker that dies costs each of its streams one move, but
        requests that are tried again and again would double the load of an outage.
        """
        self.begun = True
        self.avoid.add(worker)
        self._told = error.told or self._told
        now = self._clock()
        lasted, self._tried = now - self._tried, now
        fruitless = error.worked and had <= self._had
        if had > self._had:
            self._had, self._fruitless = had, 0
            self._killed.clear()
            self._since = now
            self.avoid = {worker}
        elif fruitless and lasted < SOON:
            self._fruitless += 1
            if error.died:
                self._killed.add(worker)
        elif fruitless:
            self._since = now  # it was at work: the wait for another begins here
        self._lost += error.worked
        spent = fruitless and not self._allows(self._call.model)
        if len(self._killed) >= MAX_KILLED:
            raise EngineFailed(
                f"{MAX_KILLED} engines broke down on this request: it is not given to a third.",
                headers=NO_RETRY,
            )
        if spent or self._fruitless >= MAX_FRUITLESS or self._lost >= MAX_LOST:
            raise self.refusal()

    async def wait(self, *, begun: bool) -> None:
        """Waits a moment for another worker. Raises ApiError when there was none for too long.

        `begun`: the client has something of the answer. What an engine said is told at once.
        """
        patience = PATIENCE if begun else PATIENCE_AT_FIRST
        if self._clock() - self._since > patience or (self._told and not begun):
            raise self.refusal()
        self.avoid.clear()
        await asyncio.sleep(PAUSE)
        self._tried = self._clock()

    def refusal(self) -> ApiError:
        """What the client hears when nobody could do it."""
        return self._told or NoWorker(
            f"No worker of model '{self._call.model}' answered. Try again in a moment.",
            headers=RETRY_AFTER,
        )
