"""Stored responses, by OpenAI's own client before a scripted engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api.conftest import Stack
from openai import AsyncOpenAI, NotFoundError
from support.processes import eventually
from support.response_events import TEXT_DELTA, events_of, plain, text_of
from support.scripted_engine import Script

from kodolly.api.responses.deltas import Batch, DeltaReader
from kodolly.errors import StoreUnavailable
from kodolly.store import patience
from kodolly.store.records import ResponseRecord, owner_of
from kodolly.store.store import Store

TEXT = Script(length=40).text


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/store.sqlite3")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    await stack.add(Script(length=40, token_delay=0.005))
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_what_was_created_can_be_retrieved(client: AsyncOpenAI) -> None:
    """`.retrieve` gives the response that `.create` gave."""
    created = await client.responses.create(model="demo", input="안녕")
    assert created.output_text == TEXT
    retrieved = await client.responses.retrieve(created.id)
    assert retrieved.to_dict() == created.to_dict()


async def test_a_stream_can_be_read_again_from_any_event(client: AsyncOpenAI) -> None:
    """`.retrieve(stream=True, starting_after=N)` gives what follows event N, joined."""
    stream = await client.responses.create(model="demo", input="안녕", stream=True)
    events = await events_of(stream)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response_id = events[0]["response"]["id"]
    for after in (0, 5, 20, len(events) - 2):
        again = await client.responses.retrieve(response_id, stream=True, starting_after=after)
        rest = await events_of(again)
        assert rest[-1] == events[-1]
        assert text_of(rest) == text_of(events[after + 1 :])
        assert [event["type"] for event in rest].count(TEXT_DELTA) <= 1


async def test_there_may_be_nothing_after_an_event(client: AsyncOpenAI) -> None:
    """Whoever has the last event gets a stream without any."""
    created = await client.responses.create(model="demo", input="안녕")
    last = plain(created)["last_sequence_number"]
    rest = await client.responses.retrieve(created.id, stream=True, starting_after=last)
    assert await events_of(rest) == []


async def test_an_answer_goes_on_without_its_client(client: AsyncOpenAI) -> None:
    """A client that leaves in the middle attaches again and misses nothing."""
    stream = await client.responses.create(model="demo", input="안녕", stream=True)
    text, last, response_id = "", -1, ""
    async for event in stream:
        last = event.sequence_number
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
            if len(text) > 20:
                break
    await stream.close()
    await asyncio.sleep(0.05)
    now = await client.responses.retrieve(response_id)
    assert plain(now)["last_sequence_number"] >= last
    assert TEXT.startswith(now.output_text)
    rest = await client.responses.retrieve(response_id, stream=True, starting_after=last)
    assert text + text_of(await events_of(rest)) == TEXT


async def test_a_response_follows_another(stack: Stack, client: AsyncOpenAI) -> None:
    """`previous_response_id` puts the earlier turns before the new one."""
    first = await client.responses.create(model="demo", input="첫째", instructions="짧게")
    await client.responses.create(model="demo", input="둘째", previous_response_id=first.id)
    with pytest.raises(NotFoundError):
        await client.responses.create(model="demo", input="둘째", previous_response_id="resp_0")


async def left_by_a_dead_process(store: Store, **request: Any) -> ResponseRecord:
    """A response that has just begun, of a process that is gone."""
    body = {"model": "demo", "input": "안녕", **request}
    record = ResponseRecord("resp_left", owner_of(""), "demo", "in_progress", body, time.time())
    async with Store(str(store.database.url)) as other:
        question = {"id": "msg_1", "type": "message", "role": "user", "content": "안녕"}
        await other.responses.create(record, [question])
    return record


async def test_a_takeover_waits_for_the_store(
    client: AsyncOpenAI, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away for a moment just then does not leave the response to nobody."""
    items, failures = store.responses.list_input_items, iter([True, True])

    async def items_at_times(*args: Any, **options: Any) -> Any:
        if next(failures, False):
            raise StoreUnavailable("gone")
        return await items(*args, **options)

    monkeypatch.setattr(store.responses, "list_input_items", items_at_times)
    monkeypatch.setattr(patience, "PAUSES", (0.05,))
    record = await left_by_a_dead_process(store)
    await eventually(lambda: ended(client, record.id), 30)
    assert (await client.responses.retrieve(record.id)).output_text == TEXT


async def test_a_response_that_cannot_be_taken_over_has_failed(
    client: AsyncOpenAI, store: Store
) -> None:
    """The one that it follows was deleted meanwhile: it says so, and does not stay in progress."""
    record = await left_by_a_dead_process(store, previous_response_id="resp_gone")
    await eventually(lambda: ended(client, record.id), 30)
    response = await client.responses.retrieve(record.id)
    assert response.status == "failed"
    assert response.error is not None
    assert "resp_gone" in response.error.message


async def ended(client: AsyncOpenAI, response_id: str) -> bool:
    """Whether a response is over."""
    return (await client.responses.retrieve(response_id)).status != "in_progress"


async def test_a_background_response_can_be_cancelled(stack: Stack, client: AsyncOpenAI) -> None:
    """A cancelled response keeps what was made of it, and its engine stops."""
    engine = await stack.add(Script(model="slow", length=2000, token_delay=0.02))
    created = await client.responses.create(model="slow", input="안녕", background=True)
    assert created.status == "queued"

    async def has_text() -> bool:
        return bool((await client.responses.retrieve(created.id)).output_text)

    await eventually(has_text)
    cancelled = await client.responses.cancel(created.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text
    assert engine.script.text.startswith(cancelled.output_text)
    await eventually(lambda: engine.aborted == 1)
    await client.responses.delete(created.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(created.id)


async def test_a_fault_of_ours_fails_one_response(
    stack: Stack, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response whose later events cannot be read ends as failed, with what came before; its engine stops."""
    engine = await stack.add(Script(model="slow", length=2000, token_delay=0.02))
    read = DeltaReader.read
    is_broken = False

    def read_or_break(reader: DeltaReader, events: bytes) -> Batch:
        if is_broken:
            raise KeyError("a fault of ours")
        return read(reader, events)

    monkeypatch.setattr(DeltaReader, "read", read_or_break)
    stream = await client.responses.create(model="slow", input="안녕", stream=True)
    text, last = "", {}
    async for event in stream:
        last = plain(event)
        text += last.get("delta", "")
        is_broken = len(text) > 8
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "Internal error."
    failed = await client.responses.retrieve(last["response"]["id"])
    assert failed.status == "failed"
    assert failed.output_text == text
    await eventually(lambda: engine.aborted == 1)


async def test_a_conversation_keeps_its_turns(client: AsyncOpenAI) -> None:
    """A response of a conversation adds its input and its output to it."""
    conversation = await client.conversations.create(
        metadata={"a": "b"}, items=[{"type": "message", "role": "user", "content": "하나"}]
    )
    response = await client.responses.create(model="demo", input="둘", conversation=conversation.id)
    page = await client.conversations.items.list(conversation.id, order="asc")
    items = [item.to_dict() for item in page.data]
    assert [item["role"] for item in items] == ["user", "user", "assistant"]
    assert items[2]["content"][0]["text"] == response.output_text  # type: ignore[index]
    first = str(items[0]["id"])
    await client.conversations.items.delete(first, conversation_id=conversation.id)
    assert len((await client.conversations.items.list(conversation.id)).data) == 2
    await client.conversations.delete(conversation.id)
    with pytest.raises(NotFoundError):
        await client.conversations.retrieve(conversation.id)
