"""Whether a request that a worker failed goes to another one: how often, to whom, how soon.

Every such decision is made here. `RetryState` makes them for one request. `RetryBudget` bounds them
for a model: enough for one worker's death, too few to feed an outage. When every worker fails, each
request would otherwise become several, and the engines that come back would drown in them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.api.errors import RETRY_AFTER, WorkerFailed
from kodolly.api.request import ApiRequest
from kodolly.api.routing.router import ForcedIds
from kodolly.api.sse import LOST
from kodolly.errors import ApiError, ContextOverflow, EngineFailed, NoWorker
from kodolly.protocol.request_bounds import may_break_engine

# Attempts in a row that cost an engine's work, gave the client nothing, and ended early.
MAX_FRUITLESS = 3
# Engines that may crash in such attempts: a request that crashed two is not given to a third. One
# with a grammar of the client's own is the likely cause, and not even given to a second.
MAX_CRASHES = 2
# What kills an engine does so early: a failure after more seconds is not blamed on the request.
EARLY_FAILURE_S = 5.0
# Workers that may fail at work on one request in all, so that it cannot kill every engine.
MAX_LOST_WORKERS = 8
# How long (s) to wait for any worker of the model: a stream already begun; a request that has sent
# nothing (short, since the client can retry, but long enough for one worker to replace another).
WAIT_IN_STREAM_S, WAIT_AT_START_S = 15.0, 3.0
RETRY_PAUSE_S = 0.2
# OpenAI's client libraries repeat a 5xx by themselves, unless this header forbids it.
NO_RETRY = {"x-should-retry": "false"}

# Retries that each new request gives back, and those a model may always spend at once.
DEPOSIT, FLOOR = 0.2, 20.0
# Seconds in which a spent budget fills up again without any new request.
REFILL_S = 10.0
ROUNDING = 1e-6


class RetryState:
    """The attempts at one request. `excluded`: names of workers that are not to be tried now.

    `least_context`: tokens that a worker's context must have room for; `preferred_context`: that it
    has room for if any worker does. `forced_ids`: whether the worker has to take forced ids.
    """

    def __init__(
        self,
        request: ApiRequest,
        allows: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`allows` takes one retry from a model's budget, and tells whether there was one."""
        self.excluded: set[str] = set()
        self.delivered = 0  # tokens that the client has
        self.has_tried = False  # some worker was given the request
        self._request = request
        self._allows = allows
        self._clock = clock
        self._fruitless = self._lost_workers = 0
        self._crashes: set[str] = set()  # workers by name
        self._client_error: ApiError | None = None
        self._busy: ApiError | None = None
        self.least_context = self.preferred_context = 0
        self.forced_ids: ForcedIds | None = None
        self._waiting_since = self._attempt_start = clock()

    def failed(self, worker: str, error: WorkerFailed, delivered: int | None) -> None:
        """Notes that `worker` failed. Returns if another may be tried, raises ApiError to give up.

        `delivered`: tokens the client has by now; None if it has something that no other worker can
        continue. Only fruitless work is budgeted: a worker's death costs each of its streams one
        move, but a request repeated again and again would double the load of an outage.
        """
        if delivered is None:
            raise EngineFailed(LOST, code="worker_lost")
        self.has_tried = True
        self.excluded.add(worker)
        self._client_error = error.client_error or self._client_error
        self._busy = error.busy or self._busy
        now = self._clock()
        duration, self._attempt_start = now - self._attempt_start, now
        fruitless = error.did_work and delivered <= self.delivered
        if delivered > self.delivered:
            self.delivered, self._fruitless = delivered, 0
            self._crashes.clear()
            self._waiting_since = now
            self.excluded = {worker}
            # A grammar may have crashed it at this very token: one more such crash is enough.
            if error.engine_crashed and may_break_engine(self._request.body):
                self._crashes.add(worker)
        elif fruitless and duration < EARLY_FAILURE_S:
            self._fruitless += 1
            if error.engine_crashed:
                self._crashes.add(worker)
        elif fruitless:
            self._waiting_since = now  # the worker was busy until now: only now do we wait
        self._lost_workers += error.did_work
        over_budget = fruitless and not self._allows(self._request.model)
        if len(self._crashes) >= MAX_CRASHES:
            raise EngineFailed(
                f"{MAX_CRASHES} engines broke down on this request: it is not given to a third.",
                headers=NO_RETRY,
            )
        # An engine that answers is well and blames the request; one that breaks off may have been
        # killed, and so may one that had given tokens until then.
        is_blamed = error.engine_crashed and error.client_error is not None and fruitless
        if is_blamed and may_break_engine(self._request.body):
            raise self._grammar_error()
        too_many = self._fruitless >= MAX_FRUITLESS or self._lost_workers >= MAX_LOST_WORKERS
        if over_budget or too_many:
            raise self._final_error()

    def resumed(self, delivered: int | None) -> None:
        """Another process has sent `delivered` tokens. Raises ApiError if none can go on (None)."""
        if delivered is None:
            raise EngineFailed(LOST, code="worker_lost")
        self.has_tried, self.delivered = True, delivered

    def overflowed(self, error: ContextOverflow, context: int) -> None:
        """A worker whose context has `context` tokens refused the request as too long for it."""
        self.has_tried = True
        self._client_error = error
        self.least_context = context + 1

    async def wait(self, *, in_stream: bool) -> None:
        """Waits a moment for a worker to come. Raises ApiError when none came for too long.

        `in_stream`: the client has a part of the answer. Otherwise an engine's own error is its
        answer at once, without a wait.
        """
        longest = WAIT_IN_STREAM_S if in_stream else WAIT_AT_START_S
        is_over = self._clock() - self._waiting_since > longest
        is_hopeless = self._busy is not None and _seconds(self._busy) > longest
        if is_over or ((self._client_error or is_hopeless) and not in_stream):
            raise self._final_error()
        self.excluded.clear()
        await asyncio.sleep(RETRY_PAUSE_S)
        self._attempt_start = self._clock()

    def _grammar_error(self) -> ApiError:
        cause = f" ({self._client_error.message})" if self._client_error else ""
        return EngineFailed(
            "An engine failed on this request, perhaps on its schema or grammar: it is not given to"
            f" another one{cause}.",
            headers=NO_RETRY,
        )

    def _final_error(self) -> ApiError:
        return (
            self._client_error
            or self._busy
            or NoWorker(
                f"No worker of model '{self._request.model}' answered. Try again in a moment.",
                headers=RETRY_AFTER,
            )
        )


