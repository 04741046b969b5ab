"""The first check of every request: by which host name, and from which site's page, it comes."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kodolly.errors import ApiError, BadRequest
from kodolly.http.hosts import AllowedHosts
from kodolly.http.origins import AllowedOrigins, only

CHECKED = frozenset({b"host", b"origin", b"sec-fetch-site"})
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED = b"X-Request-Id, Retry-After"  # headers of a response that a page may read
PREFLIGHT_AGE = b"600"  # seconds for which a browser remembers the response to a preflight
HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")


def json_refusal(error: ApiError) -> Response:
    """The refusal in OpenAI's envelope."""
    return JSONResponse(error.envelope(), status_code=error.status)


class SiteGuard:
    """The hosts and origins of one process."""

    def __init__(
        self,
        hosts: AllowedHosts | None = None,
        origins: AllowedOrigins | None = None,
        refusal: Callable[[ApiError], Response] = json_refusal,
    ) -> None:
        """Without `hosts` or `origins`: those that are always allowed. `refusal`: makes a response."""
        self._hosts = hosts or AllowedHosts()
        self._origins = origins or AllowedOrigins()
        self._refusal = refusal

    def admit(self, scope: Scope, send: Send) -> Send | Response:
        """The `send` for the response to a request; a Response if the request ends here.

        It ends here if it is refused, and if it is a preflight of an allowed origin.
        """
        try:
            origin = self.check(scope)
        except ApiError as error:
            return self._refusal(error)
        if origin is None:
            return send
        return _preflight(scope, origin) if _is_preflight(scope) else _with_cors(send, origin)

    def check(self, scope: Scope) -> bytes | None:
        """The allowed foreign origin that a request comes from; None for every other client.

        Raises HostNotAllowed, ForeignOrigin or BadRequest.
        """
        host = origin = site = None
        headers = scope["headers"]
        for name, value in headers:
            if name not in CHECKED:  # one look-up for each of the others
                continue
            if name == b"host":
                only(host, "Host")
                host = value
            elif name == b"origin":
                only(origin, "Origin")
                origin = value
            else:
                site = value
        if host is not None:
            self._hosts.check(host)
        elif scope.get("http_version") != "1.0":  # there it is optional; but browsers send it
            raise BadRequest("The request has no Host header.")
        if origin is None and site is None:
            return None
        return self._origins.check(scope["method"], host or b"", origin, site, headers)


class GuardedApp:
    """ASGI middleware around a whole application: refuses what its `guard` refuses."""

    def __init__(self, app: ASGIApp, guard: SiteGuard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            admitted = self._guard.admit(scope, send)
            if isinstance(admitted, Response):
                return await admitted(scope, receive, send)
            send = admitted
        await self._app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a page may send, before it sends it."""
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def _preflight(scope: Scope, origin: bytes) -> Response:
    """The response to a preflight from an allowed origin: any method, and the headers it names."""
    wanted = dict(scope["headers"]).get(b"access-control-request-headers", b"")
    response = Response(status_code=204)
    response.raw_headers = [
        *_cors_headers(origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", PREFLIGHT_AGE),
    ]
    if wanted and HEADER_NAMES.fullmatch(wanted):
        response.raw_headers.append((b"access-control-allow-headers", wanted))
    return response


def _with_cors(send: Send, origin: bytes) -> Send:
    """A `send` that lets pages of `origin` read the response. No cookies: keys are in headers."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_cors_headers(origin)]}
        await send(message)

    return sending


def _cors_headers(origin: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]
