"""What every HTTP face of ours shares: the server, JSON both ways, the token check."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hmac
import logging
import math
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, Protocol, TypeVar

import orjson
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.errors import ApiError, BadRequest, NotJson, TooLarge
from kodolly.http import descriptors
from kodolly.http.bounds import Bounds, load_json
from kodolly.http.protocol import HttpProtocol, bounded
from kodolly.http.tls import scheme
from kodolly.protocol.addresses import base_url

log = logging.getLogger(__name__)

T = TypeVar("T")
Body = TypeVar("Body", bytes, bytearray)

JSON = b"application/json"
LARGE_BODY = 128 * 1024  # bytes of a request that come before it has to wait for its turn
TICK = 0.1  # seconds between two calls of uvicorn's `on_tick`
SWEEP_TICKS = 10  # of them between two looks for late clients
CLIENT_GONE = "the client went before its request was whole"
CLIENT_CLOSED = 499  # nginx's status for a client that has gone; nobody reads it


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


class BodyTurns:
    """Lets few large bodies be read at a time, so that megabytes from many clients do not pile up in memory.

    A client that is slow keeps its turn for a moment only, and goes on without one.
    """

    def __init__(self, at_once: int = 2, seconds: float = 0.5) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, in order of arrival; it ends with the block, or after its seconds."""
        await self._places.acquire()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._places.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, end)
        try:
            yield
        finally:
            timer.cancel()
            end()


async def read_body(
    request: Request, limit: int, turns: BodyTurns | None = None
) -> bytes | bytearray:
    """The request's body; TooLarge beyond `limit` bytes, before the rest is read.

    `turns`: what a body of more than LARGE_BODY bytes has to wait for.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the request body has {declared} bytes; at most {limit} are accepted")
    body, more = await _next_part(request)
    if not more:
        return _bounded(body, limit)
    whole = bytearray(body)
    async with contextlib.AsyncExitStack() as stack:
        while more:
            if turns is not None and len(whole) > LARGE_BODY:
                await stack.enter_async_context(turns.turn())
                turns = None
            body, more = await _next_part(request)
            whole += body
            _bounded(whole, limit)
    return whole


async def _next_part(request: Request) -> tuple[bytes, bool]:
    """The next bytes of a body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _bounded(body: Body, limit: int) -> Body:
    if len(body) > limit:
        raise TooLarge(f"the request body has more than {limit} bytes")
    return body


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object. Raises NotJson, BadRequest or TooLarge."""
    data, _ = await read_sized_object(request, limit)
    return data


async def read_sized_object(
    request: Request, limit: int, turns: BodyTurns | None = None
) -> tuple[dict[str, Any], int]:
    """As `read_object`, with the number of bytes of the body. `turns`: see `read_body`."""
    require_json(request.scope["headers"])
    body = await read_body(request, limit, turns)
    return decode_object(body), len(body)


def decode_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a request's body. Raises BadRequest for anything else."""
    data = load_json(body)
    if not isinstance(data, dict):
        raise BadRequest("the request body must be a JSON object")
    return data


def require_json(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises NotJson for a body that is not declared as JSON.

    A page of any site may send a form or plain text anywhere; JSON only after a preflight.
    """
    kind = next((v for name, v in headers if name == b"content-type"), b"")
    if kind == JSON:
        return
    kind = kind.partition(b";")[0].strip().lower()
    if kind != JSON and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        given = ascii(kind.decode("latin-1")[:100])[1:-1]
        raise NotJson(
            f"The body is declared as {given or 'nothing'}: send it with the header `Content-Type:"
            " application/json` (with curl: -H 'Content-Type: application/json', or --json in place"
            " of -d)."
        )


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


GROUP = "kodolly.group"  # in the scope of a request that was let in by a limited token


class LimitedTokens(Protocol):
    """Tokens beside the guard's own. Each belongs to a group, and opens only `paths`."""

    paths: frozenset[str]

    def of(self, headers: Mapping[bytes, bytes]) -> object | None:
        """The group whose token a request presents; None for any other."""


class TokenGuard:
    """ASGI middleware: 401 for every path but `open_paths` unless the token is presented.

    A request with an Origin header comes from a web page and is refused: no process of ours sends
    one, and a page open in the operator's browser could otherwise register a worker of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        open_paths: frozenset[str],
        limited: LimitedTokens | None = None,
    ) -> None:
        self.app = app
        self.token = token
        self.open_paths = open_paths
        self.limited = limited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"] not in self.open_paths
        if guarded and (refusal := self._refusal(dict(scope["headers"]), scope)) is not None:
            return await refusal(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes], scope: Scope) -> Response | None:
        if b"origin" in headers:
            return JsonResponse({"error": "web pages may not call this"}, status_code=403)
        if self.limited is not None and (group := self.limited.of(headers)) is not None:
            if scope["path"] not in self.limited.paths:
                sentence = "this token registers workers of its group, and may do nothing else"
                return JsonResponse({"error": sentence}, status_code=403)
            scope[GROUP] = group
            return None
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
    _seconds_run = (
        0.0  # counted in steps of SWEEP_TICKS, so a process that stood still blames no client
    )

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
        if counter % SWEEP_TICKS == 0:
            self._seconds_run += SWEEP_TICKS * TICK
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.close_if_late(self._seconds_run)
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
    bounds: Bounds | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serves `app` until SIGTERM or Ctrl-C; open answers then get `drain` seconds.

    Before that it still takes requests for `linger` seconds. With a `listener`, a socket that is
    bound already, host and port are only named in the log. `proxy_headers`: the app asks which
    scheme and client a proxy on this machine tells of. `bounds`: of what strangers may take.
    `tls`: None for plain HTTP.
    """
    descriptors.raise_limit()
    bounds = bounds or Bounds()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http=bounded(bounds),
        ws="none",
        proxy_headers=proxy_headers,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        # `close_if_late` ends idle connections; uvicorn's own timer must only not be sooner.
        timeout_keep_alive=math.ceil(bounds.idle_timeout) + 60,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    server = Server(config)
    server.on_exit, server.on_start, server.linger = on_exit, on_start, linger
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    if listener is None:  # who made it has said so
        log.info("listening on %s", base_url(host, port, scheme(tls)))
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
