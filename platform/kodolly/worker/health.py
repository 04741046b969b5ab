"""Health is token progress: whether a running engine steps, whatever its port says.

A vLLM whose core is frozen answers /health with 200 for ever, and its load and counters stand
still. So it is judged by the counters while it has work, and by a token asked of it where they
say nothing: an engine with nothing to do, a client that reads slowly, an engine without metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.engines.client import EngineClient
from kodolly.engines.metrics import Pulse, Steps
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import server

log = logging.getLogger(__name__)

POLL = 0.5
# vLLM writes 50 kB of metrics, in the process that also writes the answers: not at every look.
STEPS_POLL = 0.9
# Share of the patience after which an engine that does not step is asked for a token.
DOUBT = 1 / 3
# An engine that tells no counters is judged by that token alone, which waits behind its queue.
CANARY_TIMEOUT = 10.0
# A step of a big model on a CPU may last; while it does, the engine uses the CPU. Not for ever.
LONGEST_STEP = 300.0
COMPUTING = 0.03  # cores: where many processes share a few, its part may be small
# What an engine with a full queue answers; one that has nothing to do has no reason to.
FULL = (429, 503)


@dataclass(frozen=True)
class Patience:
    """Seconds: without a step before an engine is stalled, then restarted; between idle canaries.

    A `canary_interval` of 0 asks an idle engine for nothing.
    """

    stall_after: float = 3.0
    restart_after: float = 30.0
    canary_interval: float = 15.0


class Progress:
    """When the engine last made a step, as far as looks at it can tell. Pure data and a clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: Steps | None = None
        self._alive = self.proven = clock()  # had no reason to step, or did; did for sure
        self.moves = 0  # steps seen, and tokens that came out

    @property
    def told(self) -> bool:
        """Whether it has ever told a counter."""
        return self._steps is not None

    def note(self, pulse: Pulse | None, *, asked: bool, computing: bool = False) -> None:
        """One look; None if it was not answered.

        `asked`: a token of ours is awaited, so the engine has work. `computing`: it uses the CPU.
        """
        if pulse is None:
            return
        if pulse.steps is not None and pulse.steps != self._steps:
            if self.told:
                self._moved()
            self._steps = pulse.steps
        elif self._may_rest(pulse, asked) or (computing and self.unproven_for() < LONGEST_STEP):
            self._alive = self._clock()

    def token(self) -> None:
        """A token we asked for came out."""
        self._moved()

    def forgive(self, seconds: float) -> None:
        """So long nobody looked, since we stood still ourselves: that says nothing of the engine."""
        self._alive = min(self._alive + max(0.0, seconds), self._clock())

    def stuck_for(self) -> float:
        """Seconds for which it has had work, or has not answered, and made no step."""
        return self._clock() - self._alive

    def unproven_for(self) -> float:
        """Seconds since it last made a step for sure."""
        return self._clock() - self.proven

    def _may_rest(self, pulse: Pulse, asked: bool) -> bool:
        """Whether standing still says nothing: no work, or no counter that could move."""
        return not self.told or not (pulse.load or asked)

    def _moved(self) -> None:
        self._alive = self.proven = self._clock()
        self.moves += 1


