"""The controller's HTTP endpoints: FastChat's protocol, plus drain, deregister and the watch stream.

`kodolly controller --host 127.0.0.1 --port 21001`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.probe import Prober
from kodolly.controller.registry import Registry
from kodolly.errors import ApiError, BadRequest
from kodolly.http import server
from kodolly.http.client import CALL_ERRORS, new_client
from kodolly.http.log_safe import describe_error
from kodolly.http.server import JsonResponse
from kodolly.http.upstream import Broken, Connection, Pool, Unreachable
from kodolly.protocol.wire import HeartbeatRequest, Registration, WorkerStatus, frame, parse
from kodolly.settings import ControllerSettings, load, require_token

log = logging.getLogger(__name__)

MAX_BODY = 2**20  # bytes
MAX_PROMPT_BODY = 16 * 2**20  # bytes; a body with a whole prompt
CONNECT_TIMEOUT = 5.0  # seconds to reach a worker for a stream
STREAM_TIMEOUT = 100.0  # seconds without any byte of a relayed stream
# Seconds without a change after which the watch stream sends an empty line. After a few such times
# without any line, the API takes this controller for dead.
WATCH_KEEPALIVE = 0.5
# Changes within this time (seconds) are sent in one line of the watch stream.
WATCH_COALESCE = 0.01
# Fields that /workers does not show, in pydantic's form for `exclude`.
SECRETS = {"workers": {"__all__": {"kodolly": {"engine_key"}}}}
NO_WORKER, WORKER_TIMEOUT = 50005, 50006  # fastchat.constants.ErrorCode


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
    ) -> None:
        self.registry = registry
        self.dispatcher = dispatcher
        self.stopping = asyncio.Event()
        self._token = token
        self._times = times or ControllerTimes()
        self._client: httpx.AsyncClient | None = None
        self._pool = Pool(CONNECT_TIMEOUT)  # for streams of tokens

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Sweeps the table and probes workers while the server runs."""
        async with new_client() as self._client:
            prober = Prober(
                self.registry,
                self._fetch_status,
                interval=self._times.probe_interval,
                connect_timeout=self._times.probe_connect_timeout,
            )
            work = (self._sweep(), prober.run(), self._pool.run())
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

    async def register_worker(self, request: Request) -> Response:
        registration = parse(Registration, await server.read_object(request, MAX_BODY))
        status = registration.worker_status or await self._fetch_status(registration.worker_name)
        if status is None:
            raise BadRequest(
                f"{registration.worker_name} gave no worker_status and does not answer"
                " /worker_get_status",
                param="worker_status",
            )
        self.registry.register(registration, status)
        self.dispatcher.reset(registration.worker_name)
        return JsonResponse(None)

    async def receive_heart_beat(self, request: Request) -> Response:
        heartbeat = parse(HeartbeatRequest, await server.read_object(request, MAX_BODY))
        self.dispatcher.reset(heartbeat.worker_name)
        return JsonResponse({"exist": self.registry.heartbeat(heartbeat)})

    async def refresh_all_workers(self, _: Request) -> Response:
        """Asks all workers for their status at once. Unlike in FastChat, they stay in the table meanwhile."""
        names = [row.name for row in self.registry.rows()]
        for name, status in zip(
            names, await asyncio.gather(*map(self._fetch_status, names)), strict=True
        ):
            if status is None:
                self.registry.mark_lost(name)
            else:
                self.registry.refresh(name, status)
        return JsonResponse(None)

    async def list_models(self, _: Request) -> Response:
        return self._models(multimodal=None)

    async def list_multimodal_models(self, _: Request) -> Response:
        return self._models(multimodal=True)

    async def list_language_models(self, _: Request) -> Response:
        return self._models(multimodal=False)

    async def get_worker_address(self, request: Request) -> Response:
        model = _model_of(await server.read_object(request, MAX_BODY))
        return JsonResponse({"address": self.dispatcher.choose(self.registry.ready(), model)})

    async def worker_get_status(self, _: Request) -> Response:
        """This controller as if it were one worker, for a controller above it."""
        ready = self.registry.ready()
        return JsonResponse(
            {
                "model_names": sorted({m for row in ready for m in row.model_names}),
                "speed": sum(row.speed for row in ready),
                "queue_length": sum(row.queue_length for row in ready),
            }
        )

    async def worker_generate_stream(self, request: Request) -> Response:
        params = await server.read_object(request, MAX_PROMPT_BODY)
        address = self.dispatcher.choose(self.registry.ready(), _model_of(params))
        return StreamingResponse(self._relay(address, params))

    async def test_connection(self, _: Request) -> Response:  # noqa: PT019 - FastChat's name
        return JsonResponse("success")

    # KoDolly's additions

    async def deregister_worker(self, request: Request) -> Response:
        name = _name_of(await server.read_object(request, MAX_BODY))
        self.dispatcher.reset(name)
        return JsonResponse({"exist": self.registry.remove(name)})

    async def drain_worker(self, request: Request) -> Response:
        name = _name_of(await server.read_object(request, MAX_BODY))
        return JsonResponse({"exist": self.registry.drain(name)})

    async def workers(self, _: Request) -> Response:
        """The table as it is now, for people and scripts."""
        return JsonResponse(self.registry.snapshot().model_dump(mode="json", exclude=SECRETS))

    async def watch(self, _: Request) -> Response:
        """The table now and after every change, one line of JSON each. Empty lines keep it alive."""
        return StreamingResponse(self._watch_lines(), media_type="application/x-ndjson")

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _watch_lines(self) -> AsyncIterator[bytes]:
        stop = asyncio.create_task(self.stopping.wait())
        change: asyncio.Task[None] | None = None
        version = -1
        try:
            while not stop.done():
                change = asyncio.create_task(self.registry.wait_beyond(version))
                await asyncio.wait(
                    {stop, change},
                    timeout=WATCH_KEEPALIVE,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not change.done():
                    change.cancel()
                    yield b"\n"
                    continue
                await asyncio.sleep(WATCH_COALESCE)
                snapshot = self.registry.snapshot()
                version = snapshot.version
                yield snapshot.model_dump_json().encode() + b"\n"
        finally:
            await server.cancel_and_wait(stop, change)

    async def _relay(self, address: str, params: dict[str, Any]) -> AsyncIterator[bytes]:
        if not address:
            yield frame({"text": "no worker serves this model", "error_code": NO_WORKER})
            return
        url = f"{address}/worker_generate_stream"
        connection: Connection | None = None
        try:
            async with asyncio.timeout(STREAM_TIMEOUT):
                connection = await self._pool.post(url, self._headers(), orjson.dumps(params))
            if connection.status != 200:
                raise Broken(f"status {connection.status}")
            while chunk := await _read(connection):
                yield chunk
        except (Unreachable, Broken, TimeoutError) as error:
            log.warning("relay to %s broke: %s", address, describe_error(error))
            yield frame({"text": "the worker does not answer", "error_code": WORKER_TIMEOUT})
        finally:
            if connection is not None:
                connection.release()

    async def _fetch_status(self, name: str) -> WorkerStatus | None:
        try:
            async with asyncio.timeout(self._times.status_timeout):
                response = await self.client.post(
                    f"{name}/worker_get_status",
                    headers=self._headers(),
                    timeout=None,
                    follow_redirects=True,
                )
            response.raise_for_status()
            return parse(WorkerStatus, orjson.loads(response.content))
        except (*CALL_ERRORS, BadRequest) as error:
            log.warning("no status from %s: %s", name, describe_error(error))
            return None

    def _models(self, multimodal: bool | None) -> Response:
        rows = [r for r in self.registry.ready() if multimodal in (None, r.multimodal)]
        return JsonResponse({"models": sorted({m for row in rows for m in row.model_names})})

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client for calls to workers that answer whole; open while the server runs."""
        if self._client is None:
            raise RuntimeError("the controller is not serving yet")
        return self._client


def create_app(controller: Controller, token: str | None = None) -> Starlette:
    """The ASGI application; with a token, every path but the health checks needs it."""
    posts = (
        controller.register_worker,
        controller.receive_heart_beat,
        controller.refresh_all_workers,
        controller.list_models,
        controller.list_multimodal_models,
        controller.list_language_models,
        controller.get_worker_address,
        controller.worker_generate_stream,
        controller.worker_get_status,
        controller.deregister_worker,
        controller.drain_worker,
    )
    gets = (controller.test_connection, controller.workers, controller.watch, controller.health)
    routes = [Route(f"/{f.__name__}", f, methods=["POST"]) for f in posts]
    routes += [Route(f"/{f.__name__}", f, methods=["GET"]) for f in gets]
    guard = Middleware(
        server.TokenGuard, token=token, open_paths=frozenset({"/health", "/test_connection"})
    )
    return Starlette(
        routes=routes,
        middleware=[guard],
        lifespan=controller.lifespan,
        exception_handlers={ApiError: server.error_response},
    )


async def _read(connection: Connection) -> bytes:
    async with asyncio.timeout(STREAM_TIMEOUT):
        return await connection.read()


def _model_of(data: dict[str, Any]) -> str:
    return _text_field(data, "model")


def _name_of(data: dict[str, Any]) -> str:
    return _text_field(data, "worker_name")


def _text_field(data: dict[str, Any], field: str) -> str:
    value = data.get(field)
    if not isinstance(value, str):
        raise BadRequest(f"{field}: a string is required", param=field)
    return value


def main(argv: Sequence[str]) -> int:
    """`kodolly controller`: serves until SIGTERM or Ctrl-C."""
    settings = load(ControllerSettings, argv, "Who is alive, who is next.")
    token = require_token(settings, settings.host)
    controller = Controller(
        Registry(settings.expiration, settings.missed_beats),
        Dispatcher(settings.dispatch_method),
        token,
    )
    app = create_app(controller, token)
    # At SIGTERM the watch streams end at once, so that the APIs turn to the next controller.
    # Responses that are being relayed may finish.
    server.run(
        app,
        settings.host,
        settings.port,
        on_exit=controller.stopping.set,
        drain=settings.drain_timeout,
    )
    return 0
