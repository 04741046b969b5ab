"""FastAPI applications of our own processes: true OpenAPI documents, and our own checks of bodies."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, ClassVar, get_type_hints

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kodolly import __version__
from kodolly.errors import ApiError
from kodolly.http import bodies, server, token_guard
from kodolly.http.metrics import Families, OperatorDoor, metrics_endpoint
from kodolly.http.server import JsonResponse
from kodolly.http.site_guard import SiteGuard
from kodolly.observe.families import Family
from kodolly.observe.observer import METRICS, QUIET, Observer
from kodolly.protocol.wire import parse

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class ErrorDetail(BaseModel):
    """What is wrong with a request, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response with a 4xx status. For a refused token it is only a text."""

    error: ErrorDetail | str


class JsonRoute(APIRoute):
    """A route whose body is read and checked here, not by FastAPI.

    FastAPI makes the OpenAPI document from the endpoint's annotations. A body has at most `max_body`
    bytes and is declared as JSON, as FastChat's own clients do. A wrong one is a 4xx with our error
    body. Endpoints are coroutine functions; a parameter is a pydantic model or a dict (the
    body), or the Request itself. They return a Response, or a value for a JSON response.
    """

    max_body: ClassVar[int] = 2**20

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for the function that turns a request into a response."""
        endpoint = self.endpoint
        kinds = {n: kind for n, kind in get_type_hints(endpoint).items() if n != "return"}

        async def handle(request: Request) -> Response:
            arguments = {name: await self._argument(kind, request) for name, kind in kinds.items()}
            result = await endpoint(**arguments)
            if isinstance(result, Response):
                return result
            return JsonResponse(
                result.model_dump(mode="json") if isinstance(result, BaseModel) else result
            )

        return handle

    async def _argument(self, kind: Any, request: Request) -> Any:
        if kind is Request:
            return request
        data = await bodies.read_object(request, self.max_body)
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
        return parse(kind, data) if is_model else data


class DirectApp(FastAPI):
    """A FastAPI application that serves some endpoints before FastAPI is asked.

    Those are for heartbeats and tokens: FastAPI's own way costs several times as much. It has no
    pages of its own (/docs would load from another host), and sends no telemetry.
    Before all else its guard sees each request. What is not served directly is counted and logged.
    """

    def __init__(
        self, guard: SiteGuard | None = None, observer: Observer | None = None, **options: Any
    ) -> None:
        """`observer`: takes down each request. `options`: of FastAPI's."""
        super().__init__(
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,  # the scheme of a redirect behind a proxy would be a guess
            telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
            **options,
        )
        self._guard = guard or SiteGuard()
        self.observer = observer or Observer()
        self._direct: dict[tuple[str, str], ASGIApp] = {}

    def add_direct_route(self, method: str, path: str, endpoint: ASGIApp) -> None:
        """Gives `method` on exactly this path to an endpoint that handles its own errors.

        It measures and logs its requests itself, if they are worth it.
        """
        self._direct[method, path] = endpoint

    def serve_metrics(self, families: Families, door: OperatorDoor) -> None:
        """Serves /metrics to whom `door` lets in. `families`: beside those of HTTP requests."""

        async def all_families() -> list[Family]:
            return [*await families(), *self.observer.metrics.families()]

        self.add_direct_route("GET", METRICS, metrics_endpoint(all_families, door))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            admitted = self._guard.admit(scope, send)
            if isinstance(admitted, Response):
                return await self.observer(admitted, scope, receive, send)
            send = admitted
            endpoint = self._direct.get((scope["method"], scope["path"]))
            try:
                if endpoint is not None:
                    return await endpoint(scope, receive, send)
                return await self.observer(super().__call__, scope, receive, send)
            except ClientDisconnect:  # uvicorn would log it as a failure of ours
                return log.debug("%s: %s", scope["path"], server.CLIENT_GONE)
        await super().__call__(scope, receive, send)


class JsonApp(DirectApp):
    """An application behind the token whose document is at /openapi.json."""

    def __init__(
        self,
        title: str,
        description: str,
        *,
        route_class: type[JsonRoute],
        lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
        token: str | None,
        open_paths: frozenset[str] = frozenset(),
        guard: SiteGuard | None = None,
        observer: Observer | None = None,
        limited: token_guard.LimitedTokens | None = None,
    ) -> None:
        """`token`, `open_paths`, `limited`: as for `TokenGuard`."""
        super().__init__(
            guard,
            observer,
            title=title,
            description=description,
            lifespan=lifespan,
            responses={"4XX": {"model": ErrorResponse, "description": "The request is refused."}},
            exception_handlers={ApiError: server.error_response, HTTPException: _plain_error},
        )
        self.router.route_class = route_class
        self._token_guard = partial(
            token_guard.TokenGuard, token=token, open_paths=open_paths, limited=limited
        )
        self.add_middleware(self._token_guard)

    def serve_directly(self, *paths: str) -> None:
        """Serves these POST routes before FastAPI. Raises KeyError for an unknown path."""
        routes = {
            route.path: route
            for route in self.routes
            if isinstance(route, JsonRoute) and "POST" in (route.methods or ())
        }
        for path in paths:
            endpoint = _direct_endpoint(routes[path].get_route_handler())
            guarded = self._token_guard(endpoint)
            quiet = path in QUIET  # heartbeats are not taken down, and should cost no step for that
            endpoint = guarded if quiet else _Observed(guarded, path, self.observer)
            self.add_direct_route("POST", path, endpoint)


class _Observed:
    """An endpoint served directly whose requests are taken down as those of FastAPI's routes are."""

    def __init__(self, endpoint: ASGIApp, path: str, observer: Observer) -> None:
        self.path = path
        self._endpoint = endpoint
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await self._observer(self._endpoint, scope, receive, send)


def _direct_endpoint(handler: Handler) -> ASGIApp:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except ApiError as error:
            response = await server.error_response(request, error)
        await response(scope, receive, send)

    return endpoint


def add_routes(
    app: FastAPI, method: str, endpoints: Iterable[Callable[..., Any]], **options: Any
) -> None:
    """Serves each endpoint at `/` and its own name. `options`: of FastAPI's `add_api_route`."""
    for endpoint in endpoints:
        path, name = f"/{endpoint.__name__}", endpoint.__name__
        if method == "GET":  # HEAD too, which the document does not list
            app.add_api_route(
                path, endpoint, methods=["GET", "HEAD"], include_in_schema=False, **options
            )
        app.add_api_route(path, endpoint, methods=[method], operation_id=name, **options)


async def _plain_error(_: Request, error: Exception) -> Response:
    """A path that does not exist, or a wrong method: plain text, as Starlette answers."""
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, status_code=error.status_code, headers=error.headers)
