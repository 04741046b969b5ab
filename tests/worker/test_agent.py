"""The agent beside one engine, with a scripted engine as its real child process."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.apps import serving
from support.deaf import deaf
from support.processes import eventually, free_port
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import EngineClient
from kodolly.engines.command import EngineCommand
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension, WorkerState
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.health import HealthLimits
from kodolly.worker.registration import ControllerClient

TESTS = str(Path(__file__).resolve().parents[1])
QUICK = HealthLimits(stall_after=0.5, restart_after=600, poll_interval=0.1)


class Bench:
    """A controller, and an agent whose engine is a child process."""

    def __init__(self, controller: Controller, url: str, client: httpx.AsyncClient) -> None:
        self.controller = controller
        self.port = free_port()
        self.client = client
        self.controller_clients: list[ControllerClient] = []
        self.controller_url = url
        self.controllers = [url]

    @property
    def engine_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def agent(self, *flags: str, drain: float = 5, limits: HealthLimits | None = None) -> Agent:
        """An agent that is not started yet."""
        argv = (sys.executable, "-m", "support.scripted_engine", "--port", str(self.port), *flags)
        self.controller_clients = [
            ControllerClient(url, None, self.client) for url in self.controllers
        ]
        return Agent(
            Announcement(
                "http://127.0.0.1:9",
                ("demo",),
                1,
                Extension(heart_beat_interval=0.2, engine_url=self.engine_url),
            ),
            EngineClient(self.engine_url, None, self.client),
            self.controller_clients,
            EngineCommand(argv, {"PYTHONPATH": TESTS}),
            start_timeout=30,
            drain_timeout=drain,
            limits=limits or HealthLimits(poll_interval=0.1),
        )

    def state(self) -> str | None:
        """What the controller knows of the worker."""
        return next((row.state.value for row in self.controller.registry.rows()), None)

    async def script(self, **fields: Any) -> None:
        """Changes the running engine's script."""
        answer = await self.client.post(f"{self.engine_url}/scripted", json=fields)
        assert answer.status_code == 200


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("kodolly.worker.agent.IDLE_BEFORE_STOP", 0.3)
    # The registry waits a second for a heartbeat here: a pause of ours must not pass for a worker's.
    controller = Controller(
        Registry(90, 5, pause_threshold=0.5), Dispatcher("shortest_queue"), None
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(create_app(controller)))
        client = await stack.enter_async_context(new_client())
        yield Bench(controller, url, client)


async def test_ready_only_after_a_token(bench: Bench) -> None:
    """An engine that listens but makes no token is starting; the first token makes it ready."""
    agent = bench.agent("--script", '{"fail_status": 503}')
    agent.start()
    try:
        await eventually(lambda: bench.state() == "starting")
        await eventually(agent.engine.healthy)
        assert agent.state is WorkerState.STARTING

        await bench.script(fail_status=None)
        await eventually(lambda: bench.state() == "ready")
        assert agent.context_length
    finally:
        await agent.drain()


async def test_a_crashed_engine_leaves_rotation_and_comes_back(bench: Bench) -> None:
    """SIGKILL of the engine: the controller learns at once, the agent starts it again."""
    agent = bench.agent()
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready")
        first = agent.engine_pid
        os.kill(first, signal.SIGKILL)

        await eventually(lambda: bench.state() == "starting")
        await eventually(lambda: bench.state() == "ready", timeout=20)
        assert agent.engine_pid not in (0, first)
    finally:
        await agent.drain()


async def test_heartbeats_carry_the_engines_load(bench: Bench) -> None:
    """queue_length is what runs in the engine, whoever asked it."""
    agent = bench.agent("--script", '{"token_delay": 0.05, "length": 4096}')
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready")
        body = {"model": "demo", "prompt": "x", "max_tokens": 4000}
        asking = [
            asyncio.create_task(
                bench.client.post(f"{bench.engine_url}/v1/completions", json=body, timeout=None)
            )
            for _ in range(2)
        ]
        await eventually(lambda: bench.controller.registry.rows()[0].queue_length == 2)
        for task in asking:
            task.cancel()
        await eventually(lambda: bench.controller.registry.rows()[0].queue_length == 0)
    finally:
        await agent.drain()


