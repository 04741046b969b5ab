"""A request's head, trailers and chunk extensions are bounded before anything is asked or kept."""

import pytest
from starlette.types import Receive, Scope, Send
from support.wire import START, Wire, connected, turns
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kodolly.http.downstream.protocol import MAX_FIELDS, MAX_HEAD

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOOD = 40 * 2**20  # bytes a hostile client would like to send
STEP = 4096


class Reader:
    """An application that reads a body whole, answers, and remembers the headers it was given."""

    def __init__(self) -> None:
        self.bodies: list[int] = []
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        self.bodies.append(size)
        self.headers = list(scope["headers"])
        await send(START)
        await send({"type": "http.response.body", "body": b"abcd"})


async def sent_until_closed(protocol: HttpToolsProtocol, wire: Wire, begin: bytes) -> int:
    """Bytes taken after `begin`, of a flood that never ends a line, until the connection closes."""
    protocol.data_received(begin)
    await turns()
    count = 0
    while not wire.closed and count < FLOOD:
        protocol.data_received(b"a" * STEP)
        count += STEP
    if wire.closed:
        protocol.connection_lost(None)
        await turns()
    return count


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: x\r\nName-that-goes-on",
        b"GET / HTTP/1.1\r\nHost: x\r\nLong: ",
        CHUNKED + b"5;extension=",
        CHUNKED + b"5\r\nabcde\r\n0\r\nTrailer: ",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /",
    ],
    ids=["line", "name", "value", "extension", "trailer", "second"],
)
async def test_a_flood_is_refused_before_it_grows(begin: bytes) -> None:
    """Each ends with 431 and a closed connection after little more than the bound."""
    protocol, wire = connected(Reader())
    assert MAX_HEAD - STEP <= await sent_until_closed(protocol, wire, begin) <= 2 * MAX_HEAD
    assert b"".join(wire.writes).count(b"HTTP/1.1 431 ") == 1


@pytest.mark.parametrize("trailers", [False, True])
async def test_many_small_fields_are_refused(trailers: bool) -> None:
    """One field more than the bound, in the head or behind the body."""
    app = Reader()
    fields = b"".join(b"f%d: 1\r\n" % number for number in range(MAX_FIELDS + 1))
    begin = CHUNKED + b"1\r\na\r\n0\r\n" if trailers else b"GET / HTTP/1.1\r\n"
    protocol, wire = connected(app)
    protocol.data_received(begin + fields + b"\r\n")
    await turns()
    assert b"".join(wire.writes).startswith(b"HTTP/1.1 431 ")
    assert wire.closed
    protocol.connection_lost(None)
    await turns()
    assert not app.bodies


async def test_what_stays_within_the_bounds_is_served() -> None:
    """The largest head, then a large body in one piece, then one of tiny chunks, then trailers."""
    app = Reader()
    protocol, wire = connected(app)
    line = b"POST / HTTP/1.1\r\n"
    fields = b"".join(b"f%d: 1\r\n" % number for number in range(MAX_FIELDS - 2))
    length = b"Content-Length: 300000\r\n"
    room = MAX_HEAD - len(line) - len(fields) - len(length) - len(b"long: \r\n\r\n")
    head = line + fields + length + b"long: " + b"a" * room + b"\r\n\r\n"
    assert len(head) == MAX_HEAD
    protocol.data_received(head + b"x" * 300_000)
    await turns()
    protocol.data_received(CHUNKED)
    for _ in range(200):
        protocol.data_received(b"1\r\nx\r\n" * 100)
    protocol.data_received(b"0\r\nAuthorization: forged\r\n\r\n")
    await turns()
    assert app.bodies == [300_000, 20_000]
    assert b"authorization" not in dict(app.headers)
    assert not wire.closed


async def test_a_flood_behind_a_response_under_way_breaks_the_connection() -> None:
    """Nothing is written into the middle of an answer."""

    async def early(_: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await receive()

    protocol, wire = connected(early)
    await sent_until_closed(protocol, wire, CHUNKED + b"5;extension=")
    assert wire.closed
    assert b" 431 " not in b"".join(wire.writes)
