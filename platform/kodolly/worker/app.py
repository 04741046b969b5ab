"""The worker process: an agent, its engine, and FastChat's worker endpoints.

`kodolly worker --model DIR --controller http://127.0.0.1:21001`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from kodolly import __version__
from kodolly.engines import openai
from kodolly.engines.client import ABSENT, CONNECT, EngineClient
from kodolly.engines.command import EngineCommand, EngineOptions
from kodolly.engines.openai import Offer
from kodolly.engines.start import engine_command, require_engine
from kodolly.engines.stream import StreamClient
from kodolly.engines.vllm_parsers import Parsers
from kodolly.errors import EngineCallError, EngineStartError, SettingsError
from kodolly.http import server
from kodolly.http.client import new_client
from kodolly.http.fastapi_app import JsonApp, add_routes
from kodolly.http.hosts import AllowedHosts
from kodolly.http.metrics import OperatorDoor, OperatorEndpoint
from kodolly.http.site_guard import SiteGuard
from kodolly.http.tls import client_context, pinned_context, scheme, server_context
from kodolly.http.upstream import Pool
from kodolly.observe.families import Family
from kodolly.observe.observer import ENGINE_METRICS, Observer
from kodolly.protocol.addresses import AddressError, base_url, canonical_url
from kodolly.protocol.wire import Extension, WorkerState
from kodolly.settings import WorkerSettings, load, require_token
from kodolly.worker.adapters import read_adapters, with_adapters
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.attached import attached_model, model_names
from kodolly.worker.card import checked_aliases
from kodolly.worker.fastchat_endpoints import FastChatEndpoints, WorkerRoute
from kodolly.worker.gpus.request import (
    GpuRequest,
    gpu_request,
    number_of_gpus,
    vllm_flags,
)
from kodolly.worker.health import HealthLimits
from kodolly.worker.metrics import engine_metrics, worker_families
from kodolly.worker.model import ServedModel, capabilities, describe, with_tokenizer
from kodolly.worker.registration import ControllerClient

log = logging.getLogger(__name__)

DISCOVER_INTERVAL = 2.0  # seconds between two tries to reach an engine somebody else runs
OPEN_PATHS = frozenset({"/health", "/ready"})
READY = WorkerState.READY
LOADING = (
    "loading"  # in the text of /ready until the first token; deploy/images/healthy waits on it
)


class Worker:
    """Builds the parts of one worker from its settings."""

    def __init__(self, settings: WorkerSettings, scratch: Path) -> None:
        """`scratch`: a folder for files the engine reads. Raises SettingsError."""
        self.settings = settings
        self.token = require_token(settings, settings.host)
        settings.controllers()  # a bad one is refused before the engine starts
        host = advertised_host(settings)
        self._host = host
        self.hosts = AllowedHosts(settings.allowed_hosts, settings.host, host)
        self.tls = server_context(settings.tls_cert, settings.tls_key)
        self.scheme = scheme(self.tls)
        flag = "--advertise" if settings.advertise else "--host"
        self.name = own_url(flag, host, settings.port, self.scheme)
        self._attached = settings.engine == "openai"
        # Our engine always gets a random key: nobody else can use it, and another engine that
        # happens to listen on the port cannot answer our canary.
        self.engine_key = settings.engine_key if self._attached else secrets.token_urlsafe(24)
        self.engine_url = (
            self._attached_url()
            if self._attached
            else base_url(host, settings.engine_port, self.scheme)
        )
        self._scratch = scratch

    def describe(self, offers: Sequence[Offer]) -> ServedModel:
        """The served model. `offers`: what an attached engine offers."""
        settings = self.settings
        if not self._attached:
            if settings.model is None:
                raise SettingsError(
                    "--model: name the model directory to serve, for example --model models/ko58"
                )
            return self._own_model(settings.model)
        read_adapters(settings.adapters, settings.engine, self.engine_url)
        return attached_model(settings, self.engine_url, offers)

    def _own_model(self, path: str) -> ServedModel:
        """The model an engine of ours serves, with its adapters."""
        settings = self.settings
        adapters = read_adapters(settings.adapters, settings.engine, path)
        model = describe(path, settings.model_name, settings.conv_template, settings.runner)
        chosen = settings.conv_template is not None
        model = with_adapters(model, adapters, template_is_chosen=chosen) if adapters else model
        return with_tokenizer(model, settings.tokenizer)

    def command(self, model: ServedModel) -> EngineCommand | None:
        """The command that starts the engine; None for an engine that somebody else runs."""
        if self._attached:
            return None
        settings = self.settings
        chat_template = model.write_chat_template(self._scratch)
        options = EngineOptions(
            model=model.path,
            served_model_name=model.name,
            host=settings.host,
            port=settings.engine_port,
            api_key=self.engine_key,
            allowed_hosts=(*settings.allowed_hosts, self._host),
            chat_template=str(chat_template) if chat_template else None,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            dtype=settings.dtype,
            seed=settings.seed,
            python=settings.engine_python,
            adapters=model.adapters,
            parsers=self._parsers(model),
            pooling=model.pooling,
            extra_args=(*self._gpu_flags(), *settings.engine_args),
            tls=(settings.tls_cert, settings.tls_key) if settings.tls_cert else None,
        )
        return engine_command(settings.engine, options)

    def _gpu_flags(self) -> tuple[str, ...]:
        """What vLLM is told of its GPUs."""
        settings = self.settings
        if settings.engine != "vllm":
            return ()
        # 'auto' needs no flag: it is one, or what the operator's own flags say.
        count = number_of_gpus(settings.gpus, uses_cuda=False)
        return vllm_flags(count, settings.gpu_share, settings.engine_args)

    def gpus(self, command: EngineCommand | None) -> GpuRequest | None:
        """The GPUs that the engine must have. Raises SettingsError if there never are so many."""
        settings = self.settings
        if command is None:
            if settings.gpus not in ("auto", "none"):
                raise SettingsError("--gpus: an attached engine has its GPUs already")
            return None
        uses_cuda = settings.engine == "vllm" and not command.on_cpu
        return gpu_request(
            settings.gpus,
            settings.gpu_share,
            settings.gpu_leases,
            settings.engine_args,
            uses_cuda=uses_cuda,
        )

    def _parsers(self, model: ServedModel) -> Parsers:
        """vLLM's parsers. Raises SettingsError where another engine was given one."""
        settings, named = self.settings, self._named()
        if settings.engine == "vllm":
            return model.parsers(named)
        for kind, name in named.items():
            if name is not None:
                raise SettingsError(
                    f"--{kind}-parser: is for the vllm engine, not for {settings.engine}"
                )
        return Parsers()

    def _named(self) -> dict[str, str | None]:
        """The parsers that the operator named."""
        return {"tool": self.settings.tool_parser, "reasoning": self.settings.reasoning_parser}

    def agent(
        self,
        model: ServedModel,
        command: EngineCommand | None,
        client: httpx.AsyncClient,
        engine_client: httpx.AsyncClient,
    ) -> Agent:
        """The agent for `model`. `client`: for the controllers. `engine_client`: for the engine."""
        settings = self.settings
        extension = Extension(
            state=WorkerState.STARTING,
            engine_url=self.engine_url,
            engine_key=self.engine_key,
            heart_beat_interval=settings.heart_beat_interval,
            template=model.template.name if model.template else None,
            stop=model.stop,
            guard=model.guard,
            token_bytes=model.token_bytes,
            template_knows=model.template_knows,
            engine=None if settings.engine == "openai" else settings.engine,
            capabilities=capabilities(settings.engine, model, model.parsers(self._named()).tool),
            owner=model.card.owner,
            aliases=dict.fromkeys(self._aliases(model), model.name),
            defaults=model.card.defaults,
            parents=model.parents,
            forced_ids=command is not None and command.forces_ids,
            version=__version__,
        )
        return Agent(
            Announcement(self.name, model.names, settings.speed, extension),
            EngineClient(self._local_engine_url(), self.engine_key, engine_client),
            [ControllerClient(url, self.token, client) for url in settings.controllers()],
            command,
            start_timeout=settings.start_timeout,
            drain_timeout=settings.drain_timeout,
            limits=HealthLimits(
                settings.stall_after, settings.restart_after, settings.canary_interval
            ),
            engine_log=logging.getLogger("engine") if settings.log_format == "json" else None,
            gpus=self.gpus(command),
        )

    def _aliases(self, model: ServedModel) -> tuple[str, ...]:
        return checked_aliases([*model.card.aliases, *self.settings.model_aliases], model.names)

    def stream_client(self, pool: Pool) -> StreamClient:
        """The engine's streams of tokens."""
        return StreamClient(self._local_engine_url(), self.engine_key, pool)

    async def discover(self) -> list[Offer]:
        """Waits for an attached engine; returns the models it offers ([] for an engine of ours).

        One without a list of models serves those that --model-name names. Raises EngineCallError when
        it has not answered within the start timeout.
        """
        if not self._attached:
            return []
        trust = self.engine_trust()
        deadline, cause = time.monotonic() + self.settings.start_timeout, ""
        while True:
            try:
                return await openai.discover(self.engine_url, self.engine_key, trust)
            except EngineCallError as error:
                names = model_names(self.settings)
                if error.status in ABSENT and names:
                    log.info("%s has no list of models: --model-name is believed", self.engine_url)
                    return [Offer(name) for name in names]
                if time.monotonic() > deadline:
                    raise
                if str(error) != cause:  # one line for one cause
                    log.info("waiting for %s: %s", self.engine_url, error)
                cause = str(error)
                await asyncio.sleep(DISCOVER_INTERVAL)

    def engine_trust(self) -> ssl.SSLContext:
        """Which certificate the engine must show: ours, or of an attached one any that is trusted."""
        settings = self.settings
        if self._attached or not settings.tls_cert:
            return client_context(settings.tls_ca)
        return pinned_context(settings.tls_cert)

    def _attached_url(self) -> str:
        if not self.settings.engine_url:
            raise SettingsError(
                "--engine-url: name the server to attach to, for example http://127.0.0.1:8001"
            )
        return openai.normalise_url(self.settings.engine_url)

    def _local_engine_url(self) -> str:
        """The engine's URL for this process: loopback, if the engine listens on all addresses."""
        if self._attached or self.settings.host not in ("0.0.0.0", "::"):
            return self.engine_url
        loopback = "::1" if self.settings.host == "::" else "127.0.0.1"
        return base_url(loopback, self.settings.engine_port, self.scheme)


