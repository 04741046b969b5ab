"""A client that goes is no error of ours: no face writes an error line about it."""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from support.apps import serving

from kodolly.api.app import create_app as create_api
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.transformers.server import create_app as create_engine
from kodolly.settings import ApiSettings
from kodolly.web.guard import Guard


async def upload(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the whole body, as a page's upload does."""
    await Request(scope, receive).body()


async def leave_early(url: str, path: str) -> None:
    """Sends half a request's body and resets the connection."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode())
    writer.write(b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.1)
    cast(asyncio.Transport, writer.transport).abort()


@pytest.mark.parametrize("face", ["api", "controller", "controller direct", "engine", "page"])
async def test_half_a_request_is_no_error(face: str, caplog: pytest.LogCaptureFixture) -> None:
    """The connection breaks inside the body: no line of ERROR is written."""
    caplog.set_level(logging.DEBUG)
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    faces: dict[str, tuple[ASGIApp, str]] = {
        "api": (create_api(ApiSettings()), "/v1/chat/completions"),
        "controller": (create_controller(controller), "/register_worker"),
        "controller direct": (create_controller(controller), "/receive_heart_beat"),
        "engine": (create_engine(cast(Any, None), ["m"], key=None), "/v1/chat/completions"),
        "page": (Guard(upload), "/"),
    }
    app, path = faces[face]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(app))
        await leave_early(url, path)
        with suppress(TimeoutError):
            await asyncio.wait_for(error_line(caplog), 0.3)

    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def error_line(caplog: pytest.LogCaptureFixture) -> None:
    """Returns once a line is written that should not be."""
    while not any(record.levelno >= logging.ERROR for record in caplog.records):
        await asyncio.sleep(0.01)
