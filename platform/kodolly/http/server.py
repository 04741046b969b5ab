"""What every HTTP face of ours shares: the server, JSON both ways, the token check."""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, TypeVar

import orjson
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.errors import ApiError, BadRequest, TooLarge
from kodolly.http import descriptors
from kodolly.http.protocol import HttpProtocol
from kodolly.protocol.addresses import base_url

log = logging.getLogger(__name__)

T = TypeVar("T")


class JsonResponse(Response):
    """A JSON answer, encoded by orjson: UTF-8, never escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def error_response(_: Request, error: Exception) -> Response:
    """An ApiError as OpenAI's envelope with its status and headers."""
    if not isinstance(error, ApiError):
        raise error
    return JsonResponse(error.envelope(), status_code=error.status, headers=error.headers)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body; TooLarge beyond `limit` bytes, before the rest is read."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the request body has {declared} bytes; at most {limit} are accepted")
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(f"the request body has more than {limit} bytes")
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object. Raises BadRequest or TooLarge."""
    return decode_object(await read_body(request, limit))


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. Raises BadRequest for anything else."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequest("the request body must be a JSON object")
    return data


def presented_token(authorization: str) -> str:
    """The secret in an Authorization header: a Bearer token, or the password of Basic.

    Basic is what a FastChat worker sends for http://name:TOKEN@controller:21001.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except ValueError:  # no base64, or no UTF-8 in it
            return ""
    return ""


def same_secret(given: str, wanted: str) -> bool:
    """Constant-time comparison of two secrets of any characters."""
    return hmac.compare_digest(given.encode(), wanted.encode())


class TokenGuard:
    """ASGI middleware: 401 for every path but `open_paths` unless the token is presented.

    A request with an Origin header comes from a web page and is refused: no process of ours sends
    one, and a page open in the operator's browser could otherwise register a worker of its own.
    """

    def __init__(self, app: ASGIApp, token: str | None, open_paths: frozenset[str]) -> None:
        self.app = app
        self.token = token
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"] not in self.open_paths
        if guarded and (refusal := self._refusal(dict(scope["headers"]))) is not None:
            return await refusal(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> Response | None:
        if b"origin" in headers:
            return JsonResponse({"error": "web pages may not call this"}, status_code=403)
        given = presented_token(headers.get(b"authorization", b"").decode("latin-1"))
        if self.token is not None and not (self.token and same_secret(given, self.token)):
            return JsonResponse({"error": "missing or wrong token"}, status_code=401)
        return None


class Server(uvicorn.Server):
    """uvicorn's server that tells `on_exit` of SIGTERM or SIGINT before it stops listening.

    It goes on listening for `linger` seconds, in which balancers hear that it is not ready; a
    second signal ends that. Once it listens one of the two is called: `on_start`, or `on_exit` if
    it was told to end by then.
    """

    on_exit: Callable[[], None] | None = None
    on_start: Callable[[], None] | None = None
    linger = 0.0
    _leaves_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What exists by now stays: no collection need look at it, in the middle of an answer.
        gc.collect()
        gc.freeze()
        told = self.on_exit if self.should_exit else self.on_start
        if self.started and told is not None:
            told()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        # uvicorn's own takes them later, so that one sent in between is lost, and raises the one
        # that ended it once more, which makes a failure of an order that was carried out.
        return nullcontext()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started and self.on_exit is not None:
            self.on_exit()
        if self.started and self.linger and self._leaves_at is None:
            self._leaves_at = time.monotonic() + self.linger
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        leaves = self._leaves_at is not None and time.monotonic() >= self._leaves_at
        return await super().on_tick(counter) or leaves


def run(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    on_exit: Callable[[], None] | None = None,
    on_start: Callable[[], None] | None = None,
    linger: float = 0.0,
    drain: float = 5.0,
    listener: socket.socket | None = None,
    proxy_headers: bool = False,
) -> None:
    """Serves `app` until SIGTERM or Ctrl-C; open answers then get `drain` seconds.

    Before that it still takes requests for `linger` seconds. With a `listener`, a socket that is
    bound already, host and port are only named in the log. `proxy_headers`: the app asks which
    scheme and client a proxy on this machine tells of.
    """
    descriptors.raise_limit()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http=HttpProtocol,
        ws="none",
        proxy_headers=proxy_headers,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=75,
    )
    server = Server(config)
    server.on_exit, server.on_start, server.linger = on_exit, on_start, linger
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    if listener is None:  # who made it has said so
        log.info("listening on %s", base_url(host, port))
    server.run([listener] if listener else None)


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """Does `work`, but drops it (None) the moment the client goes: a closed call stops the engine."""
    working = asyncio.current_task()
    assert working is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        await until_disconnect(receive)
        gone = True
        working.cancel()

    watching: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal watching
        watching = asyncio.create_task(watch())

    # The work stays in this task, and its first step goes before all else: it asks an engine.
    soon = asyncio.get_running_loop().call_soon(begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or working.uncancel() > 0:
            raise
        return None
    finally:
        soon.cancel()
        if watching is not None:
            watching.cancel()


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels tasks and waits for their end; their errors are not ours to raise any more."""
    alive = [task for task in tasks if task is not None]
    for task in alive:
        task.cancel()
    await asyncio.gather(*alive, return_exceptions=True)
