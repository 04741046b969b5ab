"""Whoever goes is gone: a client's whole answer is not made for nobody, a worker beats no more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from support.apps import no_lifespan, serving
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import CONNECT, EngineClient
from kodolly.engines.stream import StreamClient
from kodolly.http.client import new_client
from kodolly.http.fastapi_app import JsonApp
from kodolly.http.upstream import Pool
from kodolly.protocol.wire import Extension
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.fastchat_endpoints import FastChatEndpoints, WorkerRoute
from kodolly.worker.model import ServedModel
from kodolly.worker.registration import ControllerClient

NAME = "http://127.0.0.1:9"


@asynccontextmanager
async def attached(engine: ScriptedEngine, controller: str) -> AsyncIterator[Agent]:
    """An agent beside an engine that runs already; it is not started yet."""
    async with new_client() as client:
        yield Agent(
            Announcement(NAME, ("demo",), 1, Extension(heart_beat_interval=0.05)),
            EngineClient(engine.url, None, client),
            [ControllerClient(controller, None, client)],
            None,
            start_timeout=20,
            drain_timeout=1,
        )


async def test_a_client_that_goes_before_its_whole_answer_stops_the_engine() -> None:
    """FastChat's worker makes the rest of it for nobody."""
    async with AsyncExitStack() as stack:
        script = Script(length=4000, token_delay=0.02)
        engine = await stack.enter_async_context(ScriptedEngine(script))
        agent = await stack.enter_async_context(attached(engine, "http://controller"))
        streams = StreamClient(engine.url, None, Pool(CONNECT))
        app = JsonApp("worker", "", route_class=WorkerRoute, lifespan=no_lifespan, token=None)
        FastChatEndpoints(agent, streams, ServedModel("demo", "demo", None)).add_to(app)
        url = await stack.enter_async_context(serving(app))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        body = {"model": "demo", "prompt": "x", "max_new_tokens": 4000}
        asking = asyncio.create_task(http.post(f"{url}/worker_generate", json=body).__aenter__())
        await eventually(lambda: engine.running == 1)
        asking.cancel()
        await eventually(lambda: engine.aborted == 1 and engine.running == 0)


async def test_a_worker_that_said_goodbye_does_not_come_back() -> None:
    """Neither the controller that knew it nor one that comes later hears of it again."""
    controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(create_app(controller)))
        engine = await stack.enter_async_context(ScriptedEngine(Script()))
        agent = await stack.enter_async_context(attached(engine, url))
        agent.start()
        await eventually(controller.registry.ready)

        await agent.drain()
        for _ in range(10):  # many of its beats
            assert controller.registry.rows() == []
            await asyncio.sleep(0.05)
