"""uvicorn's HTTP protocol, with a response's head and the first of its body in one write.

uvicorn writes the head by itself: one more system call for every answer, and its reader is woken twice. It also
closes a new connection whose request is still under way when the server ends, which loses that request.
The app also gets what ASGI lacks, in `scope["extensions"]`: `kodolly.abort()` breaks the connection, and
`kodolly.chunk(data)` writes a piece of a body under way in a plain call (decision 0009).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HIGH_WATER = 64 * 1024  # bytes for a client that it has not taken yet
UNASKED = 0.7  # seconds the first request of a connection may still take once the server ends


class OneWriteProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    _ends = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A slow client has room again at a quarter of what is too much: uvloop's own mark is 16 bytes."""
        transport.set_write_buffer_limits(HIGH_WATER, HIGH_WATER // 4)
        super().connection_made(transport)

    def on_headers_complete(self) -> None:
        """A request begins; its response is written to the transport through a `HeldHead`."""
        before = self.cycle
        super().on_headers_complete()
        cast(dict[str, Any], self.scope)["extensions"] = {
            "kodolly.abort": self.transport.abort,
            "kodolly.chunk": chunk_writer(self.cycle, self.transport),
        }
        if self._ends:
            self.cycle.keep_alive = False
        if self.cycle is not before:
            self.cycle.transport = HeldHead(self.cycle, self.transport)

    def shutdown(self) -> None:
        """The server ends. A connection that has asked nothing yet may have its request on the way."""
        if self.cycle is not None:
            return super().shutdown()
        self._ends = True
        self.loop.call_later(UNASKED, self._end_unasked)

    def _end_unasked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


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


class HeldHead(asyncio.Transport):
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
            self._transport.write(self._head + data)

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
