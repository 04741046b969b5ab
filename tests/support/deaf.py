"""A server that takes calls and never answers them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Deaf:
    """Where it listens, and the first line of every call it took; a mere connection is none."""

    url: str = ""
    calls: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def deaf(said: bytes = b"") -> AsyncIterator[Deaf]:
    """Listens on loopback; says `said` to every call and then nothing more, even to one that has hung up."""
    server = Deaf()
    # Held here: a connection that its client has left is otherwise nobody's but the garbage collector's.
    calls: set[asyncio.Task[None] | None] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.add(asyncio.current_task())
        try:
            with contextlib.suppress(asyncio.IncompleteReadError):
                server.calls.append(await reader.readuntil(b"\r\n"))
                writer.write(said)
            await asyncio.Event().wait()
        finally:
            writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield server
        finally:
            for task in calls:
                if task is not None:
                    task.cancel()
            await asyncio.gather(*filter(None, calls), return_exceptions=True)