async def test_drain_waits_for_running_requests(bench: Bench) -> None:
    """A draining worker gets nothing new, finishes what runs, says goodbye and stops its engine."""
    agent = bench.agent("--script", '{"token_delay": 0.05, "length": 20}')
    agent.start()
    await eventually(lambda: bench.state() == "ready")
    body = {"model": "demo", "prompt": "x", "max_tokens": 20}
    running = asyncio.create_task(agent.engine.complete(body))
    await eventually(agent.queue_length)

    draining = asyncio.create_task(agent.drain())
    await eventually(lambda: bench.state() in ("draining", None))
    answer = await running
    await draining

    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert bench.state() is None
    assert not await agent.engine.healthy()


async def test_drain_has_an_end(bench: Bench) -> None:
    """A request that outlasts the drain timeout is cut, not waited for."""
    agent = bench.agent("--script", '{"token_delay": 1, "length": 4096}', drain=0.5)
    agent.start()
    await eventually(lambda: bench.state() == "ready", timeout=20)
    body = {"model": "demo", "prompt": "x", "max_tokens": 4000}
    running = asyncio.create_task(agent.engine.complete(body))
    await eventually(agent.queue_length)

    await asyncio.wait_for(agent.drain(), 20)

    assert running in (await asyncio.wait({running}, timeout=5))[0]
    assert running.exception() is not None


async def test_a_new_controller_learns_of_us_by_the_next_beat(bench: Bench) -> None:
    """A controller that lost its table knows the worker again after one heartbeat."""
    agent = bench.agent()
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready")
        bench.controller.registry.remove("http://127.0.0.1:9")

        await eventually(lambda: bench.state() == "ready")
    finally:
        await agent.drain()


async def test_a_frozen_engine_leaves_rotation_and_comes_back(bench: Bench) -> None:
    """An engine that has work and makes no token is stalled, whatever /health says; then it is back."""
    agent = bench.agent("--script", '{"token_delay": 0.02, "length": 4096}', limits=QUICK)
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready", timeout=20)
        pid = agent.engine_pid
        body = {"model": "demo", "prompt": "x", "max_tokens": 4000}
        running = asyncio.create_task(agent.engine.complete(body))
        await eventually(agent.queue_length)
        await bench.script(hang_after=0)

        await eventually(lambda: bench.state() == "stalled", timeout=20)
        assert await agent.engine.healthy()
        assert bench.controller.registry.ready() == []
        await bench.script(hang_after=None)
        await eventually(lambda: bench.state() == "ready", timeout=20)
        assert agent.engine_pid == pid
        running.cancel()
    finally:
        await agent.drain()


@pytest.mark.parametrize("leaves_first", [False, True])
async def test_an_engine_that_freezes_while_it_drains_is_told(
    bench: Bench, leaves_first: bool
) -> None:
    """Its streams can then go on elsewhere; the worker itself stays out of rotation."""
    agent = bench.agent("--script", '{"token_delay": 0.02, "length": 4096}', limits=QUICK)
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready", timeout=20)
        body = {"model": "demo", "prompt": "x", "max_tokens": 4000}
        running = asyncio.create_task(agent.engine.complete(body))
        await eventually(agent.queue_length)
        if leaves_first:
            agent.leave_rotation()
            await eventually(lambda: bench.state() == "draining")
        await bench.script(hang_after=0)

        await eventually(lambda: bench.state() == "stalled", timeout=20)
        agent.leave_rotation()
        assert agent.state is WorkerState.STALLED
        await bench.script(hang_after=None)
        await eventually(lambda: bench.state() == "draining", timeout=20)
        running.cancel()
    finally:
        await agent.drain()


