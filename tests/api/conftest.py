"""A real API before scripted engines, with a real controller to tell it of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.apps import serving, serving_aiohttp
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.api.admission.admission import Admission
from kodolly.api.app import create_app
from kodolly.api.routing.table import WorkerTable
from kodolly.api.runner import CompletionRunner
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerState, WorkerStatus
from kodolly.settings import ApiSettings
from kodolly.store.store import Store

AddWorker = Callable[..., Awaitable[ScriptedEngine]]


class Stack:
    """Controller and API on real sockets; workers are scripted engines in the table."""

    def __init__(
        self,
        controller: Controller,
        controller_url: str,
        url: str,
        table: WorkerTable,
        admission: Admission,
        runner: CompletionRunner,
    ) -> None:
        self.controller = controller
        self.table, self.admission, self.runner = table, admission, runner  # the API's own
        self.controller_url = controller_url
        self.url = url
        self.stack = AsyncExitStack()

    async def add(self, script: Script | None = None, **extension: object) -> ScriptedEngine:
        """A scripted engine as a KoDolly worker of its model."""
        engine = await self.stack.enter_async_context(ScriptedEngine(script or Script()))
        self.register(engine, **extension)
        await eventually(self.is_followed)
        return engine

    def register(self, engine: ScriptedEngine, **extension: object) -> None:
        """Puts an engine into the controller's table."""
        fields = {"engine_url": engine.url, "heart_beat_interval": 600, "context_length": 16384}
        fields |= extension
        self.controller.registry.register(
            Registration(worker_name=engine.url, kodolly=Extension.model_validate(fields)),
            WorkerStatus(model_names=[engine.script.model]),
        )

    def state(self, engine: ScriptedEngine, state: WorkerState) -> None:
        """Changes what the controller tells of a worker."""
        self.controller.registry._set_state(engine.url, state)

    async def is_followed(self) -> bool:
        """Whether the API knows of every ready worker the controller has."""
        ready = self.controller.registry.ready()
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/v1/models") as answer:
            cards = (await answer.json())["data"]
        models = [card for card in cards if card["root"] == card["id"]]  # no aliases
        return bool(sum(card["workers"] for card in models) == len(ready))


@pytest.fixture
def settings() -> ApiSettings:
    """What the API under test is set to; a test module may override it."""
    return ApiSettings(max_body=100_000, read_timeout=30, connect_timeout=10)


@pytest.fixture
def send_buffer() -> int | None:
    """Bytes that the API's kernel takes for a client that does not read; None: its own."""
    return None


@pytest.fixture
def store() -> Store | None:
    """Where the API under test keeps responses; a test module may override it."""
    return None


@pytest.fixture
async def stack(
    settings: ApiSettings, send_buffer: int | None, store: Store | None
) -> AsyncIterator[Stack]:
    """A controller and an API that follows it."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    async with serving(create_controller(controller)) as controller_url:
        own_settings = ApiSettings(**{**vars(settings), "controller": controller_url})
        app = create_app(own_settings, store)
        async with serving(app, send_buffer=send_buffer) as url:
            own = (app.state.table, app.state.admission, app.state.runner)
            stack = Stack(controller, controller_url, url, *own)
            async with stack.stack:
                yield stack
        controller.stopping.set()


@pytest.fixture
async def engines(stack: Stack) -> AsyncIterator[Callable[..., Any]]:
    """Adds an engine that sends given bytes in pieces, as a worker of the model `demo`."""
    async with AsyncExitStack() as servers:

        async def add(
            wire: bytes, size: int = 10**6, extension: dict[str, Any] | None = None
        ) -> list[dict[str, Any]]:
            requests: list[dict[str, Any]] = []

            async def stream(request: web.Request) -> web.StreamResponse:
                requests.append(await request.json())
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                for at in range(0, len(wire), size):
                    await response.write(wire[at : at + size])
                    await asyncio.sleep(0)
                return response

            app = web.Application()
            app.router.add_post("/v1/chat/completions", stream)
            url = await servers.enter_async_context(serving_aiohttp(app))
            fields = {"engine_url": url, "heart_beat_interval": 600, "context_length": 4096}
            stack.controller.registry.register(
                Registration(
                    worker_name=url, kodolly=Extension.model_validate(fields | (extension or {}))
                ),
                WorkerStatus(model_names=["demo"]),
            )
            await eventually(stack.is_followed)
            return requests

        yield add
