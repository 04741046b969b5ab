"""The head of a response goes out with the first of its body, and never waits for it."""

import asyncio
import gc
import weakref
from typing import Any, cast

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from support.processes import eventually
from support.wire import START, Wire, connected, turns

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(_: Scope, __: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await send({"type": "http.response.body", "body": b"cd"})


async def test_the_head_goes_out_with_the_first_of_the_body() -> None:
    """An answer is as many writes as its body has parts, also the second on a connection."""
    protocol, wire = connected(answer)
    for _ in range(2):
        wire.writes.clear()
        protocol.data_received(GET)
        await turns()
        assert len(wire.writes) == 2
        assert wire.writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
        assert wire.writes[0].endswith(b"\r\n\r\nab")
        assert wire.writes[1] == b"cd"


def whole(headers: list[tuple[bytes, bytes]], body: bytes = b"abcd") -> ASGIApp:
    """An application that sends a response with these headers beside its length, 4 bytes."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        headers_sent = [(b"content-length", b"4"), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers_sent})
        await send({"type": "http.response.body", "body": body})

    return app


async def test_a_whole_response_is_one_write() -> None:
    """Head and body go out together, and the connection takes the next request."""
    protocol, wire = connected(whole([(b"x-a", b"1")]))
    for _ in range(2):
        wire.writes.clear()
        protocol.data_received(GET)
        await turns()
        (response,) = wire.writes
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
        assert {b"content-length: 4", b"x-a: 1"} <= set(head.splitlines())
        assert body == b"abcd"
        assert not wire.closed


@pytest.mark.parametrize("value", [b"1\r\nset-cookie: a=b", b"1\nb: 2", b"1\rb: 2", b"1\0"])
async def test_a_header_cannot_hold_another_one(value: bytes) -> None:
    """A line end in a header's value ends the response, and what follows it is never sent."""
    protocol, wire = connected(whole([(b"x-a", value)]))
    protocol.data_received(GET)
    await turns()
    assert wire.closed or wire.writes
    assert not any(value in write for write in wire.writes)


@pytest.mark.parametrize("body", [b"abc", b"abcde"])
async def test_a_wrong_length_breaks_the_connection(body: bytes) -> None:
    """A body that is not as long as its head says would be mixed up with the next response."""
    protocol, wire = connected(whole([], body))
    protocol.data_received(GET)
    await turns()
    assert wire.closed


async def test_a_closing_connection_says_so() -> None:
    """The app's `connection: close`, and the client's, end the connection after a whole response."""
    for app, request in (
        (whole([(b"Connection", b"close")]), GET),
        (whole([]), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
    ):
        protocol, wire = connected(app)
        protocol.data_received(request)
        await turns()
        assert b"connection: close" in wire.writes[0].lower()
        assert b"".join(wire.writes).endswith(b"abcd")
        assert wire.closed


async def test_a_head_request_gets_no_body() -> None:
    """HEAD is answered with the length of the body, and without it."""
    protocol, wire = connected(whole([]))
    protocol.data_received(GET.replace(b"GET", b"HEAD"))
    await turns()
    assert b"content-length: 4" in b"".join(wire.writes)
    assert b"abcd" not in b"".join(wire.writes)


async def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    """A client that waits for the head has it at once."""
    more = asyncio.Event()

    async def slow(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        await more.wait()
        await send({"type": "http.response.body", "body": b"abcd"})

    protocol, wire = connected(slow)
    protocol.data_received(GET)
    await turns()
    assert [write[-4:] for write in wire.writes] == [b"\r\n\r\n"]
    more.set()
    await turns()
    assert wire.writes[1:] == [b"abcd"]


async def test_what_follows_a_request_and_is_no_http_is_no_failure_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection is closed while the application answers: what it still writes is dropped."""
    more = asyncio.Event()
    wire: Wire

    async def slow(_: Scope, __: Receive, send: Send) -> None:
        await more.wait()
        await send(START)
        await send({"type": "http.response.body", "body": b"abcd"})
        assert wire.closed

    protocol, wire = connected(slow)
    protocol.data_received(GET)
    await turns()
    protocol.data_received(b"no HTTP\r\n\r\n")
    more.set()
    await turns()
    assert [write[:12] for write in wire.writes] == [b"HTTP/1.1 400"]
    assert "Exception" not in caplog.text


async def test_a_head_alone_is_sent_before_the_connection_closes() -> None:
    """HEAD over HTTP/1.0, where the connection ends with the answer: the head is not lost."""
    protocol, wire = connected(answer)
    protocol.data_received(GET.replace(b"GET", b"HEAD").replace(b"1.1", b"1.0"))
    await turns()
    assert [write[-4:] for write in wire.writes] == [b"\r\n\r\n"]
    assert wire.closed


async def test_the_go_ahead_for_a_body_comes_before_it() -> None:
    """`Expect: 100-continue` is answered although no response has begun."""

    async def reading(_: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"abcd"
        await send(START)
        await send({"type": "http.response.body", "body": b"abcd"})

    protocol, wire = connected(reading)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    protocol.data_received(head)
    await turns()
    assert wire.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    protocol.data_received(b"abcd")
    await turns()
    assert b"".join(wire.writes[1:]).endswith(b"\r\n\r\nabcd")


async def test_a_chunk_goes_out_in_a_plain_call_when_it_can() -> None:
    """Not before the head, and not to a client that has no room: `send` waits for both."""
    went: list[bool] = []

    async def stream(scope: Scope, _: Receive, send: Send) -> None:
        chunk = scope["extensions"]["kodolly.chunk"]
        went.append(chunk(b"early"))
        await send({**START, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        went.append(chunk(b"0123456789ab"))
        protocol.pause_writing()
        went.append(chunk(b"late"))
        protocol.resume_writing()
        await send({"type": "http.response.body"})

    protocol, wire = connected(stream)
    protocol.data_received(GET)
    await turns()
    assert went == [False, True, False]
    assert wire.writes[1:] == [b"c\r\n0123456789ab\r\n", b"0\r\n\r\n"]


async def test_a_request_on_its_way_when_the_server_ends_is_answered() -> None:
    """A connection just made is not closed under its first request; with the answer it is."""
    protocol, wire = connected(answer)
    protocol.shutdown()
    assert not wire.closed
    protocol.data_received(GET)
    await turns()
    assert b"".join(wire.writes).endswith(b"\r\n\r\nabcd")
    assert wire.closed


async def test_a_connection_that_asks_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A browser's spare connection is closed after a moment, one that was answered at once."""
    monkeypatch.setattr("kodolly.http.downstream.protocol.FIRST_REQUEST_GRACE", 0.01)
    unused, spare = connected(answer)
    unused.shutdown()
    await eventually(lambda: spare.closed)

    protocol, kept = connected(answer)
    protocol.data_received(GET)
    await turns()
    assert not kept.closed
    protocol.shutdown()
    assert kept.closed


async def test_an_answered_request_is_gone_without_the_collector() -> None:
    """Nothing of it refers to itself: under load such garbage would pile up between collections."""
    protocol, _ = connected(answer)
    protocol.data_received(GET)
    await turns()
    first = weakref.ref(protocol.cycle)
    gc.disable()
    try:
        protocol.data_received(GET)
        await turns()
        assert first() is None
    finally:
        gc.enable()


async def test_an_app_can_break_its_connection() -> None:
    """What ASGI has no message for."""

    async def breaking(scope: Scope, _: Receive, __: Send) -> None:
        scope["extensions"]["kodolly.abort"]()

    protocol, wire = connected(breaking)
    protocol.data_received(GET)
    await asyncio.sleep(0)
    assert wire.closed


async def test_a_client_that_left_is_written_nothing() -> None:
    """A connection that closes in the turn in which the head was written takes no more."""
    protocol, wire = connected(answer)

    async def leave(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        wire.close()

    protocol.app = cast(Any, leave)
    protocol.data_received(GET)
    await turns()
    assert wire.writes == []
