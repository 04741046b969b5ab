"""A door before a real engine that slams shut in the middle of an answer.

async with Cutter(engine_url) as cutter:
    cutter.after = 7     # events of the next stream that pass; then its connection drops
"""

import asyncio
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

DROPPED = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class Cutter:
    """Passes every request on; drops the next stream after `after` events, if that is set.

    `cuts` counts the streams it dropped. `freezes`: instead of dropping it passes nothing on any
    more, as a network that swallows packets; `thaw` ends that.
    """

    def __init__(self, target: str) -> None:
        self.after: int | None = None
        self.cuts = 0
        self.freezes = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.url = ""
        self._target = target
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        await self._thawed.wait()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in DROPPED}
        async with self._session.request(
            request.method,
            self._target + request.path_qs,
            data=await request.read(),
            headers=headers,
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            events = 0
            async for chunk in answer.content.iter_any():
                for part in chunk.splitlines(keepends=True):
                    await response.write(part)
                    events += part.startswith(b"data:")
                    if part == b"\n" and events == self.after:
                        self._slam(request)
                        if not self.freezes:
                            return response
                    await self._thawed.wait()
            return response

    def freeze(self) -> None:
        """Nothing passes any more, from now on."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Passes everything on again."""
        self._thawed.set()

    def _slam(self, request: web.Request) -> None:
        self.cuts += 1
        self.after = None
        if self.freezes:
            self._thawed.clear()
        elif request.transport is not None:
            request.transport.abort()
