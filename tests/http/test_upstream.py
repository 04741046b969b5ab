"""Connections to engines: responses of every framing, kept connections, and what breaks them."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import pytest
from support.processes import eventually

from kodolly.http.upstream import Broken, Connection, Pool, Unreachable
from kodolly.http.upstream.connection import HIGH_WATER
from kodolly.http.upstream.pool import request_bytes, target

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = "안녕하세요. 무엇을 도와드릴까요?".encode()


class Server:
    """A server on loopback that does to each connection what `handler` does. Counts them."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.requests: list[bytes] = []

    async def take(self, reader: asyncio.StreamReader) -> bool:
        """One request read; False once the connection has ended."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            return True
        return False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._handler(reader, writer)
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        finally:
            server.close()


def answering(*pieces: bytes, close: bool = False) -> Server:
    """A server that answers every request with `pieces`, each on its own, and may then close."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.take(reader):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if close:
                return

    server = Server(handle)
    return server


async def asked(pool: Pool, url: str) -> bytes:
    """The body of an answer."""
    connection = await pool.post(url, {}, b"{}")
    try:
        return await whole(connection)
    finally:
        connection.release()


async def whole(connection: Connection) -> bytes:
    body = b""
    while chunk := await connection.read():
        body += chunk
    return body


def idle(pool: Pool) -> int:
    """Connections that wait for the next request."""
    return sum(len(origin.idle) for origin in pool._origins.values())


def open_ones(pool: Pool) -> int:
    """Connections that are not closed."""
    return sum(len(origin.connections) for origin in pool._origins.values())


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMINGS = {
    "content-length": [LENGTH, BODY],
    "one piece": [LENGTH + BODY],
    "chunked": [CHUNKED, b"%x\r\n%b\r\n" % (len(BODY), BODY), b"0\r\n\r\n"],
    "cut anywhere": [
        CHUNKED[:20],
        CHUNKED[20:] + b"%x\r" % len(BODY),
        b"\n" + BODY,
        b"\r\n0\r\n\r\n",
    ],
    "after 100": [b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH, BODY],
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_a_response_is_read_whole_and_its_connection_used_again(name: str) -> None:
    """Whatever its framing, and wherever the network cuts it."""
    server, pool = answering(*FRAMINGS[name]), Pool(1.0)
    async with server.running() as url:
        for _ in range(3):
            assert await asked(pool, url) == BODY
    assert server.connections == 1
    assert len(server.requests) == 3


async def test_a_body_may_end_with_its_connection() -> None:
    """Without length or chunks the end is the end; the next request gets a connection of its own."""
    server, pool = answering(b"HTTP/1.1 200 OK\r\n\r\n", BODY, close=True), Pool(1.0)
    async with server.running() as url:
        assert [await asked(pool, url) for _ in range(2)] == [BODY, BODY]
    assert server.connections == 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([LENGTH, BODY[:-1]], id="body cut short"),
        pytest.param([CHUNKED, b"5\r\nhello\r\n"], id="no last chunk"),
        pytest.param([LENGTH[:25]], id="headers cut short"),
        pytest.param([b"SSH-2.0-OpenSSH_9.2\r\n"], id="no HTTP"),
        pytest.param([CHUNKED, b"zz\r\n"], id="no chunk size"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2**17 + b"\r\n\r\n"], id="endless header"),
    ],
)
async def test_what_is_no_whole_response_is_broken(pieces: list[bytes]) -> None:
    """And never taken for an answer."""
    server = answering(*pieces, close=True)
    async with server.running() as url:
        with pytest.raises(Broken):
            await asked(Pool(1.0), url)


async def test_a_kept_connection_closed_as_we_write_is_asked_again() -> None:
    """The engine let go of it; the request goes out over a new one, and nobody notices."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.take(reader)
        if server.connections == 1:
            writer.write(LENGTH + BODY)
            await reader.readexactly(1)  # the second request: cut off without an answer
        else:
            writer.write(LENGTH + BODY)
            await writer.drain()

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        assert await asked(pool, url) == BODY
        assert await asked(pool, url) == BODY
    assert server.connections == 2


async def test_an_engine_that_dies_of_a_request_is_not_called_unreachable() -> None:
    """It took the request and is gone: the retry budget has to count that."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.take(reader)
        writer.write(LENGTH + BODY)
        await reader.readexactly(1)

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        assert await asked(pool, url) == BODY
    with pytest.raises(Broken):  # the server has closed its door, the connection is still there
        await asked(pool, url)


async def test_bytes_nobody_asked_for_end_a_kept_connection() -> None:
    """What a confused engine sends between two requests is never the next one's answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.take(reader):
            writer.write(LENGTH + BODY)
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        assert await asked(pool, url) == BODY
        await eventually(lambda: not open_ones(pool))
        assert await asked(pool, url) == BODY
    assert server.connections == 2


async def test_a_stream_left_early_is_broken_off() -> None:
    """The engine sees it at once and can stop."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.take(reader)
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await writer.drain()
        await reader.read(1)
        gone.set()

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        connection = await pool.post(url, {}, b"{}")
        assert await connection.read() == b"hello"
        connection.release()
        await asyncio.wait_for(gone.wait(), 1)


