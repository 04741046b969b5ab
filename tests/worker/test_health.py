"""Health is token progress: the judge by a hand-moved clock, the monitor before a scripted engine."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from support.clock import Clock
from support.processes import eventually, wait_until
from support.scripted_engine import Script, ScriptedEngine

from kodolly.engines.client import EngineClient
from kodolly.engines.metrics import EngineSample
from kodolly.errors import EngineCallError
from kodolly.http.client import new_client
from kodolly.http.server import cancel_and_wait
from kodolly.settings import ControllerSettings, WorkerSettings
from kodolly.worker.cpu import engine_seconds
from kodolly.worker.health import LONGEST_STEP, EngineMonitor, HealthLimits, StallClock

ASK = {"model": "demo", "prompt": "x", "max_tokens": 4000}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def judge(clock: Clock) -> StallClock:
    """One that has seen the engine's counters at 1."""
    judge = StallClock(clock)
    judge.observe(EngineSample(0, (1.0,)), canary_pending=False)
    return judge


def test_work_without_a_step_is_stuck(judge: StallClock, clock: Clock) -> None:
    """Requests in the engine and counters that stand still: stuck since the last step."""
    clock.now = 2
    judge.observe(EngineSample(1, (2.0,)), canary_pending=False)
    clock.now = 5
    judge.observe(EngineSample(1, (2.0,)), canary_pending=False)
    assert judge.seconds_stalled() == 3

    judge.observe(EngineSample(1, (3.0,)), canary_pending=False)
    assert judge.seconds_stalled() == 0


def test_our_own_standing_still_is_not_the_engines(judge: StallClock, clock: Clock) -> None:
    """A time in which nobody looked does not count, and never more than there was."""
    clock.now = 10
    judge.discount(8.5)
    assert judge.seconds_stalled() == 1.5
    judge.discount(-1)
    assert judge.seconds_stalled() == 1.5
    judge.discount(60)
    assert judge.seconds_stalled() == 0


async def test_a_watch_that_was_held_up_blames_no_engine() -> None:
    """An agent that was paused for longer than its patience finds its engine well."""
    slow = limits(1.5, canary_interval=0, poll_interval=0.4)
    async with monitored(Script(load=1), slow) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: engine.requests)
        await asyncio.sleep(0.1)
        time.sleep(2)  # noqa: ASYNC251 - the whole of this process, its engine too
        await asyncio.sleep(0.5)
        assert not stalled.done()
        stalled.cancel()


def test_an_engine_with_nothing_to_do_is_not_stuck(judge: StallClock, clock: Clock) -> None:
    """Without work the counters stand still for good reason; a token asked of it is work."""
    clock.now = 60
    judge.observe(EngineSample(0, (1.0,)), canary_pending=False)
    assert judge.seconds_stalled() == 0

    clock.now = 63
    judge.observe(EngineSample(0, (1.0,)), canary_pending=True)
    assert judge.seconds_stalled() == 3
    judge.token()
    assert judge.seconds_stalled() == 0


def test_no_answer_is_no_progress(judge: StallClock, clock: Clock) -> None:
    """An engine that does not answer is stuck, whether or not it had anything to do."""
    clock.now = 3
    judge.observe(None, canary_pending=False)

    assert judge.seconds_stalled() == 3


def test_a_long_step_on_a_cpu_is_not_stuck(judge: StallClock, clock: Clock) -> None:
    """While it computes it may take its time over a long prompt, but not for ever."""
    while clock.now < LONGEST_STEP - 1:
        clock.now += 1
        judge.observe(EngineSample(1, (1.0,)), canary_pending=False, computing=True)
    assert judge.seconds_stalled() == 0

    clock.now += 5
    judge.observe(EngineSample(1, (1.0,)), canary_pending=False, computing=True)
    assert judge.seconds_stalled() == 5


def test_tokenizing_is_no_step_however_much_it_computes(clock: Clock) -> None:
    """An engine that only turns text into tokens makes none: its CPU time does not excuse it."""
    judge = StallClock(clock)
    judge.observe(EngineSample(1, (1.0,)), canary_pending=False, computing=True)
    for _ in range(4):
        clock.now += 1
        sample = EngineSample(1, (1.0,), tokenizes=True)
        judge.observe(sample, canary_pending=False, computing=True)
    assert judge.seconds_stalled() == 4


def test_an_engine_without_counters_is_judged_by_its_tokens(clock: Clock) -> None:
    """Where no counter can move, standing still says nothing."""
    judge = StallClock(clock)
    clock.now = 60
    judge.observe(EngineSample(3, None), canary_pending=False)

    assert judge.seconds_stalled() == 0


def test_out_of_the_box_a_frozen_engine_leaves_rotation_within_five_seconds() -> None:
    """The defaults: a last look at the counters, the patience, one more look, and a beat."""
    limits = HealthLimits(WorkerSettings().stall_after)
    last_look = limits.steps_interval + limits.poll_interval  # may be so old, and show a step
    assert last_look + limits.stall_after + limits.poll_interval <= 5
    assert WorkerSettings().heart_beat_interval * ControllerSettings().missed_beats <= 4


def limits(
    stall_after: float, canary_interval: float = 15.0, poll_interval: float = 0.03
) -> HealthLimits:
    """Limits with shorter waits than in life."""
    return HealthLimits(
        stall_after,
        canary_interval=canary_interval,
        poll_interval=poll_interval,
        steps_interval=0.05,
        canary_timeout=0.5,
    )


