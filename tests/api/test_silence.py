"""Engines that fall silent without a word: what is moved, and what is left alone."""

import asyncio
from typing import Any

import aiohttp
import pytest
from support.cutter import Cutter
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings

from .conftest import Stack
from .test_resume import events, prefer, said

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(read_timeout=60.0, connect_timeout=1.0)


async def behind(stack: Stack, door: Cutter) -> None:
    """A worker whose engine is reached through `door`."""
    extension = Extension(engine_url=door.url, heart_beat_interval=600, context_length=16384)
    stack.controller.registry.register(
        Registration(worker_name=door.url, kodolly=extension), WorkerStatus(model_names=["demo"])
    )
    await eventually(stack.is_followed)


async def test_a_stream_leaves_a_network_that_swallows_it(stack: Stack) -> None:
    """Agent and controller see nothing wrong, yet the stream goes on elsewhere, and new ones too."""
    well = await stack.add(Script())
    async with ScriptedEngine(Script()) as engine, Cutter(engine.url) as door:
        await behind(stack, door)
        for worker in stack.table.all():
            worker.foreign = 1000 * (worker.row.name == well.url)
        door.freezes, door.after = True, 6
        assert said(await events(stack)) == Script().text
        assert door.cuts == 1
        for _ in range(3):
            assert said(await events(stack)) == Script().text
        assert len(engine.requests) == 1
        door.thaw()


async def test_a_whole_answer_leaves_a_network_that_swallows_it(stack: Stack) -> None:
    """Nothing is to be heard of it before its end, so its engine's health is asked after, too."""
    well = await stack.add(Script())
    async with ScriptedEngine(Script()) as engine, Cutter(engine.url) as door:
        await behind(stack, door)
        for worker in stack.table.all():
            worker.foreign = 1000 * (worker.row.name == well.url)
        door.freeze()
        url = f"{stack.url}/v1/chat/completions"
        patience = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=patience) as http,
            http.post(url, json=CHAT) as answer,
        ):
            told = await answer.json()
        assert told["choices"][0]["message"]["content"] == Script().text
        assert len(well.requests) == 1
        door.thaw()


async def test_a_slow_engine_that_answers_is_left_alone(stack: Stack) -> None:
    """Silence alone is no fault: a long prompt is read for many seconds."""
    slow = await stack.add(Script(first_delay=4.0))
    well = await stack.add(Script())
    prefer(stack, slow, well)
    assert said(await events(stack)) == Script().text
    assert [seen.outcome for seen in slow.requests] == ["finished"]
    assert not well.requests


async def test_a_lone_worker_keeps_its_streams(stack: Stack) -> None:
    """Where nobody else could go on, a silent network is waited for."""
    async with ScriptedEngine(Script()) as engine, Cutter(engine.url) as door:
        await behind(stack, door)
        door.freezes, door.after = True, 6
        asking = asyncio.create_task(events(stack))
        await eventually(lambda: door.cuts == 1)
        await asyncio.sleep(6)
        door.thaw()
        assert said(await asking) == Script().text
        assert len(engine.requests) == 1


async def test_a_client_that_does_not_read_holds_its_engine_back(stack: Stack) -> None:
    """Its answer stops growing at what the sockets hold, and others are served meanwhile."""
    length = 40_000
    script = Script(length=length, tokens=("가" * 1000,), context_length=10**7)
    engine = await stack.add(script, context_length=10**7)
    url = f"{stack.url}/v1/chat/completions"
    async with (
        aiohttp.ClientSession(read_bufsize=2**10) as http,
        http.post(url, json=CHAT | {"stream": True, "max_tokens": length}) as answer,
    ):
        assert answer.status == 200
        made = -1

        async def is_held_back() -> bool:
            nonlocal made
            before, made = made, engine.tokens
            await asyncio.sleep(0.5)
            return before == engine.tokens > 0

        await eventually(is_held_back)
        assert engine.tokens < length / 2
        told = await events(stack, max_tokens=20)
        assert said(told)
        assert engine.tokens < length / 2
    await eventually(lambda: engine.running == 0)
