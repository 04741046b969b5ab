"""What the controller passes on and asks for while workers die, hang, or their clients go."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.apps import serving
from support.deaf import deaf
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, ControllerTimes, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.controller.relay import WORKER_TIMEOUT
from kodolly.protocol.wire import Registration, WorkerStatus

ASK = {"model": "demo", "prompt": "안녕", "max_new_tokens": 4000, "echo": False}


@pytest.fixture
def registry() -> Registry:
    return Registry(90, 3)


@pytest.fixture
async def http(registry: Registry) -> AsyncIterator[aiohttp.ClientSession]:
    times = ControllerTimes(status_timeout=600)  # a call to a hung worker never ends
    app = create_app(Controller(registry, Dispatcher("shortest_queue"), None, times))
    async with serving(app) as url, aiohttp.ClientSession(url) as session:
        yield session


def register(registry: Registry, name: str, model: str = "demo") -> None:
    registry.register(Registration(worker_name=name), WorkerStatus(model_names=[model]))


async def test_a_client_that_goes_ends_a_relayed_generation(
    http: aiohttp.ClientSession, registry: Registry
) -> None:
    """The worker hears of it through the controller, and makes no tokens for nobody."""
    async with ScriptedEngine(Script(length=4000, token_delay=0.02)) as engine:
        register(registry, engine.url)
        async with http.post("/worker_generate_stream", json=ASK) as answer:
            await answer.content.readuntil(b"\0")
            assert engine.running == 1
            answer.close()
        await eventually(lambda: engine.aborted == 1 and engine.running == 0)


async def test_a_worker_lost_in_a_relayed_answer_is_told_in_a_frame(
    http: aiohttp.ClientSession, registry: Registry
) -> None:
    """What came before stands; then FastChat's number for a worker that does not answer."""
    async with ScriptedEngine(Script(die_after=3)) as engine:
        register(registry, engine.url)
        async with http.post("/worker_generate_stream", json=ASK) as answer:
            frames = [json.loads(part) for part in (await answer.read()).split(b"\0") if part]
    assert frames[-2]["text"] == Script().answer(3).text
    assert frames[-1]["error_code"] == WORKER_TIMEOUT
    assert "text" in frames[-1]


async def test_a_refresh_asks_all_at_once_and_hides_nobody(
    http: aiohttp.ClientSession, registry: Registry
) -> None:
    """While hung workers keep it waiting, every model is listed and every call is served."""

    async def models() -> Any:
        async with http.post("/list_models") as answer:
            return (await answer.json())["models"]

    async with ScriptedEngine(Script()) as engine, deaf() as first, deaf() as second:
        for name, model in ((first.url, "one"), (second.url, "two"), (engine.url, "demo")):
            register(registry, name, model)
        refreshing = asyncio.create_task(http.post("/refresh_all_workers").__aenter__())
        await eventually(lambda: first.calls and second.calls)

        assert await models() == ["demo", "one", "two"]
        assert not refreshing.done()
        refreshing.cancel()