@pytest.mark.parametrize("ends", [True, False])
async def test_after_the_last_event_the_end_is_waited_for(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that has said all need not have ended: its connection is kept if it does end."""
    if ends:
        monkeypatch.setattr("kodolly.http.upstream.connection.LINGER", 30.0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.take(reader):
            writer.write(CHUNKED + b"5\r\nhello\r\n")
            await asyncio.sleep(0.1)
            if ends:
                writer.write(b"0\r\n\r\n")

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        for _ in range(2):
            connection = await pool.post(url, {}, b"{}")
            assert await connection.read() == b"hello"
            connection.release(said_all=True)
            await eventually(lambda: (idle(pool), open_ones(pool)) == ((1, 1) if ends else (0, 0)))
        assert server.connections == (1 if ends else 2)


async def test_what_nobody_reads_holds_the_engine_back() -> None:
    """An unread body fills what the sockets hold and little more."""
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await server.take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(HIGH_WATER))
            await writer.drain()
            sent += HIGH_WATER

    server, pool = Server(handle), Pool(1.0)
    async with server.running() as url:
        connection = await pool.post(url, {}, b"{}")
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 500 * HIGH_WATER
        assert len(await connection.read()) < 16 * HIGH_WATER
        while sent == before:
            assert await connection.read()
        connection.release()


async def test_a_connection_that_was_held_back_is_of_use_again() -> None:
    """Its next answer flows, although the last one's reader paused it and left."""
    big = bytes(4 * HIGH_WATER)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big)
    server, pool = answering(head + big), Pool(1.0)
    async with server.running() as url:
        connection = await pool.post(url, {}, b"{}")
        await asyncio.sleep(0.1)
        assert await whole(connection) == big
        connection.pause()
        connection.release()
        assert await asked(pool, url) == big
    assert server.connections == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own clocks, Linux's")
async def test_a_connection_that_died_in_silence_is_noticed() -> None:
    """A kept one whose path was cut: the kernel is told not to wait for minutes."""
    async with answering(LENGTH + BODY).running() as url:
        connection = await Pool(1.0).post(url, {}, b"{}")
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        connection.close()


async def test_a_large_request_waits_for_an_engine_that_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its kernel's buffers are full, which is no death: nothing ends the connection."""
    monkeypatch.setattr("kodolly.http.upstream.connection.UNACKNOWLEDGED", 300)
    go_on = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await server.take(reader)
        writer.write(LENGTH + BODY)
        await writer.drain()

    server = Server(handle)
    async with server.running() as url:
        asking = asyncio.create_task(Pool(1.0).post(url, {}, b"x" * 16 * 2**20))
        await asyncio.sleep(2)
        assert not asking.done()
        go_on.set()
        connection = await asyncio.wait_for(asking, 20)
        assert await whole(connection) == BODY
        connection.release()


async def test_idle_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that comes and goes leaves none behind."""
    monkeypatch.setattr("kodolly.http.upstream.pool.KEEPALIVE", 0.1)
    monkeypatch.setattr("kodolly.http.upstream.pool.SWEEP", 0.1)
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.take(reader):
            writer.write(LENGTH + BODY)
        ended.set()

    server, pool = Server(handle), Pool(1.0)
    tidying = asyncio.create_task(pool.run())
    async with server.running() as url:
        await asked(pool, url)
        await asyncio.wait_for(ended.wait(), 2)
        await eventually(lambda: not pool._origins)
    tidying.cancel()


async def test_a_pool_that_ends_leaves_no_connection_behind() -> None:
    """Neither an idle one nor one whose response has yet to end is left to the event loop."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await server.take(reader):
            writer.write(CHUNKED + b"5\r\nhello\r\n")

    server, pool = Server(handle), Pool(1.0)
    tidying = asyncio.create_task(pool.run())
    async with server.running() as url:
        connection = await pool.post(url, {}, b"{}")
        assert await connection.read() == b"hello"
        connection.release(said_all=True)
        assert open_ones(pool) == 1
        tidying.cancel()
        await asyncio.wait([tidying])
        assert open_ones(pool) == 0


async def test_nobody_at_the_port_is_unreachable() -> None:
    """Refused at once: such an engine has not seen the request."""
    async with answering().running() as url:
        pass
    with pytest.raises(Unreachable):
        await asked(Pool(1.0), url)


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that the kernel answers nobody more."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


async def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    """A host that swallows everything costs the connect timeout and no more."""
    with deaf_port() as port, pytest.raises(Unreachable, match=r"within 0\.2 s"):
        await asked(Pool(0.2), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "url",
    ["", "engine:8000", "ftp://engine/", "http://", "http://[::1", "http://a:b/", "http://가/"],
)
def test_an_unusable_url_is_told(url: str) -> None:
    """A worker may register what it likes; a request is never sent anywhere odd."""
    with pytest.raises(Unreachable):
        target(url)


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://engine:8000/v1/completions", b"engine:8000", b"/v1/completions"),
        ("http://engine", b"engine", b"/"),
        ("https://engine:443/x?y=1", b"engine", b"/x?y=1"),
        ("http://[::1]:8000/", b"[::1]:8000", b"/"),
    ],
)
def test_a_request_names_its_host_and_path(url: str, host: bytes, path: bytes) -> None:
    """As RFC 9112 wants them, and the body's length in bytes."""
    request = request_bytes(target(url), {"X-Request-Id": "a b"}, BODY)
    assert request.startswith(
        b"POST %b HTTP/1.1\r\nHost: %b\r\nX-Request-Id: a b\r\n" % (path, host)
    )
    assert request.endswith(b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))


def test_no_header_can_carry_another() -> None:
    """An engine's key comes over the wire and is put into a header."""
    with pytest.raises(Unreachable):
        request_bytes(target("http://a/"), {"Authorization": "Bearer a\r\nX-Evil: 1"}, b"")
