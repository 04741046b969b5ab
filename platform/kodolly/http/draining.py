"""The end of an API process: not ready first, then no keep-alive, then the answers under way."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSE = (b"connection", b"close")


class Draining:
    """ASGI middleware that ends connections with their next answer once it is told to.

    A client that keeps a connection would otherwise write its next request into a closing one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.begun = False

    def begin(self) -> None:
        """From now on every answer is its connection's last."""
        self.begun = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["draining"] = self.begun
            if self.begun:
                return await self.app(scope, receive, _last(send))
        await self.app(scope, receive, send)


def _last(send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], CLOSE]}
        await send(message)

    return closing
