"""Calls beyond what the workers take: they wait their turn, know their place, or are sent away."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.settings import ApiSettings

from .conftest import Stack

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(worker_limit=1, queue_size=1, queue_timeout=30.0)


async def ask(stack: Stack, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    """Status, headers and body of one call."""
    url = f"{stack.url}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=CHAT | fields, headers=headers) as answer,
    ):
        return answer.status, answer.headers, (await answer.read()).decode()


async def busy(stack: Stack) -> tuple[ScriptedEngine, asyncio.Task[Any]]:
    """An engine with one call that does not end, and so no room for another."""
    engine = await stack.add(Script(hang_after=1))
    first = asyncio.create_task(ask(stack))
    await eventually(lambda: engine.running == 1)
    return engine, first


async def test_a_call_beyond_the_queue_is_told_when_to_come_again(stack: Stack) -> None:
    """429 in OpenAI's shape with Retry-After, and the engine hears nothing of it."""
    engine, first = await busy(stack)
    second = asyncio.create_task(ask(stack))
    await eventually(lambda: stack.admission.waiting("demo") == 1)
    status, headers, body = await ask(stack)
    assert status == 429
    assert int(headers["Retry-After"]) >= 1
    assert orjson.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert len(engine.requests) == 1

    engine.script.hang_after = None
    assert [(await call)[0] for call in (first, second)] == [200, 200]


async def test_a_client_that_goes_gives_up_its_place(stack: Stack) -> None:
    """Neither its place in the queue nor, later, its slot stays taken."""
    engine, first = await busy(stack)
    second = asyncio.create_task(ask(stack))
    await eventually(lambda: stack.admission.waiting("demo") == 1)
    second.cancel()
    await eventually(lambda: stack.admission.waiting("demo") == 0)
    engine.script.hang_after = None
    assert (await first)[0] == 200
    assert (await ask(stack))[0] == 200
    assert stack.admission.running("demo") == 0


async def test_a_waiting_stream_is_told_its_place_if_it_asks(stack: Stack) -> None:
    """With the header the place comes in events without choices, then the answer as ever."""
    engine, first = await busy(stack)
    headers = {"X-KoDolly-Queue": "events"}
    second = asyncio.create_task(ask(stack, headers, stream=True))
    await eventually(lambda: stack.admission.waiting("demo") == 1)
    await asyncio.sleep(0.5)
    engine.script.hang_after = None
    await first
    _, _, text = await second
    told = [orjson.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    places = [event for event in told if event["object"] == "kodolly.queue"]
    assert places[0]["position"] == 1
    assert places[0]["wait"] > 0
    assert places[0]["choices"] == []
    said = "".join(c["delta"].get("content", "") for event in told for c in event["choices"])
    assert said == Script().text
    assert text.endswith("data: [DONE]\n\n")
