"""Engine health is token progress: an engine is healthy while it makes tokens, whatever /health says.

A vLLM whose core is frozen goes on answering /health with 200, while its load and its counters no
longer change. So an engine that has requests is judged by its counters. Where counters prove
nothing (no requests, a client that reads slowly, an engine without metrics) the monitor asks for
one token: the canary.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kodolly.engines.client import EngineClient
from kodolly.engines.metrics import EngineSample, Steps
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import server

log = logging.getLogger(__name__)

# An engine that has made no step for this share of `stall_after` is asked for a canary.
CANARY_SHARE = 1 / 3
# On a CPU one step of a big model may take long. CPU use excuses the engine for at most this (s).
LONGEST_STEP = 300.0
# CPU use (in cores) that counts as computing. Low, since many processes may share a few cores.
COMPUTING_CORES = 0.03
# An engine with a full queue answers the canary so. An idle engine has no reason to.
QUEUE_FULL_STATUS = (429, 503)


@dataclass(frozen=True)
class HealthLimits:
    """How long an engine may make no progress, and how often it is checked. All in seconds."""

    stall_after: float = 3.0  # without a step, before the worker leaves rotation
    restart_after: float = 30.0  # without a step, before the engine is started again
    canary_interval: float = 15.0  # between canaries for an idle engine; 0: none
    poll_interval: float = 0.5
    # Between two readings of the counters. vLLM sends 50 kB of metrics from the process that also
    # writes the answers, so not every poll reads them.
    steps_interval: float = 0.9
    # For one canary. An engine without counters may have a queue in front of it.
    canary_timeout: float = 10.0


class StallClock:
    """Measures how long an engine has been without progress. Holds only data and a clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: returns the time in seconds."""
        self._clock = clock
        self._steps: Steps | None = None
        self._last_step = clock()  # time of the last step that was seen for sure
        self._blameless_until = (
            clock()
        )  # time until which the engine is not blamed for standing still
        self.progress_count = 0  # steps seen, and tokens that arrived

    @property
    def has_counters(self) -> bool:
        """Whether the engine has reported its counters at least once."""
        return self._steps is not None

    def observe(
        self, sample: EngineSample | None, *, canary_pending: bool, computing: bool = False
    ) -> None:
        """Takes one sample of the engine; None means that it did not answer.

        `canary_pending`: a canary waits for its token, so the engine has work to do.
        `computing`: the engine has used the CPU since the last sample.
        """
        if sample is None:
            return
        # CPU that turns text into tokens is no long step: no token is under way.
        computing = computing and not sample.tokenizes
        if sample.steps is not None and sample.steps != self._steps:
            if self.has_counters:
                self._record_progress()
            self._steps = sample.steps
        elif self._may_stand_still(sample, canary_pending) or (
            computing and self.seconds_since_step() < LONGEST_STEP
        ):
            self._blameless_until = self._clock()

    def token(self) -> None:
        """The token of a canary arrived."""
        self._record_progress()

    def discount(self, seconds: float) -> None:
        """Does not count `seconds` in which this process itself did not run."""
        self._blameless_until = min(self._blameless_until + max(0.0, seconds), self._clock())

    def seconds_stalled(self) -> float:
        """For how long it has made no step although it has work, or has not answered."""
        return self._clock() - self._blameless_until

    def seconds_since_step(self) -> float:
        """For how long no step was seen, for whatever reason."""
        return self._clock() - self._last_step

    def _may_stand_still(self, sample: EngineSample, canary_pending: bool) -> bool:
        """Whether counters that do not change prove nothing: no work, or no counters at all."""
        return not self.has_counters or not (sample.load or canary_pending)

    def _record_progress(self) -> None:
        self._blameless_until = self._last_step = self._clock()
        self.progress_count += 1


class EngineMonitor:
    """Polls one running engine. `load`: requests in the engine, without our own canary."""

    def __init__(
        self,
        engine: EngineClient,
        model: str,
        limits: HealthLimits,
        *,
        tracks_load: bool,
        cpu_seconds: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`model`: the name that canaries ask for. `tracks_load`: its /load can be believed.

        `cpu_seconds`: returns the CPU time that the engine has used, or None if unknown.
        """
        self.load = 0
        self._engine = engine
        self._model = model
        self._limits = limits
        self._tracks_load = tracks_load
        self._clock = StallClock()
        self._canary: asyncio.Task[bool] | None = None
        self._canary_error: str | None = None
        self._canary_timed_out = False
        self._cpu_seconds = cpu_seconds
        self._last_cpu: tuple[float, float] | None = None  # (time, CPU seconds) at the last sample

    async def until_stalled(self) -> str:
        """Waits until tokens stop coming out; returns what is wrong, for the log.

        Raises EngineCallError when nobody answers at the engine's address.
        """
        self._canary_error = None
        while True:
            await self._sleep()
            await self._poll()
            if self._canary_error is not None:
                return f"does not make a token: {self._canary_error}"
            if (seconds := self._clock.seconds_stalled()) >= self._limits.stall_after:
                return f"made no step for {seconds:.1f} s, though it has work or does not answer"
            if self._canary_is_due():
                self._send_canary()

    async def until_token(self, timeout: float | None) -> bool:
        """Waits for tokens to come out again; False if none has after `timeout` seconds."""
        count_before, started = self._clock.progress_count, time.monotonic()
        await server.cancel_and_wait(self._canary)
        while True:
            self._send_canary()
            await asyncio.sleep(self._limits.poll_interval)
            with contextlib.suppress(EngineCallError):
                await self._poll()
            # A single step may have been its last one before it froze: two are needed.
            if self._canary_succeeded() or self._clock.progress_count > count_before + 1:
                return True
            refusing = time.monotonic() - started if self._canary_error is not None else 0.0
            if timeout is not None and max(self._clock.seconds_stalled(), refusing) >= timeout:
                return False

    async def close(self) -> None:
        """Cancels a canary that is under way."""
        await server.cancel_and_wait(self._canary)

    async def _sleep(self) -> None:
        due = time.monotonic() + self._limits.poll_interval
        await asyncio.sleep(self._limits.poll_interval)
        self._clock.discount(time.monotonic() - due)  # this process was paused: not its fault

    async def _poll(self) -> None:
        """Takes one sample. Raises EngineCallError when nobody answers at the engine's address."""
        try:
            await self._take_sample()
        except NoDescriptor as error:
            log.error("%s", error)
            self._clock.discount(self._limits.poll_interval)

    async def _take_sample(self) -> None:
        timeout = self._limits.stall_after
        canary_running = self._canary_is_running()
        pending = canary_running or self._canary_timed_out
        try:
            # The first sample must read the counters, so it does not trust /load alone.
            load_is_enough = self._tracks_load and self._clock.has_counters
            need_steps = self._clock.seconds_since_step() >= self._limits.steps_interval
            sample = await self._engine.sample(
                timeout=timeout, tracks_load=load_is_enough, need_steps=need_steps
            )
        except EngineSilent:
            self._clock.observe(None, canary_pending=pending)
            return
        if not self._tracks_load:
            await self._engine.require_health(timeout=timeout)
        self.load = max(0, (sample.load or 0) - canary_running)
        self._clock.observe(sample, canary_pending=pending, computing=self._is_computing())

    def _canary_is_due(self) -> bool:
        if self._canary_is_running():
            return False
        if self._clock.seconds_stalled() >= self._limits.stall_after * CANARY_SHARE:
            return True
        interval = self._limits.canary_interval
        if self.load and not self._clock.has_counters:
            interval = self._limits.stall_after
        return 0 < interval <= self._clock.seconds_since_step()

    def _canary_is_running(self) -> bool:
        return self._canary is not None and not self._canary.done()

    def _canary_succeeded(self) -> bool:
        canary = self._canary
        return canary is not None and canary.done() and not canary.cancelled() and canary.result()

    def _send_canary(self) -> None:
        if not self._canary_is_running():
            self._canary = asyncio.create_task(self._run_canary())

    async def _run_canary(self) -> bool:
        """Asks for one token; returns whether it arrived."""
        try:
            await self._engine.canary(self._model, timeout=self._limits.canary_timeout)
        except EngineSilent as error:
            # Until the next canary the engine looks idle. That must not count as healthy.
            self._canary_timed_out = True
            if not self._clock.has_counters:
                self._canary_error = str(error)
            return False
        except EngineCallError as error:
            queue_full = error.status in QUEUE_FULL_STATUS and self.load
            if error.status is not None and not queue_full:
                self._canary_error = str(error)
            return False
        self._canary_timed_out = False
        self._clock.token()
        return True

    def _is_computing(self) -> bool:
        """Whether it used the CPU since the last sample; only measured once a stall is near."""
        if self._clock.seconds_stalled() < self._limits.stall_after * CANARY_SHARE:
            self._last_cpu = None
            return False
        if (used := self._cpu_seconds()) is None:
            return False
        now, last = time.monotonic(), self._last_cpu
        self._last_cpu = (now, used)
        return last is not None and used - last[1] >= COMPUTING_CORES * (now - last[0])
