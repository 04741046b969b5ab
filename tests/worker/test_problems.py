"""A worker that cannot serve says why: its engine ends again and again, or no controller takes it."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from support.apps import serving
from support.processes import eventually, free_port
from support.scripted_engine import ScriptedEngine

from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.command import EngineCommand
from kodolly.engines.openai import Offer
from kodolly.settings import WorkerSettings
from kodolly.worker.agent import Agent
from kodolly.worker.app import Worker, create_app

TOKEN = "right"


@asynccontextmanager
async def controller() -> AsyncIterator[str]:
    own = Controller(Registry(90, 3), Dispatcher("shortest_queue"), TOKEN)
    async with serving(create_controller(own, TOKEN)) as url:
        yield url


@asynccontextmanager
async def worker(
    directory: Path, command: EngineCommand | None = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Agent]]:
    """A client of a worker's HTTP endpoints, and its agent."""
    settings = WorkerSettings(engine="openai", drain_timeout=0, **options)
    parts = Worker(settings, directory)
    app = create_app(parts, parts.describe([Offer("demo")]), command)
    app.state.agent._first_wait = 0.01
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client, app.state.agent


async def text(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    response = await client.get(path)
    return response.status_code, response.text


async def test_a_worker_that_the_controller_refuses_is_not_healthy(tmp_path: Path) -> None:
    """A wrong token: its engine is fine, and both checks say who refuses it, without the token."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine())
        url = await stack.enter_async_context(controller())
        client, agent = await stack.enter_async_context(
            worker(tmp_path, engine_url=engine.url, controller=url, token="wrong-secret")
        )
        await eventually(lambda: agent.state.value == "ready" and agent.problem)
        for path in ("/ready", "/health"):
            status, reason = await text(client, path)
            assert status == 503
            assert (
                f"the controller refuses this worker: {url}/register_worker answered 401" in reason
            )
            assert "wrong-secret" not in reason


async def test_one_controller_that_takes_it_is_enough(tmp_path: Path) -> None:
    """The other one's refusal is a line in the log; requests come all the same."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine())
        good = await stack.enter_async_context(controller())
        other = Controller(Registry(90, 3), Dispatcher("shortest_queue"), "another")
        bad = await stack.enter_async_context(serving(create_controller(other, "another")))
        client, agent = await stack.enter_async_context(
            worker(tmp_path, engine_url=engine.url, controller=f"{good},{bad}", token=TOKEN)
        )
        await eventually(lambda: agent.state.value == "ready" and agent._heartbeats[1].refusal)
        assert await text(client, "/ready") == (200, "ready")
        assert await text(client, "/health") == (200, "ok")


async def test_an_engine_that_ends_again_and_again_is_told_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/ready and /health say it after the second time; in the end the worker itself ends."""
    monkeypatch.setattr("kodolly.worker.agent.FAILURES_TO_END", 4)
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *signal: signals.append(cast(tuple[int, int], signal)))
    count = tmp_path / "count"
    program = f"open({str(count)!r}, 'a').write('x'); raise SystemExit(3)"
    command = EngineCommand((sys.executable, "-c", program), {})
    engine_url = f"http://127.0.0.1:{free_port()}"
    async with worker(tmp_path, command, engine_url=engine_url) as (client, agent):
        assert (await text(client, "/ready"))[1] == "starting, loading"
        await eventually(lambda: agent.problem, what="a problem")
        status, reason = await text(client, "/ready")
        assert (status, "starting: the engine ended with code 3" in reason) == (503, True)
        assert (await text(client, "/health"))[0] == 503
        await eventually(lambda: signals)
        assert signals == [(os.getpid(), signal.SIGTERM)]
        assert agent.failure
        assert count.read_text() == "x" * 4
