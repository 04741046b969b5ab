"""What is over is forgotten, and what is open is kept as tokens: the gateway's memory stays flat."""

import asyncio
import gc
from typing import Any

import aiohttp
import orjson
from support.processes import eventually
from support.scripted_engine import Script

from kodolly.api.admission.admission import Ticket
from kodolly.api.engine_io.stall_watch import WatchedCall
from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import BLOCK, Journal

from .conftest import Stack

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


def kept() -> int:
    """Calls, tickets and calls that something still holds."""
    gc.collect()
    # `isinstance` would ask every object for its class, and torch has some that warn when asked.
    return sum(type(each) in (ApiRequest, Ticket, WatchedCall) for each in gc.get_objects())


async def ask(stack: Stack, **fields: Any) -> int:
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=CHAT | fields) as answer:
        await answer.read()
        return answer.status


async def test_calls_that_are_over_leave_nothing_behind(stack: Stack) -> None:
    """Finished, failed, refused or left by their clients: none is held on to."""
    engine = await stack.add(Script(token_delay=0.001))
    before = kept()
    for stream in (True, False):
        assert await ask(stack, stream=stream) == 200
        assert await ask(stack, stream=stream, model="none") == 404
        engine.script.fail_status = 400
        assert await ask(stack, stream=stream) == 400
        engine.script.fail_status, engine.script.hang_after = None, 1
        asking = asyncio.create_task(ask(stack, stream=stream))
        await eventually(lambda: engine.running == 1)
        asking.cancel()
        await eventually(lambda: engine.running == 0)
        engine.script.hang_after = None
    await eventually(lambda: kept() == before)
    assert [worker.inflight for worker in stack.table.all()] == [0]
    assert stack.admission.running("demo") == 0


def test_a_long_answer_is_not_kept_as_the_bytes_that_were_sent() -> None:
    """The raw events kept stay below a block however long it grows; the rest is token ids and text."""
    call = ApiRequest(
        "/v1/completions", {"model": "m", "prompt": "x", "stream": True}, "id", chat=False
    )
    journal = Journal(call)
    told = {"id": "1", "object": "o", "created": 1, "model": "m"}
    choice = {"index": 0, "text": "가", "token_ids": [7], "finish_reason": None, "logprobs": None}
    event = b"data: " + orjson.dumps(told | {"choices": [choice]}) + b"\n\n"
    count = 10 * BLOCK // len(event)
    most = 0
    for _ in range(count):
        journal.add(event)
        most = max(most, sum(map(len, journal._raw)))
    assert most <= BLOCK + len(event)
    journal.fold()
    assert (len(journal.choices[0].ids), journal.choices[0].text) == (count, "가" * count)
