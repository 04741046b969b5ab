"""When a worker counts as ready: not while it loads, whatever its port says."""

import asyncio
from contextlib import AsyncExitStack

from support.apps import serving
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import EngineClient
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.registration import ControllerClient


async def test_an_engine_that_answers_but_makes_no_token_is_never_ready() -> None:
    """Listening, /health 200 and a list of models prove nothing: until a token it stays starting."""
    controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(create_app(controller)))
        engine = await stack.enter_async_context(ScriptedEngine(Script(refuse_canary=True)))
        client = await stack.enter_async_context(new_client())
        agent = Agent(
            Announcement("http://127.0.0.1:9", ("demo",), 1, Extension(heart_beat_interval=0.05)),
            EngineClient(engine.url, None, client),
            [ControllerClient(url, None, client)],
            None,
            start_timeout=60,
            drain_timeout=1,
        )
        agent.start()
        stack.push_async_callback(agent.drain)
        await eventually(controller.registry.rows)
        seen = set()
        while len(engine.requests) < 3:
            seen.add(controller.registry.rows()[0].state.value)
            await asyncio.sleep(0.01)
        assert seen == {"starting"}

        engine.script.refuse_canary = False
        await eventually(controller.registry.ready)