def _seconds(busy: ApiError) -> float:
    """After how long an engine that is too busy wants to be asked again; 0 if it does not say."""
    return float(busy.headers.get("Retry-After", 0))


@dataclass
class _Account:
    """Retries of one model: how many are spent, as of a time (s)."""

    spent: float = 0.0
    since: float = 0.0


class RetryBudget:
    """Retries left, by model.

    A model may spend `FLOOR` retries at once, or one for every request that runs when those are
    more: a worker that dies with hundreds of streams must not lose any of them to a bound. Each new
    request gives back `DEPOSIT`, and time gives back the whole in `REFILL_S` seconds.
    """

    def __init__(
        self,
        running: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`running`: how many requests of a model run now."""
        self._running = running
        self._clock = clock
        # Only models that have spent something; one whose budget is full again is forgotten.
        self._accounts: dict[str, _Account] = {}

    def first_attempt(self, request: ApiRequest) -> RetryState:
        """The state of a new request, which gives a part of a retry back to its model."""
        account = self._accounts.get(request.model)
        if account is not None:
            account.spent -= DEPOSIT
            if account.spent <= 0:
                del self._accounts[request.model]
        return RetryState(request, self.allows)

    def allows(self, model: str) -> bool:
        """Whether a request for `model` may be tried once more; if so, that retry is spent."""
        now = self._clock()
        limit = max(FLOOR, float(self._running(model)))
        account = self._accounts.setdefault(model, _Account(since=now))
        account.spent = max(0.0, account.spent - (now - account.since) * limit / REFILL_S)
        account.since = now
        if account.spent + 1 > limit + ROUNDING:
            return False
        account.spent += 1
        return True