async def test_an_idle_engine_that_freezes_is_noticed(bench: Bench) -> None:
    """With nothing to do it still must answer: a stopped engine leaves rotation, and comes back."""
    agent = bench.agent(limits=QUICK)
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready", timeout=20)
        pid = agent.engine_pid
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: bench.state() == "stalled", timeout=20)

        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: bench.state() == "ready", timeout=20)
        assert agent.engine_pid == pid
    finally:
        await agent.drain()


async def test_an_engine_that_stays_stuck_is_started_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of rotation is not enough: after `restart_after` a new engine takes its place."""
    monkeypatch.setattr("kodolly.worker.agent.ENGINE_GRACE", 0.5)
    agent = bench.agent(limits=HealthLimits(stall_after=0.5, restart_after=1.5, poll_interval=0.1))
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready", timeout=20)
        first = agent.engine_pid
        os.kill(first, signal.SIGSTOP)

        await eventually(lambda: bench.state() == "stalled", timeout=20)
        await eventually(lambda: bench.state() == "starting", timeout=20)
        await eventually(lambda: bench.state() == "ready", timeout=20)
        assert agent.engine_pid not in (0, first)
    finally:
        await agent.drain()


async def test_a_frozen_engine_does_not_hold_up_the_beats(bench: Bench) -> None:
    """While the engine answers nothing, beats go on: the worker is there, its engine is stalled."""
    agent = bench.agent(limits=QUICK)
    agent.start()
    try:
        await eventually(lambda: bench.state() == "ready", timeout=20)
        os.kill(agent.engine_pid, signal.SIGSTOP)
        await eventually(lambda: bench.state() == "stalled", timeout=20)
        await asyncio.sleep(2)  # ten intervals; the controller's patience is five

        bench.controller.registry.sweep()
        assert bench.state() == "stalled"
        os.kill(agent.engine_pid, signal.SIGCONT)
    finally:
        await agent.drain()


async def test_a_drain_leaves_rotation_before_anything_stops(bench: Bench) -> None:
    """At SIGTERM the controller hears at once; the engine ends after it, the goodbye comes last."""
    agent = bench.agent()
    agent.start()
    await eventually(lambda: bench.state() == "ready", timeout=20)
    seen: list[tuple[str | None, bool]] = []

    async def watch() -> None:
        while True:
            seen.append((bench.state(), bool(agent.engine_pid)))
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    agent.leave_rotation()
    await agent.drain()
    watching.cancel()

    kept = list(dict.fromkeys(seen))
    assert ("draining", True) in kept
    assert ("ready", False) not in kept
    assert (None, True) not in kept


async def test_two_controllers_hear_of_a_worker_each_for_itself(bench: Bench) -> None:
    """A second controller knows the worker and its changes; a first one that hangs delays nothing."""
    async with deaf() as silent:
        bench.controllers = [silent.url, bench.controller_url]
        agent = bench.agent()
        for client in bench.controller_clients:
            client.timeout = 600  # a call to the silent one never ends
        agent.start()
        await eventually(lambda: bench.state() == "ready", timeout=20)
        bench.controller.registry.remove("http://127.0.0.1:9")
        await eventually(lambda: bench.state() == "ready", timeout=20)
        for client in bench.controller_clients:
            client.timeout = 1
        await agent.drain()
        assert bench.state() is None


async def test_somebody_elses_server_is_not_our_engine(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A port that is taken is an error that names the flag, not a worker on a foreign engine."""
    async with ScriptedEngine(Script(model="demo"), port=bench.port):
        agent = bench.agent()
        agent.start()
        await eventually(lambda: "--engine-port" in caplog.text)
        assert agent.state is WorkerState.STARTING
        await agent.drain()


async def test_an_engine_that_cannot_start_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that ends at once leaves the worker starting; the agent stays up and tries again."""
    agent = bench.agent("--script", "not json")
    agent.start()
    try:
        await eventually(lambda: caplog.text.count("engine ended with code") == 2, timeout=30)
        assert agent.state is WorkerState.STARTING
        assert bench.state() == "starting"
    finally:
        await agent.drain()
