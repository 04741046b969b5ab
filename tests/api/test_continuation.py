"""Several answers continued at once by one worker: what happens to all when it fails in one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import orjson
import pytest
from starlette.types import Message

from kodolly.api.client_output import ClientOutput
from kodolly.api.engine_io.calls import EngineCalls
from kodolly.api.errors import WorkerFailed
from kodolly.api.request import ApiRequest
from kodolly.api.resume.continuation import Continuation
from kodolly.api.resume.journal import Journal
from kodolly.api.routing.table import Worker
from kodolly.api.sse import data_of, event
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerStatus

REQUEST = ApiRequest("/v1/completions", {"model": "m", "prompt": "x", "n": 2}, "id", chat=False)
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

    async def events(self, call: ApiRequest, *_: object) -> AsyncGenerator[dict[str, Any], None]:
        if call.request_id == "id-0-0":
            yield TOKEN
            await asyncio.Event().wait()
        await self._client.asked.wait()
        raise WorkerFailed("is gone")


def worker() -> Worker:
    registry = Registry(90, 3)
    known = Extension(engine_url="http://e", heart_beat_interval=600, context_length=99)
    registry.register(
        Registration(worker_name="http://w", kodolly=known), WorkerStatus(model_names=["m"])
    )
    return Worker(registry.rows()[0])


async def gone_on(client: Client) -> Journal:
    """The journal after a worker that failed in the second answer."""
    journal = Journal(REQUEST)
    output = ClientOutput(client.send, "id", 60.0, lambda _: False)
    door = cast(EngineCalls, Door(client))
    with pytest.raises(WorkerFailed):
        async with asyncio.timeout(20):
            await Continuation(REQUEST, worker(), journal, door, output, shows_ids=False).run()
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


class HalfACharacter:
    """An engine whose tokens 2 and 3 are one character; it fails, and at the second try goes on."""

    def __init__(self) -> None:
        self.tries = 0

    async def detokenize(self, _: ApiRequest, __: Worker, ids: list[int]) -> str:
        return "가" if ids == [1] else "가\ufffd"

    async def events(self, *_: object) -> AsyncGenerator[dict[str, Any], None]:
        self.tries += 1
        if self.tries == 1:
            raise WorkerFailed("is gone")
        for text, token, reason in (("", 2, None), ("나", 3, None), ("다", 4, "stop")):
            yield {"choices": [{"text": text, "token_ids": [token], "finish_reason": reason}]}


async def test_tokens_taken_back_are_told_once_however_many_workers_fail() -> None:
    """The client had the first half of a character; the worker that was to make it again failed."""
    call = ApiRequest(
        "/v1/completions", {"model": "m", "prompt": "x", "return_token_ids": True}, "id", chat=False
    )
    client = Client()
    client.room.set()
    journal = Journal(call)
    first = {"index": 0, "text": "가", "token_ids": [1, 2], "prompt_token_ids": [9]}
    journal.add(event({"id": "a", "choices": [first]}))
    journal.fold()
    output = ClientOutput(client.send, "id", 60.0, lambda _: False)
    door = cast(EngineCalls, HalfACharacter())
    with pytest.raises(WorkerFailed):
        await Continuation(call, worker(), journal, door, output, shows_ids=True).run()
    await Continuation(call, worker(), journal, door, output, shows_ids=True).run()
    told = [orjson.loads(data)["choices"][0] for data in data_of(client.got)]
    assert [token for choice in told for token in choice["token_ids"]] == [3, 4]
    assert "".join(choice["text"] for choice in told) == "나다"
