"""From deltas to events: order, numbers, ids, and that nothing is lost."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.response_events import text_of

from kodolly.api.responses.deltas import Delta, DeltaReader, chat_event, delta_of
from kodolly.api.responses.events import EventMachine, replay
from kodolly.api.responses.request import check_request
from kodolly.api.responses.result import base_response
from kodolly.api.sse import LAST, error_event, event

END: Delta = {"end": 5, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def base(**fields: Any) -> dict[str, Any]:
    """A response of which nothing is there yet."""
    request = check_request({"model": "m", "input": "안녕", **fields})
    return base_response(request, "resp_00ff", 1, store=True)


def events_of(*deltas: Delta, **fields: Any) -> list[dict[str, Any]]:
    """All events of a response."""
    machine = EventMachine(base(**fields))
    return machine.begin() + [each for delta in deltas for each in machine.feed(delta)]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types, without the common prefix."""
    return [each["type"].removeprefix("response.") for each in events]


def test_a_text_has_openais_order() -> None:
    """Created, item, part, deltas, and each is closed again."""
    events = events_of("안", "녕", {"finish": "stop"}, END)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [each["sequence_number"] for each in events] == list(range(10))
    response = events[-1]["response"]
    assert response["output"][0]["content"][0]["text"] == "안녕"
    assert response["usage"]["input_tokens"] == 3
    assert response["completed_at"] == 5


def test_a_function_call_has_openais_order() -> None:
    """Its arguments come in deltas, then whole, and the item is closed before the next one opens."""
    events = events_of(
        {"tools": [{"index": 0, "id": "call_1", "name": "f", "arguments": ""}]},
        {"tools": [{"index": 0, "arguments": '{"a":'}]},
        {"tools": [{"index": 0, "arguments": "1}"}]},
        {"tools": [{"index": 1, "id": "call_2", "name": "g", "arguments": "{}"}]},
        {"finish": "tool_calls"},
        END,
    )
    one = ["output_item.added", "function_call_arguments.delta"]
    done = ["function_call_arguments.done", "output_item.done"]
    assert kinds(events)[2:] == [*one, one[1], *done, *one, *done, "completed"]
    calls = events[-1]["response"]["output"]
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_1", "f", '{"a":1}'),
        ("call_2", "g", "{}"),
    ]


def test_calls_whose_arguments_come_in_turns_are_kept_apart() -> None:
    """An engine may write two calls at once."""
    pieces = [(0, '{"a"'), (1, '{"b"'), (0, ":1}"), (1, ":2}")]
    events = events_of(
        *({"tools": [{"index": index, "arguments": text}]} for index, text in pieces), END
    )
    calls = events[-1]["response"]["output"]
    assert [call["arguments"] for call in calls] == ['{"a":1}', '{"b":2}']
    done = [each["arguments"] for each in events if each["type"].endswith("arguments.done")]
    assert done == ['{"a":1}', '{"b":2}']


def test_thoughts_and_text_are_items_of_their_own() -> None:
    """Reasoning comes first, in an item that ends before the message begins."""
    events = events_of({"reasoning": "음"}, {"reasoning": "…"}, "네", {"finish": "stop"}, END)
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "음…"}]
    closed = kinds(events).index("output_item.done")
    opened = [at for at, kind in enumerate(kinds(events)) if kind == "output_item.added"]
    assert opened[0] < closed < opened[1]


def test_a_refusal_is_a_part_of_its_own() -> None:
    """It is no text, so that nobody takes it for the answer."""
    events = events_of({"refusal": "안 "}, {"refusal": "돼요"}, {"finish": "stop"}, END)
    assert "refusal.done" in kinds(events)
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part == {"type": "refusal", "refusal": "안 돼요"}


