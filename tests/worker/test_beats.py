"""Heartbeats come in time, whatever the engine beside the agent does."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from support.apps import serving
from support.deaf import deaf
from support.processes import eventually

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import EngineClient
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension, HeartbeatRequest
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.registration import ControllerClient


async def test_no_beat_waits_for_an_engine_that_answers_nothing() -> None:
    """Beside an engine that takes every call and keeps it, the worker is never missed."""

    class Listening(Registry):
        """Counts the beats it hears."""

        beats = 0

        def heartbeat(self, request: HeartbeatRequest) -> bool:
            self.beats += 1
            return super().heartbeat(request)

        def load_only_heartbeat(self, data: dict[str, Any]) -> bool:
            is_taken = super().load_only_heartbeat(data)
            self.beats += is_taken
            return is_taken

    registry = Listening(90, 6)
    controller = Controller(registry, Dispatcher("shortest_queue"), None)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(deaf())
        url = await stack.enter_async_context(serving(create_app(controller)))
        client = await stack.enter_async_context(new_client())
        agent = Agent(
            Announcement("http://127.0.0.1:9", ("demo",), 1, Extension(heart_beat_interval=0.2)),
            EngineClient(engine.url, None, client),
            [ControllerClient(url, None, client)],
            None,
            start_timeout=60,
            drain_timeout=0,
        )
        agent.start()
        stack.push_async_callback(agent.drain)
        await eventually(registry.rows)
        seen = set()
        while registry.beats < 8:
            seen.add(registry.rows()[0].state.value)
            await asyncio.sleep(0.01)
        assert seen == {"starting"}
