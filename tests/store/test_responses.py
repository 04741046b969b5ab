"""What is stored comes back, to its owner alone."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.stores import OWNER, commit, message, record

from kodolly.errors import BadRequest, ResponseDeleted
from kodolly.store.records import ConversationRecord, owner_of

NewStore = Callable[..., Any]


async def test_a_response_comes_back_as_it_was_stored(new_store: NewStore) -> None:
    """Request, tokens, items and result, Korean and NUL characters too, in another process as well."""
    store, other = await new_store(), await new_store()
    request = {"model": "m", "input": "한국\0", "metadata": {"k": "가"}}
    stored = record(request=request, prompt_token_ids=[1, 2**32 - 1], background=True)
    await store.responses.create(stored, [message("msg_1", "질문\0")])
    assert await commit(store, stored.id, 0, {"delta": "서"}, {"delta": "울"}) is None

    running = await other.responses.get(stored.id, OWNER)
    assert (running.status, running.last_seq) == ("in_progress", 1)
    result = {"usage": {"output_tokens": 2}}
    assert await store.responses.finish(stored.id, "completed", result, [message("msg_2", "서울")])

    after = await other.responses.get(stored.id, OWNER)
    assert (after.status, after.result, after.request) == ("completed", result, request)
    assert (after.prompt_token_ids, after.last_seq, after.background) == ([1, 2**32 - 1], 1, True)
    assert (after.run_by, after.completed_at >= stored.created_at) == (None, True)
    events = await other.responses.events(stored.id)
    assert (events.deltas, events.token_ids) == ([{"delta": "서"}, {"delta": "울"}], [0])
    assert await other.responses.output_items(stored.id) == [message("msg_2", "서울")]
    page = await other.responses.list_input_items(stored.id, OWNER)
    assert (page.items, page.has_more) == ([message("msg_1", "질문\0")], False)


async def test_a_response_ends_once(new_store: NewStore) -> None:
    """The first end counts, and its items."""
    store = await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await store.responses.finish(stored.id, "cancelled", {}, [message("msg_a")])
    with pytest.raises(Exception, match="another process"):  # it is nobody's any more
        await store.responses.finish(stored.id, "completed", {}, [message("msg_b")])

    assert (await store.responses.get(stored.id, OWNER)).status == "cancelled"
    assert await store.responses.output_items(stored.id) == [message("msg_a")]


async def test_nobody_sees_the_things_of_another_key(new_store: NewStore) -> None:
    """Responses, items and conversations of other keys are as if they were not there."""
    store = await new_store()
    stored = record(status="completed")
    await store.responses.create(stored, [message("msg_secret")])
    await store.conversations.create(ConversationRecord("conv_1", OWNER, {}, time.time()))
    stranger = owner_of("another key")

    assert await store.responses.get(stored.id, stranger) is None
    assert await store.responses.list_input_items(stored.id, stranger) is None
    assert await store.responses.chain(stored.id, stranger) is None
    assert not await store.responses.delete(stored.id, stranger)
    assert not await store.responses.request_cancel(stored.id, stranger)
    assert await store.items.resolve(["msg_secret"], stranger) == {}
    assert await store.conversations.get("conv_1", stranger) is None
    assert await store.conversations.list_items("conv_1", stranger) is None
    assert not await store.conversations.add_items("conv_1", stranger, [message("msg_x")])
    assert not await store.conversations.delete("conv_1", stranger)


@pytest.mark.parametrize("strange", ["", "resp_\0", "가" * 10, "x" * 5000, "a\ud800"])
async def test_a_strange_id_is_just_not_there(new_store: NewStore, strange: str) -> None:
    """No text that a client sends as an id is an error of the database."""
    store = await new_store()
    assert await store.responses.get(strange, OWNER) is None
    assert await store.responses.chain(strange, OWNER) is None
    assert not await store.responses.delete(strange, OWNER)
    assert await store.items.resolve([strange], OWNER) == {}
    assert await store.conversations.get(strange, OWNER) is None


async def test_a_chain_has_all_earlier_turns_in_order(new_store: NewStore) -> None:
    """Input and output of each turn, oldest first; none of it where a turn is missing."""
    store = await new_store()
    turns: list[str] = []
    for number in range(3):
        turn = record(previous_response_id=turns[-1] if turns else None)
        await store.responses.create(turn, [message(f"in_{number}")])
        await store.responses.finish(turn.id, "completed", {}, [message(f"out_{number}")])
        turns.append(turn.id)

    names = [item["id"] for item in await store.responses.chain(turns[-1], OWNER)]
    assert names == ["in_0", "out_0", "in_1", "out_1", "in_2", "out_2"]
    await store.responses.delete(turns[0], OWNER)
    assert await store.responses.chain(turns[-1], OWNER) is None


async def test_the_newest_item_of_an_id_counts(new_store: NewStore) -> None:
    """Clients send items back: an id may be stored twice, and resolves to its newest state."""
    store = await new_store()
    for text in ("old", "new"):
        await store.responses.create(record(status="completed"), [message("msg_1", text)])
    assert await store.items.resolve(["msg_1", "msg_none"], OWNER) == {
        "msg_1": message("msg_1", "new")
    }


async def test_deleting_a_running_response_stops_it(new_store: NewStore) -> None:
    """Whoever runs it, also in another process, is asked to cancel; later events have nowhere to go."""
    store, other = await new_store(), await new_store()
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    with store.follower.cancellable(stored.id) as cancelled:
        assert await other.responses.delete(stored.id, OWNER)
        assert isinstance(await commit(store, stored.id, 1, "b"), ResponseDeleted)
    assert cancelled is not None
    with pytest.raises(ResponseDeleted):
        await store.responses.finish(stored.id, "completed", {}, [])


async def test_items_of_a_conversation(new_store: NewStore) -> None:
    """Create, page, read, delete; a response that is completed adds its items, a failed one none."""
    store = await new_store()
    await store.conversations.create(
        ConversationRecord("conv_1", OWNER, {"k": "v"}, time.time()), [message("msg_0")]
    )
    for status, name in (("failed", "bad"), ("completed", "good")):
        stored = record(conversation_id="conv_1")
        await store.responses.create(stored, [message(f"in_{name}")])
        await store.responses.finish(stored.id, status, {}, [message(f"out_{name}")])

    page = await store.conversations.list_items("conv_1", OWNER, limit=2, order="asc")
    assert ([item["id"] for item in page.items], page.has_more) == (["msg_0", "in_good"], True)
    page = await store.conversations.list_items("conv_1", OWNER, after="in_good", order="asc")
    assert ([item["id"] for item in page.items], page.has_more) == (["out_good"], False)
    page = await store.conversations.list_items("conv_1", OWNER, limit=1)
    assert ([item["id"] for item in page.items], page.has_more) == (["out_good"], True)
    with pytest.raises(BadRequest, match="no item 'msg_none'"):
        await store.conversations.list_items("conv_1", OWNER, after="msg_none")
    assert await store.conversations.get_item("conv_1", "in_good", OWNER) == message("in_good")
    assert await store.conversations.delete_item("conv_1", "in_good", OWNER)
    assert await store.conversations.get_item("conv_1", "in_good", OWNER) is None
    updated = await store.conversations.update("conv_1", OWNER, {"k": "w"})
    assert updated.metadata == {"k": "w"}
    assert await store.conversations.delete("conv_1", OWNER)
    assert await store.items.resolve(["msg_0"], OWNER) == {}


async def test_a_conversation_may_go_while_a_response_is_made(new_store: NewStore) -> None:
    """The response is finished all the same."""
    store = await new_store()
    await store.conversations.create(ConversationRecord("conv_1", OWNER, {}, time.time()))
    stored = record(conversation_id="conv_1")
    await store.responses.create(stored, [message("msg_0")])
    await store.conversations.delete("conv_1", OWNER)

    assert await store.responses.finish(stored.id, "completed", {}, [message("msg_1")])
    assert await store.responses.output_items(stored.id) == [message("msg_1")]
