"""How responses are written: a whole one in one piece, a stream's head with the first of its body, a token in a plain call.

uvicorn looks at each header of a response several times, and writes head and body apart (decision 0009).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import cast

from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


class Cycle(RequestResponseCycle):
    """One request with its response. A whole response, which says its length, is written in one piece."""

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
        try:
            super().send(start).send(None)
        except StopIteration:  # it had nothing to wait for
            pass
        except RuntimeError:  # for a header that cannot be sent
            self.transport.close()
            raise

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


def json_response(default_headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole 200 with a JSON body. `default_headers`: of every response of this server."""
    head = b"".join([b"%b: %b\r\n" % header for header in default_headers])
    kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return b"".join((STATUS_LINE[200], head, kind, body))


def chunk_writer(
    cycle: RequestResponseCycle, transport: asyncio.Transport
) -> Callable[[bytes], bool]:
    """A function that writes one chunk of a chunked response whose head is out.

    It tells whether it did: if not, the client is slow, gone, or has no head yet, and `send` knows more.
    """
    flow = cycle.flow
    # The cycle holds its scope, and that this function: they would be garbage that refers to itself.
    reference = weakref.ref(cycle)

    def write(data: bytes) -> bool:
        cycle = reference()
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
