"""What every HTTP face of ours shares: the server, JSON both ways, the token check."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, TypeVar

import orjson
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope

from kodolly.errors import ApiError
from kodolly.http import descriptors
from kodolly.http.bounds import Bounds
from kodolly.http.downstream.known_heads import KnownHeads
from kodolly.http.downstream.protocol import Disconnection, HttpProtocol, bounded
from kodolly.http.listener import bind
from kodolly.http.tls import scheme
from kodolly.protocol.addresses import base_url

log = logging.getLogger(__name__)

T = TypeVar("T")

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
    known_heads: KnownHeads | None = None,
) -> None:
    """Serves `app` until SIGTERM or Ctrl-C; open answers then get `drain` seconds.

    Before that it still takes requests for `linger` seconds. With a `listener`, a socket that is
    bound already, host and port are only named in the log. `proxy_headers`: the app asks which
    scheme and client a proxy on this machine tells of. `bounds`: of what strangers may take.
    `tls`: None for plain HTTP. `known_heads`: where the app adds some. Raises SettingsError when host or port cannot be had.
    """
    descriptors.raise_limit()
    bounds = bounds or Bounds()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http=bounded(bounds, known_heads),
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
    sockets = [listener] if listener else bind(host, port)
    if listener is None:  # who made it has said so
        log.info("listening on %s", base_url(host, port, scheme(tls)))
    server.run(sockets)


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], scope: Scope) -> T | None:
    """Does `work`, but drops it (None) the moment the client goes: a closed call stops the engine.

    `scope`: of the request. Only our own protocol tells when its client goes.
    """
    disconnection: Disconnection | None = scope.get("extensions", {}).get("kodolly.disconnect")
    if disconnection is None:
        return await work
    working = asyncio.current_task()
    assert working is not None
    gone = False

    def cancel() -> None:
        nonlocal gone
        gone = True
        working.cancel()

    if disconnection.has_happened:
        work.close()
        return None
    disconnection.add(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or working.uncancel() > 0:
            raise
        return None
    finally:
        disconnection.discard(cancel)


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels tasks and waits for their end; their errors are not ours to raise any more."""
    alive = [task for task in tasks if task is not None]
    for task in alive:
        task.cancel()
    await asyncio.gather(*alive, return_exceptions=True)
