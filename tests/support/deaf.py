"""A server that takes requests and never answers them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from support.apps import stop_accepting


@dataclass(slots=True)
class Deaf:
    """Where it listens, and the first line of every request; a mere connection is none."""

    url: str = ""
    calls: list[bytes] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Deaf, said: bytes) -> None:
        self._server = server
        self._said = said
        self._head = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        is_first = b"\r\n" not in self._head
        self._head += data
        line, end, _ = self._head.partition(b"\r\n")
        if is_first and end and self.transport is not None:
            self._server.calls.append(line + end)
            self.transport.write(self._said)

    def eof_received(self) -> bool:
        return True  # a client that has hung up is kept, too


@asynccontextmanager
async def deaf(said: bytes = b"") -> AsyncIterator[Deaf]:
    """Listens on loopback; answers every request with `said` and then nothing, even to a client that left."""
    server = Deaf()
    connections: list[_Connection] = []

    def accept() -> _Connection:
        connections.append(_Connection(server, said))
        return connections[-1]

    listening = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        await stop_accepting(listening)
        for connection in connections:
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # the sockets close in the loop's next step
