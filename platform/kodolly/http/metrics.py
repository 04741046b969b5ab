"""`/metrics` of every process, and who may see it."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly.http.server import JsonResponse
from kodolly.http.token_guard import presented_token, same_secret
from kodolly.observe.families import CONTENT_TYPE, Family, text
from kodolly.observe.observer import METRICS, Observer

Families = Callable[[], Awaitable[list[Family]]]


class OperatorDoor:
    """Lets in who presents one of `secrets`. Where there are none: who is on this machine."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets = tuple(secrets)

    def refusal(self, scope: Scope) -> Response | None:
        """The response to somebody who is not let in; None for the others."""
        if not self._secrets:
            if is_local(scope.get("client")):
                return None
            sentence = "only from this machine, unless --metrics-token is set and presented"
            return JsonResponse({"error": sentence}, status_code=403)
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        given = presented_token(authorization)
        # Every secret is compared, whichever matches, so that time tells nothing.
        matches = [same_secret(given, secret) for secret in self._secrets]
        if any(matches):
            return None
        headers = {"WWW-Authenticate": "Bearer"}
        return JsonResponse({"error": "missing or wrong token"}, status_code=401, headers=headers)


class OperatorEndpoint:
    """A GET for operators as an ASGI application."""

    def __init__(self, door: OperatorDoor, answer: Callable[[], Awaitable[Response]]) -> None:
        self._door = door
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        response = self._door.refusal(scope) or await self._answer()
        await response(scope, receive, send)


def metrics_endpoint(families: Families, door: OperatorDoor) -> OperatorEndpoint:
    """`/metrics` in Prometheus' text format. `families`: asked for at each scrape."""

    async def answer() -> Response:
        return Response(text(await families()), media_type=CONTENT_TYPE)

    return OperatorEndpoint(door, answer)


class ObservedApp:
    """ASGI middleware: counts and logs the requests of an application that is not ours."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        await self._observer(self._app, scope, receive, send)


class WithMetrics:
    """ASGI middleware: `endpoint` serves /metrics, and the application everything else."""

    def __init__(self, app: ASGIApp, endpoint: ASGIApp) -> None:
        self._app = app
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        is_metrics = scope["type"] == "http" and scope["path"] == METRICS
        app = self._endpoint if is_metrics and scope["method"] == "GET" else self._app
        await app(scope, receive, send)


def is_local(client: Any) -> bool:
    """Whether a connection comes from this machine. `client`: of an ASGI scope."""
    try:
        return ipaddress.ip_address(client[0].partition("%")[0]).is_loopback
    except (TypeError, ValueError, IndexError, AttributeError):
        return False
