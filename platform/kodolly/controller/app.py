"""The controller's HTTP endpoints: FastChat's protocol, plus drain, deregister and the watch stream.

`kodolly controller --host 127.0.0.1 --port 21001`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import httpx
import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.feed import Feed
from kodolly.controller.groups import Group, Groups, read_groups
from kodolly.controller.heartbeat import HeartbeatEndpoint
from kodolly.controller.metrics import controller_families, targets
from kodolly.controller.probe import Prober
from kodolly.controller.registry import Registry
from kodolly.controller.relay import StreamRelay
from kodolly.errors import BadRequest
from kodolly.http import bodies, server, token_guard
from kodolly.http.client import CALL_ERRORS, describe_call_error, new_client, request_bounded
from kodolly.http.downstream.known_heads import KnownHeads
from kodolly.http.fastapi_app import JsonApp, JsonRoute, add_routes
from kodolly.http.hosts import AllowedHosts
from kodolly.http.metrics import OperatorDoor, OperatorEndpoint
from kodolly.http.server import JsonResponse
from kodolly.http.site_guard import SiteGuard
from kodolly.http.tls import client_context, server_context
from kodolly.observe.families import Family
from kodolly.observe.observer import Observer
from kodolly.protocol.wire import (
    HeartbeatRequest,
    Load,
    ModelNames,
    ModelQuery,
    Registration,
    Snapshot,
    WorkerAddress,
    WorkerExists,
    WorkerQuery,
    WorkerStatus,
    parse,
)
from kodolly.settings import ControllerSettings, load, require_token

log = logging.getLogger(__name__)

MAX_PROMPT_BODY = 16 * 2**20  # bytes; a body with a whole prompt. Others have JsonRoute.max_body
# Fields that /workers does not show, in pydantic's form for `exclude`.
SECRETS = {"workers": {"__all__": {"kodolly": {"engine_key"}}}}


@dataclass(frozen=True)
class ControllerTimes:
    """The controller's waits, in seconds."""

    status_timeout: float = 5.0  # for a worker's status, the whole call
    sweep_interval: float = 0.25
    probe_interval: float = 2.0
    probe_connect_timeout: float = 1.5


