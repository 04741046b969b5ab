"""The web process: the Gradio page with a strict content security policy, on one uvicorn server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from kodolly.http import server
from kodolly.http.bounds import Bounds
from kodolly.web.body_check import BodyCheck
from kodolly.web.guard import Guard

if TYPE_CHECKING:
    from fastapi import FastAPI

DRAIN = 1.0  # seconds for open responses at SIGTERM


class WebOptions(Protocol):
    """The settings that the page needs; `kodolly.settings.WebSettings` has them."""

    @property
    def host(self) -> str: ...
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
    def bounds(self) -> Bounds: ...


def serve(settings: WebOptions) -> None:
    """Serves the page until SIGTERM or Ctrl-C, then returns."""
    app = Guard(BodyCheck(create_app(settings)))
    server.run(
        app,
        settings.host,
        settings.port,
        on_exit=app.close,
        drain=DRAIN,
        proxy_headers=True,
        bounds=settings.bounds(),
    )


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

    client = api_client(settings.api, settings.api_key)

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
