"""Several answers continued at once by one worker: what happens to all when it fails in one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from starlette.types import Message

from kodolly.api.call import Call, WorkerGone
from kodolly.api.engine import EngineDoor
from kodolly.api.resume.going_on import GoingOn
from kodolly.api.resume.journal import Journal
from kodolly.api.sse import Output
from kodolly.api.table import Worker
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerStatus

CALL = Call("/v1/completions", {"model": "m", "prompt": "x", "n": 2}, "id", chat=False)
TOKEN = {"choices": [{"text": "가", "token_ids": [7]}]}


class Client:
    """Takes a message once there is room, as uvicorn's `send` does."""

    def __init__(self) -> None:
        self.got = b""
        self.room = asyncio.Event()
        self.asked = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.asked.set()
        await self.room.wait()
        self.got += message.get("body", b"")


class Door:
    """The first answer gets a token; then the second one's worker is gone."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def events(self, call: Call, *_: object) -> AsyncGenerator[dict[str, Any], None]:
        if call.request_id == "id-0-0":
            yield TOKEN
            await asyncio.Event().wait()
        await self._client.asked.wait()
        raise WorkerGone("is gone")


def worker() -> Worker:
    registry = Registry(90, 3)
    known = Extension(engine_url="http://e", heart_beat_interval=600, context_length=99)
    registry.register(
        Registration(worker_name="http://w", kodolly=known), WorkerStatus(model_names=["m"])
    )
    return Worker(registry.rows()[0])


async def gone_on(client: Client) -> Journal:
    """The journal after a worker that failed in the second answer."""
    journal = Journal(CALL)
    output = Output(client.send, "id", 60.0, lambda _: False)
    door = cast(EngineDoor, Door(client))
    with pytest.raises(WorkerGone):
        async with asyncio.timeout(20):
            await GoingOn(CALL, worker(), journal, door, output).run()
    return journal


async def test_what_a_slow_client_was_not_sent_is_not_noted_as_sent() -> None:
    """The next worker makes it again: nothing is lost between two that fail."""
    client = Client()
    journal = await gone_on(client)
    assert client.got == b""
    assert list(journal.choices[0].ids) == []
    assert journal.choices[0].text == ""


async def test_what_was_sent_is_noted() -> None:
    """The next worker goes on behind it."""
    client = Client()
    client.room.set()
    journal = await gone_on(client)
    assert "가".encode() in client.got
    assert list(journal.choices[0].ids) == [7]


async def test_a_failed_worker_does_not_look_like_a_client_that_leaves() -> None:
    """The task is not left cancelled: its own client's leaving is told by just that."""
    client = Client()
    client.room.set()
    await gone_on(client)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