def test_each_end_has_its_event() -> None:
    """A limit, a failure and a cancellation are told from an answer that is whole."""
    length = events_of("a", {"finish": "length"}, END)[-1]
    assert length["type"] == "response.incomplete"
    assert length["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert length["response"]["output"][0]["status"] == "incomplete"
    error = {"code": "worker_lost", "message": "gone"}
    failed = events_of("a", {"end": 5, "error": error})[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == error
    cancelled = events_of("a", {"end": 5, "cancelled": True})[-1]
    assert cancelled["type"] == "response.incomplete"
    assert cancelled["response"]["status"] == "cancelled"


def test_an_answer_without_a_token_is_an_empty_message() -> None:
    """Clients read the first item."""
    output = events_of({"finish": "stop"}, END)[-1]["response"]["output"]
    assert output[0]["content"][0]["text"] == ""


def test_a_background_response_is_queued_first() -> None:
    """`response.queued` stands between created and in_progress."""
    events = events_of(background=True)
    assert kinds(events) == ["created", "queued", "in_progress"]
    assert [each["response"]["status"] for each in events] == ["queued", "queued", "in_progress"]


DELTAS = st.lists(
    st.one_of(
        st.text(min_size=1),
        st.builds(lambda text: {"reasoning": text}, st.text(min_size=1)),
        st.builds(lambda text: {"refusal": text}, st.text(min_size=1)),
        st.builds(
            lambda index, text: {"tools": [{"index": index, "arguments": text}]},
            st.integers(0, 2),
            st.text("ab,:", min_size=1),
        ),
    ),
    max_size=12,
)


@given(DELTAS, st.integers(-1, 40))
def test_what_is_read_again_is_what_was_read(deltas: list[Delta], after: int) -> None:
    """From any event on: the same text, the same last event, and numbers that only rise."""
    deltas = [*deltas, END]
    events = events_of(*deltas)
    machine = EventMachine(base())
    again = [each for each in machine.begin() if each["sequence_number"] > after]
    again += replay(machine, deltas, after)
    rest = [each for each in events if each["sequence_number"] > after]
    for kind in ("output_text", "reasoning_text", "refusal", "function_call_arguments"):
        name = f"response.{kind}.delta"
        texts = [
            "".join(each["delta"] for each in some if each["type"] == name)
            for some in (rest, again)
        ]
        assert texts[0] == texts[1]
    assert again[-1:] == rest[-1:]
    numbers = [each["sequence_number"] for each in again]
    assert numbers == sorted(set(numbers))
    others = [[each for each in some if "delta" not in each] for some in (rest, again)]
    assert others[0] == others[1]


@given(DELTAS)
def test_the_deltas_make_the_items(deltas: list[Delta]) -> None:
    """The text of the deltas is the text of the response."""
    events = events_of(*deltas, END)
    parts = [
        part
        for item in events[-1]["response"]["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    ]
    assert text_of(events) == "".join(part["text"] for part in parts)
    items = events[-1]["response"]["output"]
    arguments = [item["arguments"] for item in items if item["type"] == "function_call"]
    for index in range(3):
        pieces = [
            piece["arguments"]
            for delta in deltas
            if isinstance(delta, dict)
            for piece in delta.get("tools", ())
            if piece["index"] == index
        ]
        assert not pieces or "".join(pieces) in arguments


def chunk(delta: dict[str, Any], ids: list[int] | None = None, **fields: Any) -> bytes:
    """A chat event."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    return event({"id": "c", "choices": [{**choice, "token_ids": ids}]})


def test_chat_events_become_deltas() -> None:
    """Text is a plain text; what has no text but a token is kept for its token."""
    reader = DeltaReader()
    batch = reader.read(
        chunk({"role": "assistant", "content": ""})
        + chunk({"content": "안"}, [1])
        + b": ping\n\n"
        + chunk({"content": ""}, [2])
        + chunk({"content": "녕"}, [3, 4], finish_reason="stop")
        + event({"choices": [], "usage": {"total_tokens": 7}})
        + LAST
    )
    assert batch.deltas == ["안", "", {"content": "녕", "finish": "stop"}]
    assert batch.token_ids == [1, 2, 3, 4]
    assert batch.is_done
    assert reader.usage == {"total_tokens": 7}


def test_an_error_event_ends_a_stream() -> None:
    """What is written after it is not read."""
    batch = DeltaReader().read(error_event("gone", "worker_lost") + LAST)
    assert batch.deltas == [{"error": {"code": "worker_lost", "message": "gone"}}]
    assert batch.is_done


def test_stored_deltas_become_a_chat_event_again() -> None:
    """It says what the engine said, so that another engine can go on from it."""
    pieces: list[dict[str, Any]] = [
        {"reasoning": "음", "reasoning_content": "음"},
        {"content": "안"},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f"}}]},
    ]
    deltas = [delta_of({"delta": piece}) for piece in pieces]
    restored = chat_event(deltas, [1, 2], {"id": "x"})
    choice = restored["choices"][0]
    assert choice["delta"] == {**pieces[0], **pieces[1], **pieces[2]}
    assert choice["token_ids"] == [1, 2]
