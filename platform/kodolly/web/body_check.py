"""JSON that the page's own code cannot have sent is refused before Gradio fails on it.

What Gradio fails on all the same is logged in one line, and not more often than now and then.
"""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kodolly.errors import ApiError, BadRequest
from kodolly.http.bounds import load_json
from kodolly.http.server import JsonResponse
from kodolly.log_safe import describe_error
from kodolly.logs import Seldom

log = logging.getLogger(__name__)

API = "/gradio_api/"
MISFIT = "The page's server cannot use this request."


def shorten_tracebacks() -> None:
    """Has Gradio log a line where it prints a traceback, which anybody's odd call may cause."""
    from gradio import queueing, routes

    if not log.filters:
        log.addFilter(Seldom())
    for module in (queueing, routes):
        setattr(module, "traceback", SimpleNamespace(print_exc=_log_failure))  # noqa: B010


def _log_failure() -> None:
    if (error := sys.exc_info()[1]) is not None:
        log.warning("a call to the page failed: %s", describe_error(error))


class BodyCheck:
    """ASGI middleware for POSTs to Gradio's API, whose bodies somebody else has bounded.

    One that is no JSON, or is nested too deeply, is a 400. So is one that Gradio fails on with a 500: it only
    queues the work that such a request asks for, so the failure is the request's own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST" or API not in scope["path"]:
            return await self.app(scope, receive, send)
        kind = dict(scope["headers"]).get(b"content-type", b"")
        if not kind.startswith(b"multipart/"):
            try:
                body = await Request(scope, receive).body()
                if body:
                    load_json(body)
            except ClientDisconnect:
                return
            except BadRequest as error:
                return await _refusal(error)(scope, receive, send)
            receive = _again(body, receive)
        watch = _Responses(send)
        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if not watch.failed:
                raise
            log.warning("a request to %s failed: %s", scope["path"], describe_error(error))
        if watch.failed:
            await _refusal(BadRequest(MISFIT))(scope, receive, send)


class _Responses:
    """The `send` of one response, which keeps one with status 500 to itself."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.failed = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self.failed = True
        if not self.failed:
            await self._send(message)


def _refusal(error: ApiError) -> Response:
    return JsonResponse(error.envelope(), status_code=error.status)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole body first, then what the client does next."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again
