"""Events are committed before they are delivered, in groups, and a lost database loses no client its answer."""

import asyncio
from collections.abc import Callable
from typing import Any

from support.stores import OWNER, PATIENCE, commit, follow_to_end, message, record

from kodolly.errors import StoreUnavailable

NewStore = Callable[..., Any]


async def test_an_event_is_stored_when_it_is_delivered(new_store: NewStore) -> None:
    """At the moment of delivery every other process reads the event from the database."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    for seq in range(5):
        assert await commit(store, stored.id, seq, f"d{seq}") is None
        assert (await other.responses.events(stored.id)).deltas[-1] == f"d{seq}"


async def test_many_events_are_one_commit(new_store: NewStore) -> None:
    """The events of all responses within a gap are one transaction; a first one does not wait for it."""
    store = await new_store(gap=0.5)
    responses = [record() for _ in range(8)]
    for each in responses:
        await store.responses.create(each, [])
    assert await commit(store, responses[0].id, 0, "first") is None
    before = store.flusher.commits
    for each in responses[1:]:
        store.flusher.append(each.id, 0, ["first"], [], lambda *_: None)
    await asyncio.gather(*(_grow(store, each.id, 1, 40) for each in responses))

    assert store.flusher.commits - before <= 3  # the first ones at once, and one gap or two
    for each in responses:
        assert (await store.responses.events(each.id)).deltas == ["first", *range(1, 41)]


async def test_what_begins_is_committed_by_itself(new_store: NewStore) -> None:
    """A new response and its first event do not bring forward the commit of what others have made."""
    store = await new_store(gap=PATIENCE)
    old, new = record(), record()
    await store.responses.create(old, [])
    for seq in range(2):  # the second is the first commit of all
        assert await commit(store, old.id, seq, seq) is None
    store.flusher.append(old.id, 2, [2], [], lambda *_: None)
    await store.responses.create(new, [])
    assert await commit(store, new.id, 0, "first") is None

    assert (await store.responses.events(new.id)).deltas == ["first"]
    assert (await store.responses.events(old.id)).deltas == [0, 1]


async def test_events_can_be_made_right_before_their_commit(new_store: NewStore) -> None:
    """What asks for that is called once for each commit, and not once it is finished."""
    store = await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, 0) is None
    calls = []
    for number in range(1, 4):
        done = asyncio.Event()

        def make(number: int = number, done: asyncio.Event = done) -> None:
            calls.append(number)
            store.flusher.append(stored.id, number, [number], [], lambda *_: done.set())

        for _ in range(3):
            store.flusher.before_commit(stored.id, make)
        async with asyncio.timeout(PATIENCE):
            await done.wait()
    store.flusher.before_commit(stored.id, lambda: calls.append(-1))
    store.flusher.forget(stored.id)
    await store.close()

    assert calls == [1, 2, 3]


async def _grow(store: Any, response_id: str, start: int, count: int) -> None:
    """Appends `count` events, one at a time, and waits until all are committed."""
    committed = 0
    done = asyncio.Event()

    def on_commit(error: Any, appends: int) -> None:
        nonlocal committed
        assert error is None
        committed += appends
        if committed == count:
            done.set()

    for seq in range(start, start + count):
        store.flusher.append(response_id, seq, [seq], [], on_commit)
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await done.wait()


async def test_the_end_comes_after_all_events(new_store: NewStore) -> None:
    """`finish` commits what was appended before it; readers get all of that, then the end."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    readers = [asyncio.create_task(follow_to_end(each, stored.id)) for each in (store, other)]
    for seq in range(50):
        store.flusher.append(stored.id, seq, [seq], [], lambda *_: None)
    await store.responses.finish(stored.id, "completed", {}, [message("msg_1")])

    assert await asyncio.gather(*readers) == [list(range(50))] * 2
    assert (await other.responses.get(stored.id, OWNER)).last_seq == 49


async def test_a_fault_of_one_delivery_is_nobody_elses(new_store: NewStore, caplog: Any) -> None:
    """A callback that raises is logged; those of other responses in the same commit are called."""
    store = await new_store()
    broken, whole = record(), record()
    for each in (broken, whole):
        await store.responses.create(each, [])

    def fail(*_: Any) -> None:
        raise ValueError("broken callback")

    store.flusher.append(broken.id, 0, ["a"], [], fail)
    assert await commit(store, whole.id, 0, "b") is None
    assert "broken callback" in caplog.text


async def test_events_that_cannot_be_stored_are_one_responses_fault(new_store: NewStore) -> None:
    """Its client gets them all the same; the others' events are stored, and their answers go on."""
    store = await new_store()
    bad, good = record(), record()
    for each in (bad, good):
        await store.responses.create(each, [])
    results = await asyncio.gather(
        commit(store, bad.id, 0, "half a sign: \ud800"), commit(store, good.id, 0, "whole")
    )
    assert isinstance(results[0], StoreUnavailable)
    assert results[1] is None
    assert await commit(store, good.id, 1, "and on") is None


async def test_what_is_queued_is_committed_at_the_end(new_store: NewStore) -> None:
    """A process that closes its store first commits what it has."""
    store, other = await new_store(gap=60), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    store.flusher.append(stored.id, 1, ["b"], [], lambda *_: None)
    await store.close()

    assert (await other.responses.events(stored.id)).deltas == ["a", "b"]


async def test_an_answer_goes_on_without_its_database(new_store: NewStore) -> None:
    """Its events come with the error, at once after the first; once the database is back it has failed."""
    store = await new_store(retry_time=0.3)
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    doors = ("write", "run_write", "driver")
    for door in doors:
        setattr(store.database, door, _unreachable)
    try:
        assert isinstance(await commit(store, stored.id, 1, "b"), StoreUnavailable)
        assert isinstance(await commit(store, stored.id, 2, "c"), StoreUnavailable)
        try:
            await store.responses.finish(stored.id, "completed", {}, [])
        except StoreUnavailable:
            pass
        else:
            raise AssertionError("finish must say that the store is away")
    finally:
        for door in doors:
            delattr(store.database, door)

    assert await follow_to_end(store, stored.id) == ["a"]
    after = await store.responses.get(stored.id, OWNER)
    assert (after.status, after.result["error"]["code"]) == ("failed", "server_error")
    assert await commit(store, (await _created(store)).id, 0, "well again") is None


def _unreachable(*_: Any) -> Any:
    raise StoreUnavailable("away")


async def _created(store: Any) -> Any:
    stored = record()
    await store.responses.create(stored, [])
    return stored