class Controller:
    """The endpoints of one registry; each is served at its method's name."""

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        token: str | None,
        times: ControllerTimes | None = None,
        tls: ssl.SSLContext | None = None,
        groups: Groups | None = None,
    ) -> None:
        """`tls`: which workers' certificates are trusted. `groups`: of workers with their own tokens."""
        self.registry = registry
        self.dispatcher = dispatcher
        self.stopping = asyncio.Event()
        self.groups = groups or Groups()
        self._token = token
        self._times = times or ControllerTimes()
        self._client: httpx.AsyncClient | None = None
        self._tls = tls
        self._relay = StreamRelay(tls)
        self.feed = Feed(registry, self.stopping)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Sweeps the table, probes workers and sends changes while the server runs."""
        async with new_client(self._tls) as self._client:
            prober = Prober(
                self.registry,
                self._status_of,
                interval=self._times.probe_interval,
                connect_timeout=self._times.probe_connect_timeout,
            )
            feed = self.feed
            work = (self._sweep(), prober.run(), self._relay.run(), feed.run(), feed.end_at_stop())
            tasks = [asyncio.create_task(each) for each in work]
            yield
            await server.cancel_and_wait(*tasks)

    async def _sweep(self) -> None:
        while True:
            try:
                self.registry.sweep()
            except Exception:  # without further sweeps, dead workers would stay in rotation
                log.exception("a sweep of the table failed")
            await asyncio.sleep(self._times.sweep_interval)

    # FastChat's endpoints

    async def register_worker(self, registration: Registration, request: Request) -> None:
        """Adds a worker to the table, or replaces it."""
        name, group = registration.worker_name, _group_of(request)
        if group is not None:
            group.check_address(name)
            group.check_extension(registration.kodolly)
            if self.registry.is_alive(name):
                group.check_owner(name, self.registry.owner(name))
        owner = None if group is None else group.name
        status = registration.worker_status or await self._fetch_status(name, owner)
        if status is None:
            raise BadRequest(
                f"{registration.worker_name} gave no worker_status and does not answer"
                " /worker_get_status",
                param="worker_status",
            )
        if group is not None:
            group.check_models(status.model_names)
        self.registry.register(registration, status, owner)
        self.dispatcher.reset(registration.worker_name)

    async def receive_heart_beat(self, heartbeat: HeartbeatRequest) -> WorkerExists:
        """Takes a heartbeat. A worker that does not exist must register again."""
        # `HeartbeatEndpoint` serves this path; this is what the OpenAPI document says of it.
        self.dispatcher.reset(heartbeat.worker_name)
        return WorkerExists(exist=self.registry.heartbeat(heartbeat))

    async def refresh_all_workers(self) -> None:
        """Asks all workers for their status at once. Unlike in FastChat, they stay in the table meanwhile."""
        names = [row.name for row in self.registry.rows()]
        for name, status in zip(
            names, await asyncio.gather(*map(self._status_of, names)), strict=True
        ):
            if status is None:
                self.registry.mark_lost(name)
            else:
                self.registry.refresh(name, status)

    async def list_models(self) -> ModelNames:
        """The models that have a ready worker."""
        return self._models(multimodal=None)

    async def list_multimodal_models(self) -> ModelNames:
        """The models with a ready worker that registered as multimodal."""
        return self._models(multimodal=True)

    async def list_language_models(self) -> ModelNames:
        """The models with a ready worker that did not register as multimodal."""
        return self._models(multimodal=False)

    async def get_worker_address(self, query: ModelQuery) -> WorkerAddress:
        """Chooses a ready worker of a model."""
        return WorkerAddress(address=self.dispatcher.choose(self.registry.ready(), query.model))

    async def worker_get_status(self) -> Load:
        """This controller as if it were one worker, for a controller above it."""
        ready = self.registry.ready()
        return Load(
            model_names=sorted({m for row in ready for m in row.model_names}),
            speed=sum(row.speed for row in ready),
            queue_length=sum(row.queue_length for row in ready),
        )

    async def worker_generate_stream(self, request: Request) -> Response:
        """Relays a worker's stream: JSON objects, each ended by a NUL byte."""
        params = await bodies.read_object(request, MAX_PROMPT_BODY)
        model = parse(ModelQuery, params).model
        address = self.dispatcher.choose(self.registry.ready(), model)
        headers = self._headers(self.registry.owner(address))
        return StreamingResponse(self._relay.stream(address, params, headers))

    async def test_connection(self) -> str:
        """The text "success"."""
        return "success"

    # KoDolly's additions

    async def deregister_worker(self, query: WorkerQuery, request: Request) -> WorkerExists:
        """Removes a worker from the table."""
        group = _group_of(request)
        if group is not None and self.registry.has(query.worker_name):
            group.check_owner(query.worker_name, self.registry.owner(query.worker_name))
        self.dispatcher.reset(query.worker_name)
        return WorkerExists(exist=self.registry.remove(query.worker_name))

    async def drain_worker(self, query: WorkerQuery) -> WorkerExists:
        """Takes a worker out of rotation until it registers again."""
        return WorkerExists(exist=self.registry.drain(query.worker_name))

    async def workers(self) -> Response:
        """The table as it is now, for people and scripts."""
        return JsonResponse(self.registry.snapshot().model_dump(mode="json", exclude=SECRETS))

    async def watch(self) -> Response:
        """The table, then its changes, one line of JSON each. Empty lines keep the stream alive."""
        return StreamingResponse(self.feed.lines(), media_type="application/x-ndjson")

    async def health(self) -> Response:
        """The text "ok" while the controller runs."""
        return PlainTextResponse("ok")

    def _headers(self, owner: str | None) -> dict[str, str]:
        """For a call to a worker: it knows the token by which it registered, and may learn no other."""
        token = self.groups.token_of(owner) if owner is not None else self._token
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _status_of(self, name: str) -> WorkerStatus | None:
        return await self._fetch_status(name, self.registry.owner(name))

    async def _fetch_status(self, name: str, owner: str | None) -> WorkerStatus | None:
        """A worker's status; None if it does not answer. `owner`: the group that registers it."""
        try:
            async with asyncio.timeout(self._times.status_timeout):
                code, body = await request_bounded(
                    self.client,
                    "POST",
                    f"{name}/worker_get_status",
                    headers=self._headers(owner),
                    timeout=None,
                    follow_redirects=True,
                )
            if code != 200:
                raise ValueError(f"it answered {code}")
            return parse(WorkerStatus, orjson.loads(body))
        except (*CALL_ERRORS, BadRequest) as error:
            log.warning("no status from %s: %s", name, describe_call_error(error))
            return None

    def _models(self, multimodal: bool | None) -> ModelNames:
        rows = [r for r in self.registry.ready() if multimodal in (None, r.multimodal)]
        return ModelNames(models=sorted({m for row in rows for m in row.model_names}))

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client for calls to workers that answer whole; open while the server runs."""
        if self._client is None:
            raise RuntimeError("the controller is not serving yet")
        return self._client


def _group_of(request: Request) -> Group | None:
    """The group whose token a request presented; None for the controller's own token."""
    group: Group | None = request.scope.get(token_guard.GROUP)
    return group


