"""The worker process: an agent, its engine, and FastChat's worker endpoints.

`kodolly worker --model DIR --controller http://127.0.0.1:21001`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
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
from kodolly.engines.client import CONNECT, EngineClient
from kodolly.engines.command import EngineCommand, EngineOptions
from kodolly.engines.start import engine_command
from kodolly.engines.stream import StreamClient
from kodolly.errors import EngineCallError, SettingsError
from kodolly.http import server
from kodolly.http.client import new_client
from kodolly.http.fastapi_app import JsonApp, add_routes
from kodolly.http.upstream import Pool
from kodolly.protocol.wire import Extension, WorkerState
from kodolly.settings import WorkerSettings, load, require_token
from kodolly.worker.adapters import read_adapters, with_adapters
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.fastchat_endpoints import FastChatEndpoints, WorkerRoute
from kodolly.worker.health import HealthLimits
from kodolly.worker.model import ServedModel, describe, named_template
from kodolly.worker.registration import ControllerClient

log = logging.getLogger(__name__)

DISCOVER_INTERVAL = 2.0  # seconds between two tries to reach an engine somebody else runs
OPEN_PATHS = frozenset({"/health", "/ready"})
READY = WorkerState.READY


class Worker:
    """Builds the parts of one worker from its settings."""

    def __init__(self, settings: WorkerSettings, scratch: Path) -> None:
        """`scratch`: a folder for files the engine reads. Raises SettingsError."""
        self.settings = settings
        self.token = require_token(settings, settings.host)
        settings.controllers()  # a bad one is refused before the engine starts
        host = advertised_host(settings)
        self.name = f"http://{host}:{settings.port}"
        self._attached = settings.engine == "openai"
        # Our engine always gets a random key: nobody else can use it, and another engine that
        # happens to listen on the port cannot answer our canary.
        self.engine_key = settings.engine_key if self._attached else secrets.token_urlsafe(24)
        self.engine_url = (
            self._attached_url() if self._attached else f"http://{host}:{settings.engine_port}"
        )
        self._scratch = scratch

    def describe(self, discovered: Sequence[str]) -> ServedModel:
        """The served model. `discovered`: the names that an attached engine offers."""
        settings = self.settings
        if not self._attached:
            if settings.model is None:
                raise SettingsError("--model: which model directory should be served?")
            return self._own_model(settings.model)
        read_adapters(settings.adapters, settings.engine, self.engine_url)
        if not discovered:
            raise SettingsError(f"--engine-url: {self.engine_url} offers no model")
        name = settings.model_name or discovered[0]
        if name not in discovered:
            raise SettingsError(
                f"--model-name: {name!r} is not served there: {', '.join(discovered)}"
            )
        if settings.model is None:  # the name may look like a path, but there is no directory
            return ServedModel(name, name, named_template(settings.conv_template))
        return describe(settings.model, name, settings.conv_template)

    def _own_model(self, path: str) -> ServedModel:
        """The model an engine of ours serves, with its adapters."""
        settings = self.settings
        adapters = read_adapters(settings.adapters, settings.engine, path)
        model = describe(path, settings.model_name, settings.conv_template)
        chosen = settings.conv_template is not None
        return with_adapters(model, adapters, template_is_chosen=chosen) if adapters else model

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
            chat_template=str(chat_template) if chat_template else None,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            dtype=settings.dtype,
            seed=settings.seed,
            python=settings.engine_python,
            adapters=model.adapters,
            extra_args=settings.engine_args,
        )
        return engine_command(settings.engine, options)

    def agent(
        self, model: ServedModel, command: EngineCommand | None, client: httpx.AsyncClient
    ) -> Agent:
        """The agent for `model`."""
        settings = self.settings
        extension = Extension(
            state=WorkerState.STARTING,
            engine_url=self.engine_url,
            engine_key=self.engine_key,
            heart_beat_interval=settings.heart_beat_interval,
            template=model.template.name if model.template else None,
            stop=model.stop,
            guard=model.guard,
            template_knows=model.template_knows,
            engine=None if settings.engine == "openai" else settings.engine,
            parents={adapter.name: model.name for adapter in model.adapters},
            version=__version__,
        )
        return Agent(
            Announcement(self.name, model.names, settings.speed, extension),
            EngineClient(self._local_engine_url(), self.engine_key, client),
            [ControllerClient(url, self.token, client) for url in settings.controllers()],
            command,
            start_timeout=settings.start_timeout,
            drain_timeout=settings.drain_timeout,
            limits=HealthLimits(
                settings.stall_after, settings.restart_after, settings.canary_interval
            ),
        )

    def stream_client(self, pool: Pool) -> StreamClient:
        """The engine's streams of tokens."""
        return StreamClient(self._local_engine_url(), self.engine_key, pool)

    async def discover(self) -> list[str]:
        """Waits for an attached engine; returns the models it offers ([] for an engine of ours).

        Raises EngineCallError when it has not answered within the start timeout.
        """
        if not self._attached:
            return []
        deadline = time.monotonic() + self.settings.start_timeout
        while True:
            try:
                return await openai.discover(self.engine_url, self.engine_key)
            except EngineCallError as error:
                if time.monotonic() > deadline:
                    raise
                log.info("waiting for %s: %s", self.engine_url, error)
                await asyncio.sleep(DISCOVER_INTERVAL)

    def _attached_url(self) -> str:
        if not self.settings.engine_url:
            raise SettingsError("--engine-url: which server should the worker attach to?")
        return openai.normalise_url(self.settings.engine_url)

    def _local_engine_url(self) -> str:
        """The engine's URL for this process: loopback, if the engine listens on all addresses."""
        if self._attached or self.settings.host not in ("0.0.0.0", "::"):
            return self.engine_url
        return f"http://127.0.0.1:{self.settings.engine_port}"


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
    client = new_client()
    pool = Pool(CONNECT)
    agent = worker.agent(model, command, client)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            pool_task = asyncio.create_task(pool.run())
            agent.start()
            yield
            await agent.drain()
            await server.cancel_and_wait(pool_task)

    async def ready() -> Response:
        """200 while the worker takes requests, otherwise 503. The text is its state."""
        return PlainTextResponse(agent.state.value, 200 if agent.state is READY else 503)

    async def health() -> Response:
        """The text "ok" while the agent runs."""
        return PlainTextResponse("ok")

    app = JsonApp(
        "KoDolly worker",
        "FastChat's worker protocol, for one engine.",
        route_class=WorkerRoute,
        lifespan=lifespan,
        token=worker.token,
        open_paths=OPEN_PATHS,
    )
    app.state.agent = agent
    add_routes(app, "GET", [health, ready], response_class=PlainTextResponse)
    FastChatEndpoints(agent, worker.stream_client(pool), model).add_to(app)
    return app


def main(argv: Sequence[str]) -> int:
    """`kodolly worker`: serves until SIGTERM or Ctrl-C, then drains."""
    settings = load(WorkerSettings, argv, "The agent beside one engine.")
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
        )
    return 0
