"""The web process: the Gradio page with a strict content security policy, on one uvicorn server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from starlette.responses import PlainTextResponse, Response

from kodolly.errors import ApiError
from kodolly.http import server
from kodolly.http.bounds import Bounds
from kodolly.http.hosts import AllowedHosts
from kodolly.http.metrics import ObservedApp, OperatorDoor, WithMetrics, metrics_endpoint
from kodolly.http.site_guard import GuardedApp, SiteGuard
from kodolly.http.tls import client_context, pinned_context, server_context
from kodolly.observe.families import Family
from kodolly.observe.observer import Observer
from kodolly.observe.process import process_families
from kodolly.web.body_check import BodyCheck, shorten_tracebacks
from kodolly.web.guard import Guard

if TYPE_CHECKING:
    from fastapi import FastAPI

DRAIN = 1.0  # seconds for open responses at SIGTERM


class WebOptions(Protocol):
    """The settings that the page needs; `kodolly.settings.WebSettings` has them."""

    @property
    def host(self) -> str: ...
    @property
    def allowed_hosts(self) -> tuple[str, ...]: ...
    @property
    def port(self) -> int: ...
    @property
    def api(self) -> str: ...
    @property
    def api_key(self) -> str | None: ...
    @property
    def title(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def root_path(self) -> str: ...
    @property
    def tls_cert(self) -> str | None: ...
    @property
    def tls_key(self) -> str | None: ...
    @property
    def tls_ca(self) -> str | None: ...
    @property
    def api_certificate(self) -> str | None: ...
    @property
    def access_log(self) -> bool: ...
    @property
    def log_format(self) -> str: ...
    def bounds(self) -> Bounds: ...
    def metrics_secrets(self) -> tuple[str, ...]: ...


def serve(settings: WebOptions) -> None:
    """Serves the page until SIGTERM or Ctrl-C, then returns. Raises SettingsError."""
    tls = server_context(settings.tls_cert, settings.tls_key)
    app = create_guarded_app(settings)
    server.run(
        app,
        settings.host,
        settings.port,
        on_exit=app.close,
        drain=DRAIN,
        proxy_headers=True,
        bounds=settings.bounds(),
        tls=tls,
    )


def create_guarded_app(settings: WebOptions) -> Guard:
    """The page with everything around it: hosts and origins, bounds, headers. Raises SettingsError."""
    sites = SiteGuard(AllowedHosts(settings.allowed_hosts, settings.host), refusal=text_refusal)
    observer = Observer.of(settings.access_log, settings.log_format)

    async def families() -> list[Family]:
        return [*observer.metrics.families(), *process_families()]

    metrics = metrics_endpoint(families, OperatorDoor(settings.metrics_secrets()))
    page = WithMetrics(BodyCheck(create_app(settings)), metrics)
    return Guard(ObservedApp(GuardedApp(page, sites), observer))


def text_refusal(error: ApiError) -> Response:
    """A refusal as a person sees it who came by a name that the page does not go by."""
    return PlainTextResponse(f"이 주소로는 열 수 없습니다.\n{error.message}\n", error.status)


def create_app(settings: WebOptions) -> FastAPI:
    """The ASGI application. It closes the API client when it ends."""
    # Gradio reads these when it is imported: it must send nothing to other servers.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr
    from fastapi import FastAPI

    from kodolly.web.chat import Chat
    from kodolly.web.client import api_client
    from kodolly.web.page import asset, build_page, head_html, theme, translations

    shorten_tracebacks()
    if settings.api_certificate:
        trust = pinned_context(settings.api_certificate, "--api-certificate")
    else:
        trust = client_context(settings.tls_ca)
    client = api_client(settings.api, settings.api_key, trust)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    page = build_page(
        Chat(client),
        title=settings.title,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
    )
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        root_path=settings.root_path or None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=translations(),
        theme=theme(),
        css=asset("style.css"),
        head=head_html(),
    )
    return mounted
