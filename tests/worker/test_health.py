"""Health is token progress: the judge by a hand-moved clock, the watch before a scripted engine."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest
from support.clock import Clock
from support.processes import eventually, wait_until
from support.scripted_engine import Script, ScriptedEngine

from kodolly.engines.client import EngineClient
from kodolly.engines.metrics import Pulse
from kodolly.errors import EngineCallError
from kodolly.http.server import cancel_and_wait
from kodolly.settings import ControllerSettings, WorkerSettings
from kodolly.worker import health
from kodolly.worker.cpu import engine_seconds
from kodolly.worker.health import LONGEST_STEP, EngineWatch, Patience, Progress

ASK = {"model": "demo", "prompt": "x", "max_tokens": 4000}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def judge(clock: Clock) -> Progress:
    """One that has seen the engine's counters at 1."""
    judge = Progress(clock)
    judge.note(Pulse(0, (1.0,)), asked=False)
    return judge


def test_work_without_a_step_is_stuck(judge: Progress, clock: Clock) -> None:
    """Requests in the engine and counters that stand still: stuck since the last step."""
    clock.now = 2
    judge.note(Pulse(1, (2.0,)), asked=False)
    clock.now = 5
    judge.note(Pulse(1, (2.0,)), asked=False)
    assert judge.stuck_for() == 3

    judge.note(Pulse(1, (3.0,)), asked=False)
    assert judge.stuck_for() == 0


def test_our_own_standing_still_is_not_the_engines(judge: Progress, clock: Clock) -> None:
    """A time in which nobody looked does not count, and never more than there was."""
    clock.now = 10
    judge.forgive(8.5)
    assert judge.stuck_for() == 1.5
    judge.forgive(-1)
    assert judge.stuck_for() == 1.5
    judge.forgive(60)
    assert judge.stuck_for() == 0


async def test_a_watch_that_was_held_up_blames_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was paused for longer than its patience finds its engine well."""
    async with watched(Script(load=1), Patience(1.5, canary_interval=0)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: engine.requests)
        monkeypatch.setattr(health, "POLL", 0.4)
        await asyncio.sleep(0.1)
        time.sleep(2)  # noqa: ASYNC251 - the whole of this process, its engine too
        await asyncio.sleep(0.5)
        assert not stalled.done()
        stalled.cancel()


def test_an_engine_with_nothing_to_do_is_not_stuck(judge: Progress, clock: Clock) -> None:
    """Without work the counters stand still for good reason; a token asked of it is work."""
    clock.now = 60
    judge.note(Pulse(0, (1.0,)), asked=False)
    assert judge.stuck_for() == 0

    clock.now = 63
    judge.note(Pulse(0, (1.0,)), asked=True)
    assert judge.stuck_for() == 3
    judge.token()
    assert judge.stuck_for() == 0


def test_no_answer_is_no_progress(judge: Progress, clock: Clock) -> None:
    """An engine that does not answer is stuck, whether or not it had anything to do."""
    clock.now = 3
    judge.note(None, asked=False)

    assert judge.stuck_for() == 3


def test_a_long_step_on_a_cpu_is_not_stuck(judge: Progress, clock: Clock) -> None:
    """While it computes it may take its time over a long prompt, but not for ever."""
    while clock.now < LONGEST_STEP - 1:
        clock.now += 1
        judge.note(Pulse(1, (1.0,)), asked=False, computing=True)
    assert judge.stuck_for() == 0

    clock.now += 5
    judge.note(Pulse(1, (1.0,)), asked=False, computing=True)
    assert judge.stuck_for() == 5


def test_an_engine_without_counters_is_judged_by_its_tokens(clock: Clock) -> None:
    """Where no counter can move, standing still says nothing."""
    judge = Progress(clock)
    clock.now = 60
    judge.note(Pulse(3, None), asked=False)

    assert judge.stuck_for() == 0


def test_out_of_the_box_a_frozen_engine_leaves_rotation_within_five_seconds() -> None:
    """The defaults: a last look at the counters, the patience, one more look, and a beat."""
    last_look = health.STEPS_POLL + health.POLL  # may be as old as that, and show a step
    assert last_look + WorkerSettings().stall_after + health.POLL <= 5
    assert WorkerSettings().heart_beat_interval * ControllerSettings().missed_beats <= 4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks more often than in life."""
    monkeypatch.setattr(health, "POLL", 0.03)
    monkeypatch.setattr(health, "STEPS_POLL", 0.05)
    monkeypatch.setattr(health, "CANARY_TIMEOUT", 0.5)


