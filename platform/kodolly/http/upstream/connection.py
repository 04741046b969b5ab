"""One connection to an engine: a request written, its response parsed by httptools.

A library's client hands every token to a task: the parser fills a reader, which wakes the task, which
writes to the other side. Here a response can be poured into a sink instead, which the event loop calls
with the bytes themselves; reading by `await read()` is there as well. Decision 0009 has the figures.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Protocol, cast

import httptools

# Bytes that may lie unread before the engine is held back.
HIGH_WATER = 64 * 1024
# A response that has said all it had to say has this long (seconds) to end, for the connection to be
# used again.
LINGER = 1.0
# Milliseconds after which a connection ends on which a request of at most so many bytes is not acknowledged.
UNACKNOWLEDGED, SMALL = 5000, 32 * 1024
# Headers of the engine's: more than any sends.
MAX_HEADERS = 64 * 1024
# Of the names of those that mean something here.
LENGTHS = frozenset(map(len, ("content-length", "transfer-encoding", "retry-after")))


class Broken(ConnectionError):
    """The connection broke, or what came over it was no HTTP response."""


class Sink(Protocol):
    """Takes a response's body as it comes. Called by the event loop, so it must not raise."""

    def data(self, chunk: bytes) -> None:
        """The next bytes."""

    def end(self, error: Broken | None) -> None:
        """The response has ended, as it should (None) or not."""


class Connection(asyncio.Protocol):
    """A connection, one exchange after the other. A pool opens it and hears when it is free again.

    `status`, `retry_after`: of the response, once `headers` has returned. `fresh`: nothing was asked over it yet.
    """

    _parser: httptools.HttpResponseParser
    _parts: list[bytes]  # of the body, not handed on yet
    _complete: bool
    _reusable: bool  # once complete: the engine keeps the connection
    _until_close: bool  # no header says how long the body is
    _paused: bool
    _open: bool  # somebody holds it
    _error: Broken | None
    _sink: Sink | None
    _waiter: asyncio.Future[None] | None
    _lingering: asyncio.TimerHandle | None

    def __init__(self, home: Home) -> None:
        self.fresh = True
        self._home = home
        self._mortal = 0
        self._transport: asyncio.Transport | None = None
        self._begin_exchange()

    # -- asked by whoever holds the connection ---------------------------------------------------

    def ask(self, request: bytes) -> None:
        """Writes a whole request. The connection must be free."""
        if not self.fresh:
            self._begin_exchange()
        self.fresh = False
        self._open = True
        assert self._transport is not None
        self._notice_death(UNACKNOWLEDGED if len(request) <= SMALL else 0)
        self._transport.write(request)

    async def headers(self) -> None:
        """Waits for the response's status and headers. Raises Broken."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._next()

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Broken."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            await self._next()
        parts, self._parts = self._parts, []
        self.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pour(self, sink: Sink) -> None:
        """From now on the body goes to `sink`, what has come already first."""
        self._sink = sink
        self.resume()  # what came before may have been too much without a reader
        self._deliver()
        if self._error is not None or self._complete:
            sink.end(self._error)

    def pause(self) -> None:
        """Holds the engine back: no more is read until `resume`."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def release(self, *, said_all: bool = False) -> None:
        """Ends the exchange. An answer that is not over is broken off, which stops the engine.

        `said_all`: the body had its last event, so the response's own end may still be waited for.
        """
        self._sink = None
        self._parts.clear()
        if not self._open:
            return
        self.resume()
        if self._complete and self._reusable:
            self._free()
        elif said_all and not self._complete and self._error is None:
            self._lingering = asyncio.get_running_loop().call_later(LINGER, self.close)
        else:
            self.close()

    @property
    def usable(self) -> bool:
        """Whether a request can be written to it."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Closes it at once, whatever is under way."""
        self._open = False
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._home.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._open:
            self.close()  # nothing was asked: whatever this is, no answer may be read out of it
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"no HTTP response: {error}"))
            self.close()
            return
        if self._parts:
            self._deliver()
        if self._complete:
            self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.lost(self)
        if self._until_close and self.status and exc is None:
            self._complete = True
            self._over()
        elif not self._complete:
            self._fail(Broken(str(exc) if exc else "the connection was closed"))

    # -- called by the parser --------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADERS:
            raise httptools.HttpParserError("headers beyond all bounds")
        if len(name) in LENGTHS:  # most are neither of these three
            name = name.lower()
            if name in (b"content-length", b"transfer-encoding"):
                self._until_close = False
            elif name == b"retry-after":
                self.retry_after = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # what comes before it (100, 103) is not the response
            self.status = status
            self._wake()

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        if self.status:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    # -- inside ------------------------------------------------------------------------------------

    def _begin_exchange(self) -> None:
        self.status = self._header_bytes = 0
        self.retry_after = b""
        self._parser = httptools.HttpResponseParser(self)
        self._parts = []
        self._until_close = True
        self._complete = self._reusable = self._paused = self._open = False
        self._error = self._sink = self._waiter = self._lingering = None

    def _notice_death(self, milliseconds: int) -> None:
        """Has the kernel end the connection if the other side's acknowledges nothing for so long; 0: never.

        A kept one may have died in silence, and what is written to it would wait for minutes. What is
        too large for a stopped engine's buffers waits for the engine, and must not be ended.
        """
        if milliseconds != self._mortal and sys.platform == "linux":
            self._mortal = milliseconds
            assert self._transport is not None
            sock = self._transport.get_extra_info("socket")
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _deliver(self) -> None:
        """Hands the parts on, or counts them where somebody has to come for them."""
        if self._sink is None:
            if self._lingering:
                self._parts.clear()  # nobody wants it any more
                return
            if sum(map(len, self._parts)) > HIGH_WATER:
                self.pause()
            self._wake()
        elif self._parts:
            parts, self._parts = self._parts, []
            self._sink.data(parts[0] if len(parts) == 1 else b"".join(parts))

    def _over(self) -> None:
        if self._lingering:
            self._free() if self._reusable else self.close()
        elif self._sink is not None:
            self._sink.end(None)
        else:
            self._wake()

    def _fail(self, error: Broken) -> None:
        if self._complete or self._error is not None:
            return
        self._error = error
        if self._lingering:
            self._lingering.cancel()
        elif self._sink is not None:
            self._sink.end(error)
        else:
            self._wake()

    def _free(self) -> None:
        self._open = False
        if self._lingering:
            self._lingering.cancel()
            self._lingering = None
        self._home.free(self)

    async def _next(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Home(Protocol):
    """Where a connection goes between two exchanges."""

    def opened(self, connection: Connection) -> None:
        """There is one more."""

    def free(self, connection: Connection) -> None:
        """It can be asked again."""

    def lost(self, connection: Connection) -> None:
        """It is closed."""
