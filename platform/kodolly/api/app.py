"""The OpenAI-compatible application of one API process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from kodolly.api import document, prefork
from kodolly.api.admission.admission import Admission
from kodolly.api.auth import KeyRing
from kodolly.api.completions import Completions, EndpointServices, request_id_of
from kodolly.api.engine_io.calls import EngineCalls, EngineTimeouts
from kodolly.api.engine_io.stall_watch import StallWatch
from kodolly.api.fastchat_worker.relay import FastChatRelay
from kodolly.api.messages.count import CountTokens
from kodolly.api.messages.document import add_messages
from kodolly.api.messages.endpoint import Messages
from kodolly.api.metrics import ApiMetrics
from kodolly.api.models import Models
from kodolly.api.pings import Pings
from kodolly.api.reference import near_paths, page
from kodolly.api.relay.relay import Relay
from kodolly.api.relay.retry import RetryBudget
from kodolly.api.request import DETOKENIZE, EMBEDDINGS, TOKENIZE
from kodolly.api.responses.routes import add_responses
from kodolly.api.responses.stored.runs import Runs
from kodolly.api.routing.follower import Follower
from kodolly.api.routing.router import Router
from kodolly.api.routing.table import WorkerTable
from kodolly.api.runner import CompletionRunner
from kodolly.api.textless import Kind, TextlessCall, VersionEndpoint
from kodolly.errors import ApiError, BadRequest
from kodolly.http import bodies, server
from kodolly.http.client import new_client
from kodolly.http.draining import Draining
from kodolly.http.fastapi_app import DirectApp
from kodolly.http.hosts import AllowedHosts
from kodolly.http.metrics import OperatorDoor, metrics_endpoint
from kodolly.http.origins import AllowedOrigins
from kodolly.http.site_guard import SiteGuard
from kodolly.http.tls import client_context, server_context
from kodolly.http.upstream import Pool
from kodolly.observe.hub import Link
from kodolly.observe.observer import METRICS, Observer
from kodolly.protocol.embeddings import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from kodolly.protocol.openai import ChatRequest, CompletionRequest
from kodolly.settings import ApiSettings

if TYPE_CHECKING:
    from kodolly.api.batches.runner import BatchRunner
    from kodolly.store.store import Store

FIRST_TABLE = 2.0  # seconds that the start waits for the controller's first table
PATHS: dict[str, type[ChatRequest | CompletionRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}
TEXTLESS_PATHS: dict[str, Kind] = {
    EMBEDDINGS: EmbeddingRequest,
    TOKENIZE: TokenizeRequest,
    DETOKENIZE: DetokenizeRequest,
}


class ApiApp(DirectApp):
    """The API's application: errors in OpenAI's envelope, and a document for those with a key."""

    def __init__(
        self, guard: SiteGuard | None = None, observer: Observer | None = None, **options: Any
    ) -> None:
        """`options`: of FastAPI's."""
        super().__init__(
            guard,
            observer,
            title="KoDolly",
            description=document.DESCRIPTION,
            openapi_url=None,  # `document` serves it
            generate_unique_id_function=lambda route: route.name,
            exception_handlers={
                ApiError: server.error_response,
                HTTPException: _http_error,
                RequestValidationError: _validation_error,
                Exception: _crash,
            },
            **options,
        )

    def add_get(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """GET on `path`, and HEAD, which the OpenAPI document does not list."""
        self.add_api_route(path, endpoint, **options)
        self.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, **options)