def own_url(flag: str, host: str, port: int, scheme: str = "http") -> str:
    """This worker's base URL, as the controllers have it. Raises SettingsError for an unusable host."""
    try:
        return canonical_url(base_url(host.strip("[]"), port, scheme))
    except AddressError as error:
        raise SettingsError(f"{flag} {host}: {error}") from None


def advertised_host(settings: WorkerSettings) -> str:
    """The host by which other machines reach this worker. Raises SettingsError if it is unknown."""
    if settings.advertise == "auto":
        return own_address(urlsplit(settings.controllers()[0]).hostname or "127.0.0.1")
    if settings.advertise:
        return settings.advertise
    if settings.host in ("0.0.0.0", "::"):
        raise SettingsError("--advertise: a worker on all addresses must say which one is its own")
    return settings.host


def own_address(peer: str) -> str:
    """This machine's IP address on the route to `peer`. No packet is sent to find it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SettingsError(f"--advertise auto: no route to {peer}: {error}") from error


def create_app(worker: Worker, model: ServedModel, command: EngineCommand | None) -> JsonApp:
    """The ASGI application. The agent starts and drains with it."""
    engine_trust = worker.engine_trust()
    client = new_client(client_context(worker.settings.tls_ca))
    engine_client = new_client(engine_trust)
    pool = Pool(CONNECT, engine_trust)
    agent = worker.agent(model, command, client, engine_client)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, engine_client:
            pool_task = asyncio.create_task(pool.run())
            agent.start()
            yield
            await agent.drain()
            await server.cancel_and_wait(pool_task)

    async def ready() -> Response:
        """200 while the worker takes requests, otherwise 503. The text is its state, and what is wrong."""
        state = agent.state.value
        if agent.problem is not None:
            return PlainTextResponse(f"{state}: {agent.problem}", 503)
        if agent.gpu_wait is not None:
            return PlainTextResponse(f"{state}, waiting for a GPU: {agent.gpu_wait}", 503)
        if agent.state is READY:
            return PlainTextResponse(state)
        return PlainTextResponse(f"{state}, {LOADING}" if agent.is_loading else state, 503)

    async def health() -> Response:
        """The text "ok"; 503 with a sentence once no controller takes this worker, or its engine ends."""
        return PlainTextResponse(agent.problem or "ok", 503 if agent.problem else 200)

    app = JsonApp(
        "KoDolly worker",
        "FastChat's worker protocol, for one engine.",
        route_class=WorkerRoute,
        lifespan=lifespan,
        token=worker.token,
        open_paths=OPEN_PATHS,
        guard=SiteGuard(worker.hosts),
        observer=Observer.of(worker.settings.access_log, worker.settings.log_format),
    )
    _serve_operators(app, agent, OperatorDoor(worker.settings.metrics_secrets()))
    app.state.agent = agent
    add_routes(app, "GET", [health, ready], response_class=PlainTextResponse)
    FastChatEndpoints(agent, worker.stream_client(pool), model).add_to(app)
    return app


def _serve_operators(app: JsonApp, agent: Agent, door: OperatorDoor) -> None:
    """The worker's metrics, and its engine's."""

    async def families() -> list[Family]:
        return worker_families(agent)

    async def engine() -> Response:
        return await engine_metrics(agent)

    app.serve_metrics(families, door)
    app.add_direct_route("GET", ENGINE_METRICS, OperatorEndpoint(door, engine))


def main(argv: Sequence[str]) -> int:
    """`kodolly worker`: serves until SIGTERM or Ctrl-C, then drains."""
    settings = load(
        WorkerSettings, argv, "Start a worker: one engine, and the agent that watches it."
    )
    require_engine(settings.engine, settings.engine_python)
    with tempfile.TemporaryDirectory(prefix="kodolly-worker-") as scratch:
        worker = Worker(settings, Path(scratch))
        model = worker.describe(asyncio.run(worker.discover()))
        app = create_app(worker, model, worker.command(model))
        server.run(
            app,
            settings.host,
            settings.port,
            on_exit=lambda: app.state.agent.leave_rotation(),
            drain=settings.drain_timeout,
            bounds=settings.bounds(),
            tls=worker.tls,
        )
        if (failure := app.state.agent.failure) is not None:
            raise EngineStartError(failure)
    return 0
