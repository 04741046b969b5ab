"""What every answer of the web process carries, and the longest question it reads."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT = 8 * 2**20  # bytes of one request: a whole long conversation

# A model can write `![](http://elsewhere/…)` or raw HTML: nothing may be loaded from elsewhere.
# Inline and eval are what Gradio's own page is made of.
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
    """ASGI middleware: the headers above, 413 beyond `limit` bytes, and an end to open streams.

    After `close()` every open request sees its client leave, so that Gradio's endless event
    streams do not hold the process up.
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
        # Browsers always tell a body's length; one without is not ours.
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > self.limit:
            return await PlainTextResponse("too large", 413)(scope, receive, send)
        sent = Sent(send)
        await self.app(scope, partial(self._receive, receive), sent)
        if self._closing.is_set() and sent.open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _receive(self, receive: Receive) -> Message:
        coming = asyncio.ensure_future(receive())
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({coming, closing}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else {"type": "http.disconnect"}
        finally:
            coming.cancel()
            closing.cancel()


class Sent:
    """The way out of one answer: adds the headers and remembers whether the answer has ended."""

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