@asynccontextmanager
async def monitored(
    script: Script, limits: HealthLimits, *, tracks_load: bool = True
) -> AsyncIterator[tuple[ScriptedEngine, EngineMonitor, EngineClient]]:
    """A running engine and its monitor."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(script))
        http = await stack.enter_async_context(new_client())
        client = EngineClient(engine.url, None, http)
        monitor = EngineMonitor(client, "demo", limits, tracks_load=tracks_load)
        stack.push_async_callback(monitor.close)
        yield engine, monitor, client


@asynccontextmanager
async def asking(client: EngineClient) -> AsyncIterator[None]:
    """A long answer is being made meanwhile."""
    task = asyncio.create_task(client.complete(ASK))
    try:
        yield
    finally:
        await cancel_and_wait(task)


async def test_health_is_a_lie_and_the_watch_does_not_believe_it() -> None:
    """An engine frozen in the middle of an answer, /health 200: stalled, and back with a token."""
    script = Script(token_delay=0.01, length=4096)
    async with monitored(script, limits(2)) as (engine, monitor, client), asking(client):
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: engine.tokens > 60)
        assert not stalled.done()
        assert monitor.load == 1

        engine.script.hang_after = 0
        assert "no step" in await asyncio.wait_for(stalled, 20)
        assert await client.healthy()
        assert not await monitor.until_token(0.5)
        engine.script.hang_after = None
        assert await asyncio.wait_for(monitor.until_token(None), 20)


async def test_an_idle_engine_is_asked_for_a_token_now_and_then() -> None:
    """One that froze with nothing to do is found before a request is."""
    async with monitored(Script(), limits(2, canary_interval=0.1)) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: len(engine.requests) > 3)
        assert not stalled.done()

        engine.script.hang_after = 0
        await asyncio.wait_for(stalled, 20)


async def test_an_idle_engine_may_be_left_alone() -> None:
    """With canary_interval 0 nothing is asked of an engine without work."""
    async with monitored(Script(), limits(0.4, canary_interval=0)) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        await asyncio.sleep(0.5)
        assert engine.requests == []
        stalled.cancel()


async def test_an_engine_that_refuses_a_token_is_out_of_rotation() -> None:
    """An idle engine that answers the canary with an error is not fit for traffic."""
    async with monitored(Script(), limits(30, canary_interval=0.1)) as (engine, monitor, _):
        engine.script.refuse_canary = True
        assert "scripted failure" in await asyncio.wait_for(monitor.until_stalled(), 20)
        assert not await asyncio.wait_for(monitor.until_token(0.2), 20)

        engine.script.refuse_canary = False
        assert await asyncio.wait_for(monitor.until_token(None), 20)


async def test_a_full_engine_is_not_sick() -> None:
    """A 503 to the canary of an engine that has work says that its queue is full."""
    script = Script(token_delay=1.0, length=4096, refuse_canary=True)
    slow = limits(2.4)  # in doubt after a third of it
    async with monitored(script, slow) as (engine, monitor, client), asking(client):
        await eventually(lambda: engine.running)
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: [seen.outcome for seen in engine.requests].count("refused") > 1)
        assert not stalled.done()
        stalled.cancel()


async def test_a_load_without_work_is_settled_by_a_token() -> None:
    """A client that reads slowly keeps a finished answer open: no step is due, and none is missed."""
    async with monitored(Script(load=1), limits(3, canary_interval=0)) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: len(engine.requests) > 1)
        assert not stalled.done()
        stalled.cancel()


async def test_an_engine_without_metrics_is_asked_for_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that tells no counter is stalled when a token does not come out in time."""
    monkeypatch.setattr("kodolly.engines.metrics.STEP_METRICS", ())
    # Long enough for a slow machine's answer to a poll, which would be a stall of another kind.
    async with monitored(Script(load=1), limits(0.8, canary_interval=0)) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        await eventually(lambda: len(engine.requests) > 3)
        assert not stalled.done()

        engine.script.hang_after = 0
        assert "in time" in await asyncio.wait_for(stalled, 20)


async def test_the_canary_is_not_told_as_load() -> None:
    """What is told to the controller are the requests of others."""
    script = Script(first_delay=0.3)
    async with monitored(script, limits(30, canary_interval=0.01)) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        loads = set()
        while len(engine.requests) < 3:
            await asyncio.sleep(0.01)
            loads.add(monitor.load)
        assert loads == {0}
        stalled.cancel()


@pytest.mark.parametrize("gone", [True, False])
async def test_an_attached_engine_that_is_gone_or_ill_says_so(gone: bool) -> None:
    """Nobody listens, or /health is not 200: no stall but an error, and no patience with it."""
    async with monitored(Script(), limits(600), tracks_load=False) as (engine, monitor, _):
        stalled = asyncio.create_task(monitor.until_stalled())
        engine.script.health_status = 500
        if gone:
            await engine.__aexit__(None, None, None)
        with pytest.raises(EngineCallError):
            await asyncio.wait_for(stalled, 20)


SPIN = "while True: pass"


@pytest.mark.parametrize("server", ["child.wait()", SPIN])
def test_cpu_time_tells_work_from_a_freeze(server: str) -> None:
    """What computes uses CPU time; stopped it uses none, though the server before it goes on."""
    child = f"subprocess.Popen([sys.executable, '-c', {SPIN!r}])"
    code = f"import subprocess, sys\nchild = {child}\nprint(child.pid, flush=True)\n{server}"
    with subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            wait_until(lambda: (engine_seconds(process.pid) or 0) > 1.2)
            wait_until(lambda: psutil.Process(pid).cpu_times().user > 0.6)  # most of it its own
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T")
            before = engine_seconds(process.pid)
            time.sleep(0.5)
            assert engine_seconds(process.pid) == before
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert engine_seconds(process.pid) is None
