"""Server-sent events in every dress the standard allows, and some that it does not."""

import itertools

import pytest

from kodolly.protocol.event_stream import (
    MAX_EVENT,
    Event,
    EventParser,
    EventTooLarge,
    FinishedChoices,
    is_failure,
)

EVENTS = ['{"a": 1}', '{"two":\n"lines"}', '{"text": "한글 🙂"}', "[DONE]"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("head", ["data:", "data: "])
def test_events_survive_every_cut(end: str, head: str) -> None:
    """Events come out whole wherever the bytes were cut in three, and however lines end."""
    lines = [line for e in EVENTS for line in [*(head + part for part in e.split("\n")), ""]]
    wire = end.join([": keep-alive", "", *lines, ""]).encode()
    for first, second in itertools.combinations(range(1, len(wire)), 2):
        parser = EventParser()
        chunks = (wire[:first], wire[first:second], wire[second:])
        got = [event.data.decode() for chunk in chunks for event in parser.feed(chunk)]
        assert got == EVENTS


def test_data_of_several_lines() -> None:
    """Data lines of one event are joined by line feeds; other fields are passed over."""
    parser = EventParser()
    assert parser.feed(b"event: x\nid: 1\ndata: {\ndata: }\n\n\n") == [Event(b"{\n}")]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_byte_order_mark_is_skipped_at_the_beginning_only(size: int) -> None:
    """It may come in pieces; within data it is a character as any other."""
    wire = "\ufeffdata: a\n\ndata: \ufeffb\n\n".encode()
    parser = EventParser()
    chunks = [wire[at : at + size] for at in range(0, len(wire), size)]
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    assert [event.data.decode() for event in events] == ["a", "\ufeffb"]


@pytest.mark.parametrize("wire", [b"data: x", b"data: x\n", b"data: x\r", b"data: x\r\n"])
def test_the_end_of_the_body_closes_the_last_event(wire: bytes) -> None:
    """Whatever its blank line lacks."""
    parser = EventParser()
    assert parser.feed(wire) == []
    assert parser.finish() == [Event(b"x")]


@pytest.mark.parametrize(
    "wire",
    [
        b'error: {"message":"boom"}\n\n',
        b'error:{"message":"boom"}\r\n\r\n',
        b'event: error\ndata: {"message":"boom"}\n\n',
        b'data: {"message":"boom"}\nevent:error\n\n',
    ],
)
def test_both_fields_that_tell_of_an_error(wire: bytes) -> None:
    """An event named so, and a field named so."""
    assert EventParser().feed(wire) == [Event(b'{"message":"boom"}', is_error=True)]


def test_an_error_without_data_is_one_too() -> None:
    """And the next event is none."""
    parser = EventParser()
    assert parser.feed(b"event: error\n\ndata: x\n\n") == [Event(b"", True), Event(b"x")]


def test_an_event_has_a_bound_however_it_comes() -> None:
    """In one line without end, and in lines without end."""
    piece = b"x" * 2**20
    for chunk in (piece, b"data: " + piece + b"\n"):
        parser = EventParser()
        for _ in range(MAX_EVENT // len(chunk)):
            parser.feed(chunk)
        with pytest.raises(EventTooLarge):
            parser.feed(chunk)


def test_an_error_that_is_null_is_none() -> None:
    """Some engines write all fields of an event, also those that are empty."""
    choices = [{"index": 0}]
    assert not is_failure({"choices": choices, "error": None})
    assert not is_failure({"choices": choices, "error": {}})
    assert is_failure({"error": {}})
    assert is_failure({"choices": choices, "error": "boom"})
    assert is_failure({"object": "error", "message": "boom"})


def test_all_choices_must_have_ended() -> None:
    """One of two is not enough, and one that says so twice is still one."""
    finished = FinishedChoices(2)
    for _ in range(2):
        finished.note({"choices": [{"index": 0, "finish_reason": "stop"}, 5]})
    finished.note({"choices": [{"index": 1, "finish_reason": None}], "usage": {}})
    finished.note({"choices": None})
    assert not finished.are_all
    finished.note({"choices": [{"index": 1, "finish_reason": "length"}]})
    assert finished.are_all