# What FastAPI cannot read off an endpoint's annotations.
GENERATE_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {"model": {"type": "string"}},
                    "description": "`model`, and the parameters of FastChat's worker.",
                }
            }
        },
    }
}
STREAM_DOC = {200: {"content": {"application/octet-stream": {}}, "description": "A stream."}}
WATCH_DOC = {200: {"content": {"application/x-ndjson": {}}, "description": "Lines of JSON."}}


def create_app(
    controller: Controller,
    token: str | None = None,
    guard: SiteGuard | None = None,
    observer: Observer | None = None,
    door: OperatorDoor | None = None,
) -> JsonApp:
    """The ASGI application; with a token, every path but the health checks needs it.

    `door`: who may see metrics; without one, who presents the token.
    """
    app = JsonApp(
        "KoDolly controller",
        "FastChat's controller protocol, and KoDolly's additions to it.",
        route_class=JsonRoute,
        lifespan=controller.lifespan,
        token=token,
        open_paths=frozenset({"/health", "/test_connection"}),
        guard=guard,
        observer=observer,
        limited=controller.groups,
    )
    posts = (
        controller.register_worker,
        controller.receive_heart_beat,
        controller.refresh_all_workers,
        controller.list_models,
        controller.list_multimodal_models,
        controller.list_language_models,
        controller.get_worker_address,
        controller.worker_get_status,
        controller.deregister_worker,
        controller.drain_worker,
    )
    add_routes(app, "POST", posts)
    add_routes(
        app,
        "POST",
        [controller.worker_generate_stream],
        response_class=StreamingResponse,
        responses=STREAM_DOC,
        openapi_extra=GENERATE_DOC,
    )
    add_routes(app, "GET", [controller.test_connection])
    add_routes(app, "GET", [controller.workers], response_model=Snapshot)
    add_routes(
        app, "GET", [controller.watch], response_class=StreamingResponse, responses=WATCH_DOC
    )
    add_routes(app, "GET", [controller.health], response_class=PlainTextResponse)
    app.serve_directly("/worker_generate_stream")
    heartbeats = HeartbeatEndpoint(controller.registry, controller.dispatcher)
    guarded = token_guard.TokenGuard(
        heartbeats, token=token, open_paths=frozenset(), limited=controller.groups
    )
    app.add_direct_route("POST", "/receive_heart_beat", guarded)
    _serve_operators(app, controller, door or OperatorDoor([token] if token else []))
    return app


def _serve_operators(app: JsonApp, controller: Controller, door: OperatorDoor) -> None:
    """Metrics, and the lists of what Prometheus is to scrape."""
    registry = controller.registry

    async def families() -> list[Family]:
        return controller_families(registry, controller.feed)

    async def workers() -> Response:
        return JsonResponse(targets(registry.rows(), engines=False))

    async def engines() -> Response:
        return JsonResponse(targets(registry.rows(), engines=True))

    app.serve_metrics(families, door)
    app.add_direct_route("GET", "/sd/workers", OperatorEndpoint(door, workers))
    app.add_direct_route("GET", "/sd/engines", OperatorEndpoint(door, engines))


def main(argv: Sequence[str]) -> int:
    """`kodolly controller`: serves until SIGTERM or Ctrl-C."""
    settings = load(
        ControllerSettings, argv, "Start the controller, which keeps the table of workers."
    )
    token = require_token(settings, settings.host)
    controller = Controller(
        Registry(settings.expiration, settings.missed_beats),
        Dispatcher(settings.dispatch_method),
        token,
        tls=client_context(settings.tls_ca),
        groups=read_groups(settings.worker_tokens_file, token),
    )
    guard = SiteGuard(AllowedHosts(settings.allowed_hosts, settings.host))
    observer = Observer.of(settings.access_log, settings.log_format)
    app = create_app(controller, token, guard, observer, OperatorDoor(settings.metrics_secrets()))
    # At SIGTERM the watch streams end at once, so that the APIs turn to the next controller.
    # Responses that are being relayed may finish.
    server.run(
        app,
        settings.host,
        settings.port,
        on_exit=controller.stopping.set,
        drain=settings.drain_timeout,
        bounds=settings.bounds(),
        tls=server_context(settings.tls_cert, settings.tls_key),
        known_heads=KnownHeads(),
    )
    return 0
