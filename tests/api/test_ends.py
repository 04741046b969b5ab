"""Only `[DONE]` ends an answer: an engine that just stops talking has not finished it."""

from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from aiohttp import web
from support.apps import serving_aiohttp
from support.processes import eventually
from support.script import Script

from kodolly.protocol.wire import Extension, Registration, WorkerStatus

from .conftest import Stack
from .test_resume import CHAT, events, said

BEGIN = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"demo","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"%b"},"finish_reason":null}]}\n\n'
)


async def says(stack: Stack, room: AsyncExitStack, body: bytes) -> list[Any]:
    """A worker whose engine answers every chat with `body`, status 200; the calls it got."""
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.Response(body=body, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    url = await room.enter_async_context(serving_aiohttp(app))
    known = Extension(engine_url=url, heart_beat_interval=600, context_length=9999)
    stack.controller.registry.register(
        Registration(worker_name=url, kodolly=known), WorkerStatus(model_names=["demo"])
    )
    await eventually(stack.is_followed)
    return asked


async def test_a_stream_that_stops_without_its_end_is_told_as_lost(stack: Stack) -> None:
    """What came before stays; the client is not left to take it for the whole."""
    async with AsyncExitStack() as room:
        await says(stack, room, BEGIN % "반쪽".encode())
        told = await events(stack)
        assert said(told) == "반쪽"
        assert told[-1]["error"]["code"] == "worker_lost"


async def test_200_and_an_empty_stream_is_no_answer(stack: Stack) -> None:
    """An engine that failed may say so by nothing at all: another one is asked."""
    async with AsyncExitStack() as room:
        asked = await says(stack, room, b"")
        url = f"{stack.url}/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, json=CHAT | {"stream": True}) as answer,
        ):
            assert answer.status == 503
        before = len(asked)
        assert before
        well = await stack.add(Script())
        for worker in stack.table.all():
            worker.foreign = 1000 * (worker.row.name == well.url)
            worker.suspect_until = 0.0
        assert said(await events(stack)) == Script().text
        assert len(asked) == before + 1
