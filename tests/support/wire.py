"""Our HTTP protocol on a transport that is no socket: what is written is kept, write by write."""

import asyncio
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from kodolly.http.downstream.protocol import HttpProtocol

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


class Wire:
    """A transport that keeps each write by itself."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False
        self.aborted = False
        self.waiting = 0  # bytes that the client has not taken yet

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _: str) -> None:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...


def connected(
    app: ASGIApp, kind: type[HttpProtocol] = HttpProtocol, state: ServerState | None = None
) -> tuple[HttpProtocol, Wire]:
    """A connection to `app`. Those with the same `state` are of the same server."""
    config = uvicorn.Config(app, log_config=None, server_header=False, date_header=False)
    config.load()
    wire = Wire()
    protocol = kind(config, state or ServerState(), {}, asyncio.get_running_loop())
    protocol.connection_made(cast(asyncio.Transport, wire))
    return protocol, wire


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
