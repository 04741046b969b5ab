"""uvicorn's HTTP protocol with bounds, and with responses written in fewer steps (`response_writer`).

uvicorn closes a new connection whose request is still under way when the server ends, which loses that request.
And it lets a request's head, trailers and chunk extensions grow without end, before any key is asked: here more
than MAX_HEAD bytes or MAX_FIELDS fields of them are answered with 431, and the connection is closed. So is one
whose client takes too long for a head, a body or its next request (408), or that is one too many (503).
The app also gets what ASGI lacks, in `scope["extensions"]`: `kodolly.abort()` breaks the connection, `kodolly.disconnect`
tells when the client has gone (a task that waits for it costs a short request a twentieth of its time),
`kodolly.chunk(data)` writes a piece of a body under way in a plain call, and `kodolly.know(answer)` has the
bodies of further requests with the same head taken by `answer` (decision 0009 and `known_heads`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import orjson
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kodolly.errors import (
    ApiError,
    BadRequest,
    OutOfDescriptors,
    RequestTimeout,
    TooManyConnections,
)
from kodolly.http import descriptors
from kodolly.http.bounds import Bounds, ConnectionLimit, Wait
from kodolly.http.downstream.known_heads import HEAD_END, KnownHeads
from kodolly.http.downstream.response_writer import (
    BufferedHead,
    Cycle,
    chunk_writer,
    json_response,
)

HIGH_WATER = 64 * 1024  # bytes for a client that it has not taken yet
FIRST_REQUEST_GRACE = (
    0.7  # seconds the first request of a connection may still take once the server ends
)
# Bytes of a request line with its headers; of one chunk's extensions; of the trailers.
MAX_HEAD = 64 * 1024
MAX_FIELDS = 100  # headers of a request; trailers
PIECE = 16 * 1024  # bytes parsed at a time where a bound is near
BEYOND = (
    f"A request may have at most {MAX_HEAD // 1024} KiB of headers in {MAX_FIELDS} fields, "
    "and as much of trailers."
)


class Disconnection:
    """Whether a connection's client has gone, and the functions to call once it has."""

    __slots__ = ("_callbacks", "has_happened")

    def __init__(self) -> None:
        self.has_happened = False
        self._callbacks: set[Callable[[], None]] = set()

    def add(self, callback: Callable[[], None]) -> None:
        """Has it called, unless it is discarded before."""
        self._callbacks.add(callback)

    def discard(self, callback: Callable[[], None]) -> None:
        """It is not called any more."""
        self._callbacks.discard(callback)

    def happen(self) -> None:
        """The client has gone."""
        self.has_happened = True
        for callback in tuple(self._callbacks):
            callback()


class HeadTooLarge(Exception):
    """A head, or what follows a body, has more fields or bytes than it may."""


class HttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`: see `bounded`."""

    reserve = descriptors.Reserve()  # of the whole process
    bounds = Bounds()
    limit = ConnectionLimit(bounds.max_connections)
    known_heads: KnownHeads | None = None  # None: no application of this server adds any
    _ends = False
    _head = b""  # of the request that is parsed next, where it came in one piece
    _waiting = b""  # a known head, whose body has yet to come
    _unread = 0  # bytes of a head, chunk extension or trailers that are not whole yet
    _too_large = False
    _requests = 0  # whose heads have come
    _in_body = False
    _wait: tuple[Wait, int] | None = None  # at the last look of `close_if_late`, and since when
    _wait_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A slow client has room again at a quarter of what is too much: uvloop's own mark is 16 bytes."""
        transport.set_write_buffer_limits(HIGH_WATER, HIGH_WATER // 4)
        super().connection_made(transport)
        self._disconnection = Disconnection()
        self.flow = OpenFlow(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and self.reserve.is_reached(sock.fileno()):
            self._write_and_close(OutOfDescriptors())
        elif self.limit.is_exceeded(len(self.connections)):
            self._write_and_close(TooManyConnections())

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: who waits for that is called."""
        super().connection_lost(exc)
        self._disconnection.happen()

    def data_received(self, data: bytes) -> None:
        """Parse what came, in small pieces once its head might become too large."""
        if self.known_heads is not None and not (data := self._answer_known(data)):
            return
        if self._unread + len(data) <= MAX_HEAD:
            self._unread += len(data)
            super().data_received(data)
            return
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._unread += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._unread > MAX_HEAD:
                self._refuse_head()
                return

    def _answer_known(self, data: bytes) -> bytes:
        """Answers a request with a known head. Returns what is left to be parsed as usual."""
        data, self._waiting = self._waiting + data, b""
        self._head = b""
        cycle = self.cycle
        if self._unread or self._in_body or (cycle is not None and not cycle.response_complete):
            return data
        head, _, body = data.partition(HEAD_END)
        assert self.known_heads is not None
        known = self.known_heads.get(head)
        if known is None or self._ends or self.flow.write_paused or self.transport.is_closing():
            self._head = head
            return data
        if len(body) < known.length:
            self._waiting = data
            return b""
        if len(body) > known.length or (answer := known.answer(body)) is None:
            return data
        self._requests += 1
        self.server_state.total_requests += 1
        self.transport.write(json_response(self.server_state.default_headers, answer))
        return b""

    def on_body(self, body: bytes) -> None:
        """What the application reads is bounded there, by the size of a body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The trailers have come: they are counted, and nobody is told of them."""
        if len(self.headers) > MAX_FIELDS:
            self._too_large = True
            raise HeadTooLarge
        self._unread = 0
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, and what a callback of the parser refused."""
        if self._too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)
            self._disconnect()

    def _refuse_head(self) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.abort()  # a second response would be read as a part of the first
            return
        self._write_and_close(BadRequest(BEYOND), 431)

    def _write_and_close(self, error: ApiError, status: int | None = None) -> None:
        status = status or error.status
        body = orjson.dumps(error.envelope())
        headers = {**error.headers, "Content-Type": "application/json", "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status} {phrase}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._disconnect()

    def _disconnect(self) -> None:
        """The connection is closed: what the application still writes is for nobody, and no failure."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_headers_complete(self) -> None:
        """A request begins; its response is written to the transport through a `BufferedHead`."""
        headers = self.headers
        if len(headers) > MAX_FIELDS or (self._unread > MAX_HEAD and self._head_size() > MAX_HEAD):
            self._too_large = True
            raise HeadTooLarge
        self._unread = 0
        self._requests += 1
        self._in_body = True
        before = self.cycle
        super().on_headers_complete()
        self.headers = []  # for the trailers, which are no headers of the application's
        extensions: dict[str, Any] = {
            "kodolly.abort": self.transport.abort,
            "kodolly.disconnect": self._disconnection,
            "kodolly.chunk": chunk_writer(self.cycle, self.transport),
        }
        cast(dict[str, Any], self.scope)["extensions"] = extensions
        if self.known_heads is not None:
            extensions["kodolly.know"] = partial(self.known_heads.add, self._head, headers)
            self._head = b""  # what follows in the same piece is another request's
        if self._ends:
            self.cycle.keep_alive = False
        if self.cycle is not before:
            # uvicorn has no setting for the class of its cycles.
            self.cycle.__class__ = Cycle
            self.cycle.transport = BufferedHead(self.cycle, self.transport)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def close_if_late(self, now: float) -> None:
        """Close the connection if its client has taken longer than it may for what it has to do.

        Called about once a second, so that a request itself starts no timer. `now`: seconds for which
        this process has run.
        """
        wait = self._awaited()
        if wait != self._wait:
            self._wait, self._wait_since = wait, now
        elif wait is not None and now - self._wait_since > self.bounds.seconds(wait[0]):
            self._end_late(wait[0])

    def _awaited(self) -> tuple[Wait, int] | None:
        """What the client has to do, with a number that changes as it goes on; None: it is our turn."""
        cycle = self.cycle
        if self.flow.write_paused or self.transport.is_closing():
            return Wait.READ, self.transport.get_write_buffer_size()
        if self._waiting:
            return Wait.BODY, self._requests
        if self._in_body:
            return None if self.flow.read_paused else (Wait.BODY, self._requests)
        if cycle is not None and not cycle.response_complete:
            return None
        return (Wait.HEAD if self._unread else Wait.IDLE), self._requests

    def _end_late(self, wait: Wait) -> None:
        cycle = self.cycle
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if wait is Wait.READ or is_answering:
            self.transport.abort()
        elif wait is Wait.IDLE or (wait is Wait.BODY and cycle.response_complete):
            self.transport.close()
        else:
            self._write_and_close(RequestTimeout(wait.value, self.bounds.seconds(wait)))

    def shutdown(self) -> None:
        """The server ends. A connection that has asked nothing yet may have its request on the way."""
        if self.cycle is not None:
            return super().shutdown()
        self._ends = True
        self.loop.call_later(FIRST_REQUEST_GRACE, self._end_unasked)

    def _end_unasked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class OpenFlow(FlowControl):
    """Does not try to go on reading from a connection that is closed, at which uvloop raises."""

    def resume_reading(self) -> None:
        """Reads again if there is anything to read from."""
        if self.read_paused and not self._transport.is_closing():
            super().resume_reading()


def bounded(bounds: Bounds, known_heads: KnownHeads | None = None) -> type[HttpProtocol]:
    """The protocol of one server, whose connections are counted together."""
    limit = ConnectionLimit(bounds.max_connections)
    values = {"bounds": bounds, "limit": limit, "known_heads": known_heads}
    return type("BoundedHttpProtocol", (HttpProtocol,), values)
