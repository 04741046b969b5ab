"""An engine that hangs, with nobody to replace it: no client waits for it without end."""

import asyncio
from typing import Any

import aiohttp
import pytest
from support.script import Script

from kodolly.settings import ApiSettings

from .conftest import Stack
from .test_resume import CHAT, events

LONG = 30.0  # seconds; the bounds under test are one


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(read_timeout=1.0, answer_timeout=1.0, connect_timeout=1.0)


async def whole(stack: Stack) -> tuple[int, Any]:
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=CHAT) as answer:
        return answer.status, await answer.json()


async def test_a_whole_answer_that_never_comes_ends_in_an_error(stack: Stack) -> None:
    """At its bound the client is told, in OpenAI's shape."""
    await stack.add(Script(hang_after=0))
    status, answer = await asyncio.wait_for(whole(stack), LONG)
    assert (status, answer["error"]["code"]) == (502, "engine_error")


async def test_a_stream_that_falls_silent_ends_in_an_error_event(stack: Stack) -> None:
    """What was said stays, and then the client hears that there is no more."""
    engine = await stack.add(Script(hang_after=2))
    asking = asyncio.create_task(events(stack))
    while not engine.tokens:
        await asyncio.sleep(0.01)
    engine.script.hang_after = 0  # also for whoever would go on
    told = await asyncio.wait_for(asking, 2 * LONG)
    assert told[-1]["error"]["code"] == "worker_lost"
    assert told[0]["choices"]