@asynccontextmanager
async def watched(
    script: Script, patience: Patience, *, tracked: bool = True
) -> AsyncIterator[tuple[ScriptedEngine, EngineWatch, EngineClient]]:
    """A running engine and its watch."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(script))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        client = EngineClient(engine.url, None, session)
        watch = EngineWatch(client, "demo", patience, tracked=tracked)
        stack.push_async_callback(watch.close)
        yield engine, watch, client


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
    async with watched(script, Patience(2)) as (engine, watch, client), asking(client):
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: engine.tokens > 60)
        assert not stalled.done()
        assert watch.load == 1

        engine.script.hang_after = 0
        assert "no step" in await asyncio.wait_for(stalled, 20)
        assert await client.healthy()
        assert not await watch.until_token(0.5)
        engine.script.hang_after = None
        assert await asyncio.wait_for(watch.until_token(None), 20)


async def test_an_idle_engine_is_asked_for_a_token_now_and_then() -> None:
    """One that froze with nothing to do is found before a request is."""
    async with watched(Script(), Patience(2, canary_interval=0.1)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: len(engine.requests) > 3)
        assert not stalled.done()

        engine.script.hang_after = 0
        await asyncio.wait_for(stalled, 20)


async def test_an_idle_engine_may_be_left_alone() -> None:
    """With canary_interval 0 nothing is asked of an engine without work."""
    async with watched(Script(), Patience(0.4, canary_interval=0)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        await asyncio.sleep(0.5)
        assert engine.requests == []
        stalled.cancel()


async def test_an_engine_that_refuses_a_token_is_out_of_rotation() -> None:
    """An idle engine that answers the canary with an error is not fit for traffic."""
    async with watched(Script(), Patience(30, canary_interval=0.1)) as (engine, watch, _):
        engine.script.refuse_canary = True
        assert "scripted failure" in await asyncio.wait_for(watch.until_stalled(), 20)
        assert not await asyncio.wait_for(watch.until_token(0.2), 20)

        engine.script.refuse_canary = False
        assert await asyncio.wait_for(watch.until_token(None), 20)


async def test_a_full_engine_is_not_sick() -> None:
    """A 503 to the canary of an engine that has work says that its queue is full."""
    script = Script(token_delay=1.0, length=4096, refuse_canary=True)
    patience = Patience(2.4)  # in doubt after a third of it
    async with watched(script, patience) as (engine, watch, client), asking(client):
        await eventually(lambda: engine.running)
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: [seen.outcome for seen in engine.requests].count("refused") > 1)
        assert not stalled.done()
        stalled.cancel()


async def test_a_load_without_work_is_settled_by_a_token() -> None:
    """A client that reads slowly keeps a finished answer open: no step is due, and none is missed."""
    async with watched(Script(load=1), Patience(3, canary_interval=0)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: len(engine.requests) > 1)
        assert not stalled.done()
        stalled.cancel()


async def test_an_engine_without_metrics_is_asked_for_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that tells no counter is stalled when a token does not come out in time."""
    monkeypatch.setattr("kodolly.engines.metrics.STEP_MARKS", ())
    async with watched(Script(load=1), Patience(0.2, canary_interval=0)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        await eventually(lambda: len(engine.requests) > 3)
        assert not stalled.done()

        engine.script.hang_after = 0
        assert "in time" in await asyncio.wait_for(stalled, 20)


async def test_the_canary_is_not_told_as_load() -> None:
    """What is told to the controller are the requests of others."""
    script = Script(first_delay=0.3)
    async with watched(script, Patience(30, canary_interval=0.01)) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
        loads = set()
        while len(engine.requests) < 3:
            await asyncio.sleep(0.01)
            loads.add(watch.load)
        assert loads == {0}
        stalled.cancel()


@pytest.mark.parametrize("gone", [True, False])
async def test_an_attached_engine_that_is_gone_or_ill_says_so(gone: bool) -> None:
    """Nobody listens, or /health is not 200: no stall but an error, and no patience with it."""
    async with watched(Script(), Patience(600), tracked=False) as (engine, watch, _):
        stalled = asyncio.create_task(watch.until_stalled())
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
