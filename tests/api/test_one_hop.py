"""What a call costs on its way: one request on a kept connection, and no token held back."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from support.apps import serving
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.api.app import create_app as create_api
from kodolly.api.prepare import LONG_TEXT
from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings
from kodolly_templates import neutralise

from .conftest import Stack

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


class Door:
    """Passes bytes on to an engine; counts connections and keeps the first lines of requests."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.connections = 0
        self.asked: list[str] = []
        self._engine = engine

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it."""
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(self._engine.host, self._engine.port)
        back = asyncio.create_task(self._carry(far_reader, writer))
        await self._carry(reader, far_writer, self.asked)
        await back

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: list[str] | None = None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                if asked is not None:
                    lines = data.decode("utf-8", "replace").split("\r\n")
                    asked += [line for line in lines if line.endswith(" HTTP/1.1")]
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def behind_a_door(stack: Stack) -> AsyncIterator[Door]:
    """A worker of the stack whose engine is reached through a door."""
    async with ScriptedEngine(Script()) as engine:
        door = Door(engine)
        async with await asyncio.start_server(door.enter, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            known = Extension(engine_url=url, heart_beat_interval=600, context_length=9999)
            stack.controller.registry.register(
                Registration(worker_name=url, kodolly=known), WorkerStatus(model_names=["demo"])
            )
            await eventually(stack.is_followed)
            yield door


async def ask(stack: Stack, *, stream: bool) -> bytes:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{stack.url}/v1/chat/completions", json=CHAT | {"stream": stream}) as answer,
    ):
        assert answer.status == 200
        return await answer.read()


async def test_calls_one_after_the_other_share_a_connection(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten answers, streamed and whole, cost ten requests over one connection to the engine."""
    # However slow this machine is, no connection is too old.
    monkeypatch.setattr("kodolly.http.upstream.pool.KEEPALIVE", 600.0)
    async with behind_a_door(stack) as door:
        for number in range(10):
            await ask(stack, stream=bool(number % 2))
        assert door.asked == ["POST /v1/chat/completions HTTP/1.1"] * 10
        assert door.connections == 1


async def test_no_call_sets_up_tls_anew(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context costs tens of milliseconds of the event loop; FastChat makes one a stream."""
    await stack.add()
    await ask(stack, stream=True)
    made: list[bool] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: made.append(True))
    monkeypatch.setattr(ssl.SSLContext, "__new__", lambda *_, **__: made.append(True))
    for stream in (True, False):
        await ask(stack, stream=stream)
    assert made == []


async def test_the_controller_is_asked_nothing_for_a_call() -> None:
    """Models are listed and calls routed by the table that was told: nobody is asked, or waited for."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    app = create_app(controller)
    paths: list[str] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await app(scope, receive, send)

    async with serving(listening) as url, ScriptedEngine(Script()) as engine:
        api = create_api(ApiSettings(controller=url))
        async with serving(api) as api_url:
            stack = Stack(
                controller, url, api_url, api.state.table, api.state.admission, api.state.runner
            )
            stack.register(engine)
            await eventually(stack.is_followed)
            before = list(paths)
            for stream in (True, False):
                await ask(stack, stream=stream)
            assert paths == before == ["/watch"]
        controller.stopping.set()


async def test_a_token_is_passed_on_before_the_next_is_made(stack: Stack) -> None:
    """Nothing is gathered into larger pieces: while the engine stands still, the client has it all."""
    engine = await stack.add(Script(hang_after=3))
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession() as http,
        http.post(f"{stack.url}/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        text = b""
        while "물론이죠".encode() not in text or "안녕하세요".encode() not in text:
            text += await answer.content.readany()
        assert engine.running == 1
        engine.script.hang_after = None
        await answer.read()


async def test_proxies_are_told_not_to_hold_a_stream_back(stack: Stack) -> None:
    """nginx gathers an answer unless its header says no; nobody may keep or change it."""
    await stack.add()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{stack.url}/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "no-cache" in answer.headers["Cache-Control"]
        assert answer.content_type == "text/event-stream"


async def test_a_long_chat_does_not_hold_up_the_others(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarding much text takes a while, so it is done beside the event loop."""
    await stack.add(guard=["<|im_end|>"])
    where: list[threading.Thread] = []

    def noticed(*given: Any) -> str:
        where.append(threading.current_thread())
        return neutralise(*given)

    monkeypatch.setattr("kodolly.api.prepare.neutralise", noticed)
    for content in ("짧다", "x" * (LONG_TEXT + 1)):
        body = CHAT | {"messages": [{"role": "user", "content": content}]}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{stack.url}/v1/chat/completions", json=body) as answer,
        ):
            await answer.read()
    assert [each is threading.current_thread() for each in where] == [True, False]


class TestWithKeys:
    """An API that asks for client keys."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(client_keys=("k1",))

    async def test_only_health_is_told_without_a_key(self, stack: Stack) -> None:
        """Every path there is refuses a stranger, with or without a body and in any spelling."""
        async with aiohttp.ClientSession(stack.url) as http:
            for method, path in (
                ("GET", "/v1/models"),
                ("GET", "/v1/models/demo"),
                ("GET", "/openapi.json"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/v1/completions"),
            ):
                for given in ({}, {"Authorization": "Bearer k2"}, {"Authorization": "k1"}):
                    async with http.request(method, path, json=CHAT, headers=given) as answer:
                        assert answer.status == 401, (path, given)
                        assert (await answer.json())["error"]["code"] == "invalid_api_key"
            async with http.get("/health") as answer:
                assert answer.status == 200
