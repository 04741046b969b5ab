"""What is kept has bounds: time, and bytes of each client."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.stores import OWNER, commit, message, record

from kodolly.errors import StoreFull
from kodolly.store.records import ConversationRecord

NewStore = Callable[..., Any]
TEXT = "가" * 1000  # 3,000 bytes


async def test_what_is_too_old_goes(new_store: NewStore) -> None:
    """Finished responses and conversations past their time, with all they have; running ones stay."""
    store = await new_store(ttl=100)
    long_ago = time.time() - 200
    old, running, new = record(created_at=long_ago), record(created_at=long_ago), record()
    for each in (old, running, new):
        await store.responses.create(each, [message(f"msg_{each.id}")])
        assert await commit(store, each.id, 0, "a") is None
    for each in (old, new):
        await store.responses.finish(each.id, "completed", {}, [])
    for name, created in (("conv_old", long_ago), ("conv_new", time.time())):
        await store.conversations.create(ConversationRecord(name, OWNER, {}, created))

    assert await store.sweeper.sweep() == 2
    assert await store.responses.get(old.id, OWNER) is None
    assert (await store.responses.events(old.id)).deltas == []
    assert await store.items.resolve([f"msg_{old.id}"], OWNER) == {}
    assert await store.responses.get(running.id, OWNER) is not None
    assert await store.responses.get(new.id, OWNER) is not None
    assert await store.conversations.get("conv_old", OWNER) is None
    assert await store.conversations.get("conv_new", OWNER) is not None


async def test_a_conversation_in_use_does_not_go(new_store: NewStore) -> None:
    """Its time begins anew with what is added."""
    store = await new_store(ttl=100)
    await store.conversations.create(ConversationRecord("conv_1", OWNER, {}, time.time() - 200))
    assert await store.conversations.add_items("conv_1", OWNER, [message("msg_1")])
    assert await store.sweeper.sweep() == 0


async def test_a_client_over_its_bytes_loses_its_oldest_responses(new_store: NewStore) -> None:
    """The oldest finished ones go, as many as needed; other clients' stay."""
    store = await new_store(owner_bytes=20_000)
    others = record(owner="other", status="completed", completed_at=0)
    await store.responses.create(others, [message("msg_other", TEXT)])
    kept: list[str] = []
    for number in range(12):
        each = record()
        await store.responses.create(each, [message(f"msg_{number}", TEXT)])
        await store.responses.finish(each.id, "completed", {}, [])
        kept.append(each.id)

    there = [await store.responses.get(each, OWNER) is not None for each in kept]
    assert there == sorted(there)  # the first ones are gone
    assert 2 <= sum(there) <= 6
    assert await store.responses.get(others.id, "other") is not None


async def test_a_client_whose_things_cannot_go_is_refused(new_store: NewStore) -> None:
    """Running responses and conversations are not deleted for room; the error says what to do."""
    store = await new_store(owner_bytes=10_000)
    await store.responses.create(record(), [message("msg_1", TEXT)])
    await store.conversations.create(
        ConversationRecord("conv_1", OWNER, {}, time.time()), [message("msg_2", TEXT)]
    )
    with pytest.raises(StoreFull, match=r"more than 10000 bytes.*store: false") as caught:
        await store.responses.create(record(), [message("msg_3", TEXT)])
    assert caught.value.status == 403
    with pytest.raises(StoreFull):
        await store.conversations.add_items("conv_1", OWNER, [message("msg_4", TEXT)])
    await store.responses.create(record(owner="other"), [message("msg_5", TEXT)])


async def test_the_events_of_an_answer_count(new_store: NewStore) -> None:
    """A finished response's bytes are those of its request, events and items."""
    store = await new_store()
    each = record()
    await store.responses.create(each, [message("msg_1")])
    assert await commit(store, each.id, 0, "x" * 5000) is None
    await store.responses.finish(each.id, "completed", {}, [message("msg_2", "y" * 7000)])
    stored = await store.responses.get(each.id, OWNER)
    assert 12_000 < stored.bytes < 16_000
