"""uvicorn's HTTP protocol, with a response's head and the first of its body in one write.

uvicorn writes the head by itself: one more system call for every answer, and its reader is woken twice. It also
closes a new connection whose request is still under way when the server ends, which loses that request.
And it lets a request's head, trailers and chunk extensions grow without end, before any key is asked: here more
than MAX_HEAD bytes or MAX_FIELDS fields of them are answered with 431, and the connection is closed. So is one
whose client takes too long for a head, a body or its next request (408), or that is one too many (503).
The app also gets what ASGI lacks, in `scope["extensions"]`: `kodolly.abort()` breaks the connection, and
`kodolly.chunk(data)` writes a piece of a body under way in a plain call (decision 0009).
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import orjson
from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from kodolly.errors import (
    ApiError,
    BadRequest,
    OutOfDescriptors,
    RequestTimeout,
    TooManyConnections,
)
from kodolly.http import descriptors
from kodolly.http.bounds import Bounds, ConnectionLimit, Wait

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


class HeadTooLarge(Exception):
    """A head, or what follows a body, has more fields or bytes than it may."""


class HttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`: see `bounded`."""

    reserve = descriptors.Reserve()  # of the whole process
    bounds = Bounds()
    limit = ConnectionLimit(bounds.max_connections)
    _ends = False
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
        self.flow = OpenFlow(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and self.reserve.is_reached(sock.fileno()):
            self._write_and_close(OutOfDescriptors())
        elif self.limit.is_exceeded(len(self.connections)):
            self._write_and_close(TooManyConnections())

    def data_received(self, data: bytes) -> None:
        """Parse what came, in small pieces once its head might become too large."""
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
        cast(dict[str, Any], self.scope)["extensions"] = {
            "kodolly.abort": self.transport.abort,
            "kodolly.chunk": chunk_writer(self.cycle, self.transport),
        }
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


def bounded(bounds: Bounds) -> type[HttpProtocol]:
    """The protocol of one server, whose connections are counted together."""
    limit = ConnectionLimit(bounds.max_connections)
    return type("BoundedHttpProtocol", (HttpProtocol,), {"bounds": bounds, "limit": limit})


class Cycle(RequestResponseCycle):
    """One request with its response. A whole response, which says its length, is written in one piece.

    uvicorn looks at each header several times. For a short response that is half of what it costs.
    """

    _start: HTTPResponseStartEvent | None = None  # of a response that says its length
    _soon: asyncio.Handle | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI. The start of a response that says its length waits for the body, but not for long."""
        start, self._start = self._start, None
        if start is not None:
            assert self._soon is not None
            self._soon.cancel()
            if message["type"] == "http.response.body" and self._write_whole(start, message):
                return
            await super().send(start)
        elif self._may_wait(message):
            self._start = cast(HTTPResponseStartEvent, message)
            self._soon = asyncio.get_running_loop().call_soon(self._send_start)
            return
        await super().send(message)

    def _may_wait(self, message: ASGISendEvent) -> bool:
        if message["type"] != "http.response.start" or self.flow.write_paused:
            return False
        return b"content-length" in dict(message.get("headers", ()))

    def _send_start(self) -> None:
        """At the end of the event loop's turn: the body takes its time, so the head goes alone."""
        start, self._start = self._start, None
        assert start is not None
        with contextlib.suppress(StopIteration):  # it has nothing to wait for
            super().send(start).send(None)

    def _write_whole(self, start: HTTPResponseStartEvent, end: HTTPResponseBodyEvent) -> bool:
        """Write head and body at once. False where uvicorn has to look: nothing is written then."""
        body = end.get("body", b"")
        is_simple = self.keep_alive and not (end.get("more_body") or self.flow.write_paused)
        if not is_simple or self.disconnected or self.scope["method"] == "HEAD":
            return False
        headers = self.default_headers + list(start["headers"])
        if (b"content-length", b"%d" % len(body)) not in headers:
            return False
        head = b"".join([b"%b: %b\r\n" % header for header in headers])
        # A line end in a header would begin another one.
        ends = len(headers)
        if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            return False
        if b"connection:" in head.lower():
            return False
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        if isinstance(self.transport, BufferedHead):
            self.transport.step_aside()
        self.transport.write(b"".join((STATUS_LINE[start["status"]], head, b"\r\n", body)))
        self.message_event.set()
        self.on_response()
        return True


def chunk_writer(
    cycle: RequestResponseCycle, transport: asyncio.Transport
) -> Callable[[bytes], bool]:
    """A function that writes one chunk of a chunked response whose head is out.

    It tells whether it did: if not, the client is slow, gone, or has no head yet, and `send` knows more.
    """
    flow = cycle.flow
    # The cycle holds its scope, and that this function: they would be garbage that refers to itself.
    known = weakref.ref(cycle)

    def write(data: bytes) -> bool:
        cycle = known()
        if cycle is None or cycle.disconnected or cycle.response_complete or flow.write_paused:
            return False
        if cycle.transport is not transport or not cycle.chunked_encoding:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return write


class BufferedHead(asyncio.Transport):
    """A cycle's transport until its first write has gone out: with the second, or by itself at the
    end of the event loop's turn."""

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
        super().__init__()
        self._cycle = cycle
        self._transport = transport
        self._head = b""
        self._soon: asyncio.Handle | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Holds the first bytes back; the next ones take them along."""
        if self._soon is None:
            self._head = bytes(data)
            self._soon = asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._soon.cancel()
            self._cycle.transport = self._transport
            if not self._transport.is_closing():
                self._transport.write(self._head + data)

    def step_aside(self) -> None:
        """The first write is the whole response: it need not wait."""
        self._cycle.transport = self._transport

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection once all is written."""
        if self._soon is not None and not self._soon.cancelled():
            self._soon.cancel()
            self._flush()
        self._transport.close()

    def _flush(self) -> None:
        self._cycle.transport = self._transport
        if not self._transport.is_closing():
            self._transport.write(self._head)
