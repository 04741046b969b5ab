"""uvicorn's HTTP protocol, with a response's head and the first of its body in one write.

uvicorn writes the head by itself: one more system call for every answer, and its reader is woken twice.
The app also gets what ASGI lacks: `scope["extensions"]["kodolly.abort"]()` breaks the connection.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class OneWriteProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    def on_headers_complete(self) -> None:
        """A request begins; its response is written to the transport through a `HeldHead`."""
        before = self.cycle
        super().on_headers_complete()
        self.scope["extensions"] = {"kodolly.abort": self.transport.abort}  # type: ignore[dict-item]
        if self.cycle is not before:
            self.cycle.transport = HeldHead(self.cycle, self.transport)


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
