"""The shared token in front of an application, and tokens that open a part of it."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.http.server import JsonResponse


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
