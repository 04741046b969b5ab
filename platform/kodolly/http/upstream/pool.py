"""Connections to the engines, kept between requests for as long as the engines keep them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

from kodolly.http import descriptors
from kodolly.http.tls import client_context
from kodolly.http.upstream.connection import Broken, Connection
from kodolly.log_safe import describe_error

# Idle connections are kept this long (seconds). An engine that closes them sooner, as uvicorn's do after 5,
# is seen to; one that does so as we write to it is asked once more over a new one.
KEEPALIVE = 60.0
SWEEP = 5.0
# A header's value or a path as it may stand in a request.
PRINTABLE = re.compile(r"[!-~]*")


class Unreachable(ConnectionError):
    """No connection to the engine: it has not seen the request."""


class NoDescriptor(Unreachable):
    """This process has no file descriptor left for a connection."""


@dataclass(frozen=True)
class Target:
    """Where a URL leads to. `host_header` and `path` are ready for the wire."""

    host: str
    port: int
    secure: bool
    host_header: bytes
    path: bytes


@dataclass
class _Origin:
    """The connections to one engine; the one used last is used first."""

    idle: deque[tuple[float, Connection]] = field(default_factory=deque)
    connections: set[Connection] = field(default_factory=set)  # idle ones and those at work
    attempts: int = 0

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)

    def free(self, connection: Connection) -> None:
        self.idle.append((asyncio.get_running_loop().time(), connection))

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        for entry in self.idle:
            if entry[1] is connection:
                self.idle.remove(entry)
                return

    def drop_old(self, now: float) -> None:
        while self.idle and now - self.idle[0][0] > KEEPALIVE:
            self.idle.popleft()[1].close()


class Pool:
    """Asks engines, over a kept connection where there is one. Lives on one event loop."""

    def __init__(self, connect_timeout: float, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: whom it trusts (default: the machine's authorities)."""
        self._connect_timeout = connect_timeout
        self._origins: dict[tuple[str, int, bool], _Origin] = {}
        self._tls = tls

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Connection:
        """A connection whose response's headers have come. Whoever asked must `release` it.

        A kept connection that the engine closes as we write to it is no failure of the engine's: the
        request goes out once more over a new one. Raises Unreachable or Broken.
        """
        to = target(url)
        request = request_bytes(to, headers, body)
        kept = self._kept(to)
        if kept is None:
            return await self._asked(await self._opened(to), request)
        try:
            return await self._asked(kept, request)
        except Broken as broken:
            try:
                new = await self._opened(to)
            except Unreachable:
                raise broken from None  # it took the request, and is gone: perhaps because of it
            return await self._asked(new, request)

    async def run(self) -> None:
        """Closes what was idle for too long, until cancelled; then all connections."""
        try:
            while True:
                await asyncio.sleep(SWEEP)
                self._drop_old(asyncio.get_running_loop().time())
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        """Closes every connection, and waits for the event loop to have let go of each."""
        closing = [each for origin in self._origins.values() for each in origin.connections]
        for connection in closing:
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while any(origin.connections for origin in self._origins.values()):
                    await asyncio.sleep(0)

    def _drop_old(self, now: float) -> None:
        for key, origin in list(self._origins.items()):
            origin.drop_old(now)
            if not origin.connections and not origin.attempts:
                del self._origins[key]

    async def _asked(self, connection: Connection, request: bytes) -> Connection:
        try:
            connection.ask(request)
            await connection.headers()
        except BaseException:
            connection.close()
            raise
        return connection

    def _kept(self, to: Target) -> Connection | None:
        origin = self._origins.get((to.host, to.port, to.secure))
        if origin is None:
            return None
        origin.drop_old(asyncio.get_running_loop().time())
        while origin.idle:
            connection = origin.idle.pop()[1]
            if connection.usable:
                return connection
        return None

    async def _opened(self, to: Target) -> Connection:
        origin = self._origins.setdefault((to.host, to.port, to.secure), _Origin())
        origin.attempts += 1
        if to.secure and self._tls is None:
            self._tls = client_context()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(origin),
                    to.host,
                    to.port,
                    ssl=self._tls if to.secure else None,
                )
        except TimeoutError:
            raise Unreachable(f"no connection within {self._connect_timeout:g} s") from None
        except OSError as error:  # refused, no such host, a certificate that does not fit
            if descriptors.are_exhausted(error):
                raise NoDescriptor(describe_error(error)) from error
            raise Unreachable(describe_error(error)) from error
        finally:
            origin.attempts -= 1
        return connection


@lru_cache(maxsize=1024)
def target(url: str) -> Target:
    """A URL taken apart. Raises Unreachable for one that cannot be asked."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Unreachable(f"unusable URL: {error}") from error
    host = parts.hostname or ""
    path = parts.path + ("?" + parts.query if parts.query else "")
    if parts.scheme not in ("http", "https") or not host or not PRINTABLE.fullmatch(host + path):
        raise Unreachable("unusable URL")
    secure = parts.scheme == "https"
    usual = 443 if secure else 80
    shown = f"[{host}]" if ":" in host else host
    header = shown if port in (None, usual) else f"{shown}:{port}"
    return Target(host, port or usual, secure, header.encode(), (path or "/").encode())


def request_bytes(to: Target, headers: dict[str, str], body: bytes) -> bytes:
    """A whole POST request with a JSON body. Raises Unreachable for headers nobody may send."""
    lines = [b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (to.path, to.host_header)]
    for name, value in headers.items():
        if not PRINTABLE.fullmatch(value.replace(" ", "")):
            raise Unreachable(f"unusable {name} header")
        lines.append(f"{name}: {value}\r\n".encode())
    lines.append(
        b"Content-Type: application/json\r\nAccept-Encoding: identity\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    lines.append(body)
    return b"".join(lines)
