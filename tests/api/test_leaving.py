"""Silent calls leave a worker that is gone, long before the bound on an engine's silence.

That bound is set so far off here that only a move ends the waiting.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import pytest
from support.cutter import Cutter
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.protocol.wire import WorkerState
from kodolly.settings import ApiSettings

from .conftest import Stack
from .test_resume import CHAT, events, pair, prefer, said
from .test_silence import behind

LONG = 30.0  # seconds; nothing here takes a fifth of it


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(read_timeout=900.0, answer_timeout=900.0, connect_timeout=1.0)


async def streamed(stack: Stack) -> str:
    return said(await events(stack))


async def whole(stack: Stack) -> str:
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=CHAT) as answer:
        return str((await answer.json())["choices"][0]["message"]["content"])


async def soon(asking: Coroutine[Any, Any, str]) -> str:
    """The answer; TimeoutError if the call was left where it is."""
    return await asyncio.wait_for(asking, LONG)


@pytest.mark.parametrize("state", [WorkerState.STALLED, WorkerState.LOST, WorkerState.STARTING])
@pytest.mark.parametrize("ask", [streamed, whole])
async def test_a_silent_call_leaves_a_worker_out_of_rotation(
    stack: Stack, state: WorkerState, ask: Any
) -> None:
    """What its agent or the controller tells of a worker ends the waiting for its engine."""
    bad, well = await pair(stack, hang_after=5)
    prefer(stack, bad, well)
    asking = asyncio.create_task(ask(stack))
    await eventually(lambda: bad.running == 1)
    stack.state(bad, state)
    assert await asyncio.wait_for(asking, LONG) == Script().text
    assert bad.requests[-1].outcome == "aborted"


async def test_a_silent_stream_leaves_a_worker_that_was_forgotten(stack: Stack) -> None:
    """One that said goodbye, or was lost for long, is no longer in the table at all."""
    bad, well = await pair(stack, hang_after=5)
    prefer(stack, bad, well)
    asking = asyncio.create_task(streamed(stack))
    await eventually(lambda: bad.running == 1)
    stack.controller.registry.remove(bad.url)
    assert await asyncio.wait_for(asking, LONG) == Script().text


async def test_a_silent_stream_leaves_an_engine_that_does_not_answer(stack: Stack) -> None:
    """The controller sees nothing wrong: its health is asked for, and tells by its own silence."""
    well = await stack.add(Script())
    async with ScriptedEngine(Script()) as engine, Cutter(engine.url) as door:
        await behind(stack, door)
        for worker in stack.table.all():
            worker.foreign = 1000 * (worker.row.name == well.url)
        door.freezes, door.after = True, 6
        assert await soon(streamed(stack)) == Script().text
        assert door.cuts == 1
        door.thaw()
