"""Applications on real sockets, inside the test's own event loop."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from aiohttp import web
from starlette.types import ASGIApp

from kodolly.http.bounds import Bounds
from kodolly.http.downstream.known_heads import KnownHeads
from kodolly.http.downstream.protocol import bounded


async def stop_accepting(server: asyncio.Server) -> None:
    """Closes a server of asyncio, and no connection that it is about to accept.

    asyncio (3.11) accepts in three steps of its loop. When the server closes between the first and
    the second one, the connection fails an assertion and its socket is never closed.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


class QuickServer(uvicorn.Server):
    """uvicorn's server without its two waits of 0.1 s when it ends, in the same order of steps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            await stop_accepting(server)
        for sock in sockets or []:
            sock.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.005)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@asynccontextmanager
async def no_lifespan(_: object) -> AsyncIterator[None]:
    """For an application with nothing to start or end."""
    yield


@asynccontextmanager
async def serving(
    app: ASGIApp,
    port: int = 0,
    *,
    send_buffer: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Serves `app` on loopback, on a free port unless told; yields its base URL.

    `send_buffer`: bytes that the kernel takes for a client that does not read. `tls`: for https.
    """
    config = uvicorn.Config(
        app,
        http=bounded(Bounds(), KnownHeads()),
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    server = QuickServer(config)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if send_buffer is not None:  # those it accepts have it from the listening one
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(("127.0.0.1", port))
        task = asyncio.create_task(server._serve([sock]))
        while not server.started:
            assert not task.done(), "the application did not start"
            await asyncio.sleep(0.005)
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{sock.getsockname()[1]}"
        finally:  # a socket closed under a running server would break whoever gets its number next
            server.end.set()
            await task


@asynccontextmanager
async def serving_aiohttp(app: web.Application) -> AsyncIterator[str]:
    """Serves an aiohttp application, a stand-in for somebody else's; yields its base URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
