"""Requests to Gradio's API that nobody's page sends are a 400, with a reason."""

import logging
from typing import Any

import aiohttp
import pytest
from gradio import queueing, routes
from starlette.types import Receive, Scope, Send
from support.apps import serving

from kodolly.http.bounds import MAX_NESTING
from kodolly.web.body_check import BodyCheck, shorten_tracebacks

JOIN = "/gradio_api/queue/join"


async def gradio(scope: Scope, receive: Receive, send: Send) -> None:
    """Echoes a body; "break" fails as Gradio does, after its own 500."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    status = 500 if b"break" in body else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})
    if status == 500:
        raise KeyError("break")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (JOIN, b'{"data": ["\xed\x95\x9c"]}', 200),
        (JOIN, b"", 200),
        (JOIN, b'{"a": NaN}', 400),
        (JOIN, b'{"a": "\\ud800"}', 400),
        (JOIN, b"[" * 100_000, 400),
        (JOIN, b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), 400),
        (JOIN, b'{"fn_index": "break"}', 400),
        ("/elsewhere", b'{"a": NaN}', 200),
        ("/elsewhere", b"break", 500),
    ],
)
async def test_a_request_that_gradio_cannot_use_is_the_clients_fault(
    path: str, body: bytes, status: int
) -> None:
    """JSON that is none, or too deep, or that Gradio fails on; nothing else is touched."""
    headers = {"Content-Type": "application/json"}
    async with (
        serving(BodyCheck(gradio)) as url,
        aiohttp.ClientSession(url, headers=headers) as http,
        http.post(path, data=body) as answer,
    ):
        got: Any = await answer.read()
        assert answer.status == status
        if status == 400:
            assert b"invalid_request_error" in got
        elif status == 200:
            assert got == body


async def test_an_upload_is_not_read_as_json() -> None:
    """Its parts go on as they come."""
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with (
        serving(BodyCheck(gradio)) as url,
        aiohttp.ClientSession(url, headers=headers) as http,
        http.post("/gradio_api/upload", data=b"--x--") as answer,
    ):
        assert (answer.status, await answer.read()) == (200, b"--x--")


def test_what_gradio_fails_on_is_one_line(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Gradio prints a traceback, the log has the error's name, and standard error nothing."""
    shorten_tracebacks()
    for module in (queueing, routes):
        logging.getLogger("kodolly.web.body_check").filters.clear()
        try:
            raise KeyError("odd")
        except KeyError:
            module.traceback.print_exc()
    assert caplog.messages == ["a call to the page failed: KeyError: 'odd'"] * 2
    assert capsys.readouterr().err == ""