class EngineWatch:
    """Looks at one running engine twice a second. `load`: its requests, ours not among them."""

    def __init__(
        self,
        engine: EngineClient,
        model: str,
        patience: Patience,
        *,
        tracked: bool,
        cpu_seconds: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`tracked`: its /load is true. `cpu_seconds`: CPU time it used so far, if that says much."""
        self.load = 0
        self._engine = engine
        self._model = model
        self._patience = patience
        self._tracked = tracked
        self._progress = Progress()
        self._canary: asyncio.Task[bool] | None = None
        self._refusal: str | None = None
        self._owed = False  # the last token asked for never came
        self._cpu_seconds = cpu_seconds
        self._cpu_before: tuple[float, float] | None = None

    async def until_stalled(self) -> str:
        """Returns what is wrong once tokens no longer come; EngineCallError if nobody is there."""
        self._refusal = None
        while True:
            await self._doze()
            await self._look()
            if self._refusal is not None:
                return f"does not make a token: {self._refusal}"
            if (seconds := self._progress.stuck_for()) >= self._patience.stall_after:
                return f"made no step for {seconds:.1f} s, though it has work or does not answer"
            if self._is_due():
                self._ask_for_token()

    async def until_token(self, bound: float | None) -> bool:
        """Returns True once tokens come out again, False if none has within `bound` seconds."""
        before, started = self._progress.moves, time.monotonic()
        await server.cancel_and_wait(self._canary)
        while True:
            self._ask_for_token()
            await asyncio.sleep(POLL)
            with contextlib.suppress(EngineCallError):
                await self._look()
            # One more may be the last before it froze.
            if self._came_out() or self._progress.moves > before + 1:
                return True
            refused = time.monotonic() - started if self._refusal is not None else 0.0
            if bound is not None and max(self._progress.stuck_for(), refused) >= bound:
                return False

    async def close(self) -> None:
        """Asks nothing more."""
        await server.cancel_and_wait(self._canary)

    async def _doze(self) -> None:
        due = time.monotonic() + POLL
        await asyncio.sleep(POLL)
        self._progress.forgive(time.monotonic() - due)

    async def _look(self) -> None:
        """Raises EngineCallError if nobody is there to answer."""
        try:
            await self._ask_how_it_is()
        except NoDescriptor as error:
            log.error("%s", error)
            self._progress.forgive(POLL)

    async def _ask_how_it_is(self) -> None:
        patience = self._patience.stall_after
        asking = self._is_asking()
        asked = asking or self._owed
        try:
            tracked = self._tracked and self._progress.told  # the first look reads the counters
            steps = self._progress.unproven_for() >= STEPS_POLL
            pulse = await self._engine.pulse(patience=patience, tracked=tracked, steps=steps)
        except EngineSilent:
            self._progress.note(None, asked=asked)
            return
        if not self._tracked and not await self._engine.healthy(patience=patience):
            raise EngineCallError("the engine says that it is not healthy")
        self.load = max(0, (pulse.load or 0) - asking)
        self._progress.note(pulse, asked=asked, computing=self._is_computing())

    def _is_due(self) -> bool:
        if self._is_asking():
            return False
        if self._progress.stuck_for() >= self._patience.stall_after * DOUBT:
            return True
        interval = self._patience.canary_interval
        if self.load and not self._progress.told:
            interval = self._patience.stall_after
        return 0 < interval <= self._progress.unproven_for()

    def _is_asking(self) -> bool:
        return self._canary is not None and not self._canary.done()

    def _came_out(self) -> bool:
        canary = self._canary
        return canary is not None and canary.done() and not canary.cancelled() and canary.result()

    def _ask_for_token(self) -> None:
        if not self._is_asking():
            self._canary = asyncio.create_task(self._token())

    async def _token(self) -> bool:
        """Whether a token came out."""
        try:
            await self._engine.canary(self._model, timeout=CANARY_TIMEOUT)
        except EngineSilent as error:
            # Between this and the next one it has nothing to do; that does not make it well.
            self._owed = True
            if not self._progress.told:
                self._refusal = str(error)
            return False
        except EngineCallError as error:
            if error.status is not None and not (error.status in FULL and self.load):
                self._refusal = str(error)
            return False
        self._owed = False
        self._progress.token()
        return True

    def _is_computing(self) -> bool:
        """Whether it used the CPU since the last look; asked only of one that is in doubt."""
        if self._progress.stuck_for() < self._patience.stall_after * DOUBT:
            self._cpu_before = None
            return False
        if (used := self._cpu_seconds()) is None:
            return False
        now, before = time.monotonic(), self._cpu_before
        self._cpu_before = (now, used)
        return before is not None and used - before[1] >= COMPUTING * (now - before[0])