def create_app(settings: ApiSettings, store: Store | None = None) -> ApiApp:
    """The ASGI application. Raises SettingsError for unusable keys, controllers, hosts or origins.

    `store`: not open yet; None: nothing is stored.
    """
    keys, token = KeyRing(settings.keys()), settings.secret()
    tls = client_context(settings.tls_ca)
    table, client, pool = WorkerTable(), new_client(tls), Pool(settings.connect_timeout, tls)
    follower = Follower(table, settings.controllers(), token, client)
    watch = StallWatch(table, client)
    timeouts = EngineTimeouts(settings.read_timeout, settings.answer_timeout)
    admission = Admission(
        table,
        worker_limit=settings.worker_limit,
        queue_size=settings.queue_size,
        queue_timeout=settings.queue_timeout,
    )
    pings, observer = (
        Pings(settings.ping_interval),
        Observer.of(settings.access_log, settings.log_format),
    )
    runner = CompletionRunner(
        admission=admission,
        table=table,
        router=Router(table, settings.routing),
        retry_budget=RetryBudget(admission.running),
        relay=Relay(EngineCalls(pool, watch, timeouts)),
        fastchat_relay=FastChatRelay(client, pool, token, settings.read_timeout),
        pings=pings,
    )
    services = EndpointServices(
        keys=keys,
        runner=runner,
        max_body=settings.max_body,
        client_timeout=settings.client_timeout,
        body_turns=bodies.BodyTurns(),
        observer=observer,
    )
    metrics = ApiMetrics(runner.metrics, observer.metrics, admission, watch, follower, table, store)
    link = Link(metrics.families)

    runs = None if store is None else Runs(store, runner)
    batches = None if store is None else new_batches(settings, store, runner)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = (
            follower.run(),
            watch.run(),
            pool.run(),
            pings.run(),
            link.run(),
            prefork.end_with_parent(),
        )
        opened = contextlib.nullcontext() if store is None else store
        made = contextlib.nullcontext() if runs is None else contextlib.aclosing(runs)
        batched = contextlib.nullcontext() if batches is None else contextlib.aclosing(batches)
        async with client, opened, made, batched, running_in_background(*work):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(table.loaded.wait(), FIRST_TABLE)
            yield

    guard = SiteGuard(
        AllowedHosts(settings.allowed_hosts, settings.host),
        AllowedOrigins(settings.allowed_origins),
    )
    app = ApiApp(guard, observer, lifespan=lifespan)
    app.state.table, app.state.admission = table, admission
    app.state.runner, app.state.store = runner, store
    for path, kind in PATHS.items():
        app.add_direct_route("POST", path, Completions(kind, path, services))
    for textless, model in TEXTLESS_PATHS.items():
        app.add_direct_route("POST", textless, TextlessCall(model, textless, services))
    app.add_direct_route("POST", "/v1/messages", Messages(services))
    app.add_direct_route("POST", "/v1/messages/count_tokens", CountTokens(services))
    app.add_direct_route("GET", "/health", PlainTextResponse("ok"))
    door = OperatorDoor(settings.metrics_secrets())
    app.add_direct_route("GET", METRICS, metrics_endpoint(link.families, door))
    document.add_document(app, keys)
    document.add_completions(app)
    document.add_textless(app)
    add_responses(app, services, runs)
    if batches is not None:
        serve_batches(app, keys, batches, settings)
    add_messages(app)
    page.add_page(app, keys)
    models, with_key = Models(table, keys), [Security(document.bearer)]
    app.add_get("/v1/models", models.list_models, dependencies=with_key, responses=document.ERRORS)
    app.add_get(
        "/v1/models/{model:path}",
        models.retrieve_model,
        dependencies=with_key,
        responses=document.ERRORS,
    )
    version = VersionEndpoint(keys).version
    app.add_get("/version", version, dependencies=with_key, responses=document.ERRORS)
    app.add_get("/health", health, response_class=PlainTextResponse)
    app.add_get("/ready", ready, response_class=PlainTextResponse, responses=document.NOT_READY)
    return app


@contextlib.asynccontextmanager
async def running_in_background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs each in a task of its own, and cancels them at the end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        await server.cancel_and_wait(*tasks)


async def health() -> Response:
    """200 as long as the process answers."""
    return PlainTextResponse("ok")


async def ready(request: Request) -> Response:
    """200 once a model has a ready worker, until the process begins to end."""
    if request.scope.get("state", {}).get("draining"):
        return PlainTextResponse("draining", 503)
    models = request.app.state.table.models()
    return PlainTextResponse(", ".join(models) or "no worker", 200 if models else 503)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of unknown paths, in OpenAI's envelope too, with what was probably meant."""
    path, routes = request.url.path, request.app.routes
    refusal = BadRequest(near_paths.hint(routes, request.method, path))
    response = await server.error_response(request, refusal)
    assert isinstance(error, HTTPException)
    response.status_code = error.status_code
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(near_paths.methods_of(routes, path))
    return response


async def _validation_error(request: Request, error: Exception) -> Response:
    """A value of the wrong kind, which FastAPI would answer with 422 and a body of its own."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"][1:])
    return await server.error_response(
        request, BadRequest(f"{field}: {fault['msg']}", param=field or None)
    )


async def _crash(request: Request, _: Exception) -> Response:
    """Our own fault: the server logs it, and the client gets no details."""
    response = await server.error_response(request, ApiError("Internal error."))
    response.headers["X-Request-Id"] = request_id_of(request)
    return response


def new_batches(settings: ApiSettings, store: Store, runner: CompletionRunner) -> BatchRunner:
    """What runs the batches of this process. Imports SQLAlchemy, as the store does."""
    from kodolly.api.batches.runner import BatchRunner
    from kodolly.api.batches.targets import batch_targets

    targets = batch_targets(runner, store)
    return BatchRunner(store, targets, runner.admission, runner.table, settings.max_body)


def serve_batches(app: ApiApp, keys: KeyRing, batches: BatchRunner, settings: ApiSettings) -> None:
    """Adds /v1/files and /v1/batches."""
    from kodolly.api.batches.endpoints import add_batches

    add_batches(app, keys, batches, max_body=settings.max_body, max_file=settings.max_file)


def new_store(settings: ApiSettings) -> Store | None:
    """The store that the settings name, not open yet. Without one SQLAlchemy is not imported."""
    url = settings.store_url()
    if url is None:
        return None
    from kodolly.store.store import Store

    return Store(url, ttl=settings.store_ttl, owner_bytes=settings.store_owner_bytes)


def run(settings: ApiSettings, listener: socket.socket) -> None:
    """Serve on `listener` until SIGTERM or Ctrl-C; open answers are finished first."""
    app = Draining(create_app(settings, new_store(settings)))
    server.run(
        app,
        settings.host,
        settings.port,
        on_start=prefork.report_started,
        on_exit=app.begin,
        linger=settings.drain_delay,
        drain=settings.drain_timeout,
        bounds=settings.bounds(),
        listener=listener,
        tls=server_context(settings.tls_cert, settings.tls_key),
    )
