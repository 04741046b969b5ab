"""Requests of one face, counted by route and logged.

For everything but the paths of tokens, which measure themselves (`observe.requests`).
"""

from __future__ import annotations

import re
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kodolly.observe.access_log import UNKNOWN_PATH, AccessLog
from kodolly.observe.families import Family
from kodolly.observe.histogram import Histogram
from kodolly.observe.requests import CANCELLED, Measurement

METRICS, ENGINE_METRICS = "/metrics", "/engine_metrics"
# Asked for by machines all the time: neither counted nor logged.
QUIET = frozenset({"/health", "/ready", "/test_connection", "/receive_heart_beat"})
QUIET |= {METRICS, ENGINE_METRICS, "/sd/workers", "/sd/engines"}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = (0, 404, 405)  # statuses for which a path may be anything
MAX_ROUTES = 512  # that are told apart: method, route and status
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class HttpMetrics:
    """What one process counts of its HTTP requests."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._durations = Histogram()

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        key = method, route, status
        if key not in self._requests and len(self._requests) >= MAX_ROUTES:
            key = "", "other", 0
        self._requests[key] = self._requests.get(key, 0) + 1
        self._durations.observe(seconds)

    def families(self) -> list[Family]:
        """All counts as they are now."""
        requests = Family(
            "kodolly_http_requests_total",
            "counter",
            "HTTP requests beside those to models, by route and status (0: no answer began).",
        )
        for (method, route, status), number in self._requests.items():
            requests.set(number, method=method, route=route, status=str(status))
        durations = Family(
            "kodolly_http_request_duration_seconds", "histogram", "How long these took."
        )
        self._durations.fill(durations)
        return [requests, durations]


class Observer:
    """Counts and logs the requests of one face. `log`: None where it is switched off."""

    def __init__(self, log: AccessLog | None = None) -> None:
        self.log = log
        self.metrics = HttpMetrics()

    @classmethod
    def of(cls, access_log: bool, log_format: str) -> Observer:
        """By the settings of these names."""
        return cls(AccessLog(log_format) if access_log else None)

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Has `app` answer a request, and takes down how."""
        path = scope["path"]
        if path in QUIET:
            return await app(scope, receive, send)
        measurement, status = Measurement(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, sending)
        except ClientDisconnect:
            raise
        except Exception:
            status = status or 500
            raise
        finally:
            if status == 0:
                measurement.outcome = CANCELLED
            self.note(scope, status, measurement)

    def note(self, scope: Scope, status: int, measurement: Measurement) -> None:
        """Takes down a request that has ended. `status` 0: no answer began."""
        route = template_of(scope, status)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.add(method, route, status, time.perf_counter() - measurement.start)
        if self.log is not None:
            self.log.write(method, route, status, _request_id(scope), measurement)


def template_of(scope: Scope, status: int) -> str:
    """The route that a request came to, such as /v1/models/{model}: what stands in its place is not told."""
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is None and "endpoint" in scope and status not in NO_ROUTE:
        # A plain route of Starlette's, or a file: what is there has no made-up name.
        path = scope["path"] if not scope.get("path_params") else None
    return path.replace(":path}", "}") if path else UNKNOWN_PATH


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            return given if REQUEST_ID.fullmatch(given) else "-"
    return "-"
