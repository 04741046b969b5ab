"""Readers of a running response, in its own process and in others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from support.stores import PATIENCE, commit, follow_to_end, record, until

from kodolly.errors import ResponseDeleted
from kodolly.store import follower
from kodolly.store.tables import responses

NewStore = Callable[..., Any]


async def test_what_is_stored_comes_as_one_piece(new_store: NewStore) -> None:
    """A reader that comes late gets all earlier events at once, from the number it names."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    for seq in range(6):
        assert await commit(store, stored.id, seq, seq) is None
    for each in (store, other):
        reading = each.follower.follow(stored.id, 2)
        assert await anext(reading) == [(3, 3), (4, 4), (5, 5)]
        await reading.aclose()


async def test_a_reader_may_join_in_the_middle_of_a_chunk(new_store: NewStore) -> None:
    """Events committed together are told apart."""
    store = await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a", "b", "c") is None
    await store.responses.finish(stored.id, "completed", {}, [])

    assert await follow_to_end(store, stored.id, 0) == ["b", "c"]
    assert await follow_to_end(store, stored.id, 2) == []


async def test_another_process_follows_live(new_store: NewStore) -> None:
    """It has each event long before the response ends."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    reading = other.follower.follow(stored.id)
    for seq in range(3):
        assert await commit(store, stored.id, seq, f"d{seq}") is None
        async with asyncio.timeout(PATIENCE):
            assert await anext(reading) == [(seq, f"d{seq}")]
    await reading.aclose()


async def test_readers_of_a_response_that_is_deleted_end(new_store: NewStore) -> None:
    """They do not wait for what will never come, in any process; its run is told to end."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    readers = [asyncio.create_task(follow_to_end(each, stored.id)) for each in (store, other)]
    await asyncio.sleep(0.1)
    with store.follower.cancellable(stored.id) as cancelled:
        await other.responses.delete(stored.id, stored.owner)
        async with asyncio.timeout(PATIENCE):
            await cancelled.wait()
    with pytest.raises(ResponseDeleted):
        await store.responses.finish(stored.id, "cancelled", {}, [])

    assert await asyncio.gather(*readers) in ([["a"]] * 2, [["a"], []])


async def test_a_slow_reader_costs_a_bounded_number_of_chunks(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not take is read from the database later, and nothing is missing."""
    monkeypatch.setattr(follower, "MAX_PENDING", 4)
    store = await new_store(gap=0)
    stored = record()
    await store.responses.create(stored, [])
    reading = store.follower.follow(stored.id)
    assert await commit(store, stored.id, 0, 0) is None
    assert await anext(reading) == [(0, 0)]
    for seq in range(1, 30):
        assert await commit(store, stored.id, seq, seq) is None
    await store.responses.finish(stored.id, "completed", {}, [])

    assert [seq async for piece in reading for seq, _ in piece] == list(range(1, 30))


async def test_a_response_that_begins_while_the_database_is_read_is_not_cancelled(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that began before a response was stored does not see it: that is no sign of its end."""
    store, other = await new_store(), await new_store()
    read = store.database.read

    @contextlib.asynccontextmanager
    async def slow_read() -> AsyncIterator[Any]:
        async with read() as connection:
            await connection.scalar(sa.select(sa.func.count()).select_from(responses))
            await asyncio.sleep(0.3)
            yield connection

    monkeypatch.setattr(store.database, "read", slow_read)
    with contextlib.ExitStack() as running:
        cancelled = []
        for _ in range(8):
            stored = record()
            await store.responses.create(stored, [])
            cancelled.append(running.enter_context(store.follower.cancellable(stored.id)))
            await other.responses.create(record(), [])  # something to look at
            await asyncio.sleep(0.15)
        await asyncio.sleep(1)
        assert [event.is_set() for event in cancelled] == [False] * 8


async def test_a_cancellation_reaches_the_process_that_runs(new_store: NewStore) -> None:
    """Whichever process is asked; it is told the request is taken only while the response runs."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    with store.follower.cancellable(stored.id) as cancelled:
        assert await other.responses.request_cancel(stored.id)
        async with asyncio.timeout(PATIENCE):
            await cancelled.wait()
    await store.responses.finish(stored.id, "cancelled", {}, [])
    assert not await other.responses.request_cancel(stored.id)


async def test_many_readers_cost_one_look(new_store: NewStore) -> None:
    """A hundred readers of another process's responses: the queries do not grow with them."""
    store, other = await new_store(), await new_store()
    responses = [record() for _ in range(20)]
    for each in responses:
        await store.responses.create(each, [])
    readers = [
        asyncio.create_task(follow_to_end(other, each.id)) for each in responses for _ in range(5)
    ]
    await asyncio.sleep(0.3)
    reads = _count_reads(other)
    for seq in range(10):
        await asyncio.gather(*(commit(store, each.id, seq, seq) for each in responses))
    assert len(reads) < 100  # 1,000 pieces were read; a poll each would be as many
    for each in responses:
        await store.responses.finish(each.id, "completed", {}, [])

    assert await asyncio.gather(*readers) == [list(range(10))] * 100
    assert await until(lambda: _no_readers(other))


def _count_reads(store: Any) -> list[None]:
    reads: list[None] = []
    read = store.database.read

    def counted() -> Any:
        reads.append(None)
        return read()

    store.database.read = counted
    return reads


async def _no_readers(store: Any) -> bool:
    return not store.follower._readers
