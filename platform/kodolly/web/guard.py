"""Security headers for every response of the web process, and a limit for request bodies."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kodolly.http.server import CLIENT_GONE

log = logging.getLogger(__name__)

BODY_LIMIT = 8 * 2**20  # bytes of one request, which holds a whole conversation

# A model can write `![](http://elsewhere/…)` or raw HTML, so nothing may be loaded from other hosts.
# Gradio's own page needs inline scripts and eval.
POLICY = (
    "default-src 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; "
    "font-src 'self' data:; "
    "connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; "
    "object-src 'none'; "
    "base-uri 'self'; "
    "form-action 'self'; "
    "frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware: adds the headers, refuses bodies over `limit` bytes, and can end streams.

    Gradio keeps event streams open without end, which would delay the end of this process. After
    `close()` the application sees a disconnect on every open request.
    """

    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT) -> None:
        self.app = app
        self.limit = limit
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        # Browsers always send the length of a body, so a request without one is not from our page.
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > self.limit:
            return await PlainTextResponse("too large", 413)(scope, receive, send)
        tracker = ResponseTracker(send)
        try:
            await self.app(scope, partial(self._receive, receive), tracker)
        except ClientDisconnect:  # uvicorn would log it as a failure of ours
            return log.debug("%s: %s", scope["path"], CLIENT_GONE)
        if self._closing.is_set() and tracker.open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _receive(self, receive: Receive) -> Message:
        message = asyncio.ensure_future(receive())
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({message, closing}, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else {"type": "http.disconnect"}
        finally:
            message.cancel()
            closing.cancel()


class ResponseTracker:
    """The `send` of one response: adds the headers and notes whether the response is still open."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.open = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.open = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        elif message["type"] == "http.response.body":
            self.open = bool(message.get("more_body"))
        await self._send(message)
