"""The page itself, without a browser."""

import asyncio
import json
from functools import cache
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from kodolly.settings import WebSettings
from kodolly.web.app import create_app
from kodolly.web.guard import Guard
from kodolly.web.page import ANSWERS, build_page, theme, translations
from kodolly.web.texts import EN, GRADIO_KO, KO


# Built once, and inside a running loop: outside of one Gradio leaves loops of its own behind.
@cache
def built() -> gr.Blocks:
    chat: Any = None
    return build_page(chat)


@cache
def served() -> Guard:
    return Guard(create_app(WebSettings(api="http://127.0.0.1:9")))


@pytest.fixture
async def page() -> gr.Blocks:
    return built()


def dependency(page: gr.Blocks, event: str) -> Any:
    found = [fn for fn in page.fns.values() if any(name == event for _, name in fn.targets)]
    return next(fn for fn in found if fn.fn is not None and fn.concurrency_id == "answer")


async def test_all_ways_to_ask_share_one_event(page: gr.Blocks) -> None:
    """Send, retry, edit, an example and a notice's button are one event: one answer at a time."""
    asking = {
        dependency(page, event)._id
        for event in ("submit", "retry", "edit", "example_select", "option_select")
    }
    assert len(asking) == 1


async def test_people_do_not_wait_for_each_other(page: gr.Blocks) -> None:
    """Many answers are made at once; Gradio alone would make one."""
    assert dependency(page, "submit").concurrency_limit == ANSWERS
    assert page._queue.max_thread_count > ANSWERS
    assert page._queue.default_concurrency_limit is None


async def test_stop_clear_and_undo_cancel_the_answer(page: gr.Blocks) -> None:
    """Each of them ends the answer under way."""
    answer = dependency(page, "submit")._id
    cancelling = {
        name for fn in page.fns.values() if answer in fn.cancels for _, name in fn.targets
    }
    assert cancelling == {"stop", "clear", "undo"}


async def test_the_settings_start_where_the_operator_says(page: gr.Blocks) -> None:
    """--temperature and --max-tokens are where the page's sliders stand at first."""
    chat: Any = None
    other = build_page(chat, temperature=0.3, max_tokens=64)

    def stand(page: gr.Blocks) -> list[float]:
        return [one.value for one in page.blocks.values() if isinstance(one, gr.Slider)]

    assert stand(page) == [0.7, 0.95, 512]
    assert stand(other) == [0.3, 0.95, 64]


async def test_nothing_is_offered_to_api_clients(page: gr.Blocks) -> None:
    """The page is for people: none of its events is in Gradio's API."""
    assert page.get_api_info()["named_endpoints"] == {}


def test_fonts_are_the_readers_own() -> None:
    """The theme fetches no font from anywhere."""
    assert theme()._stylesheets == []
    assert theme()._font_css == []


def test_gradio_labels_missing_in_korean_are_supplied() -> None:
    """Both languages are handed to the browser, with Gradio's missing Korean words."""
    handed = translations().translations_dict
    assert handed["ko"] == KO | GRADIO_KO
    assert handed["en"] == EN


async def get(app: Any, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1"
    ) as client:
        return await client.request(options.pop("method", "GET"), path, **options)


async def test_the_served_page_names_no_foreign_script() -> None:
    """The HTML comes with a policy that forbids other hosts, and carries our words."""
    answer = await get(served(), "/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "KoDolly" in answer.text
    assert json.dumps(KO["placeholder"]) in answer.text or KO["placeholder"] in answer.text


async def test_no_api_documentation_is_served() -> None:
    """FastAPI's own pages are off."""
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert "swagger" not in (await get(served(), path)).text.lower()


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


SMALL = Starlette(routes=[Route("/", echo, methods=["POST"])])


async def test_long_requests_are_refused() -> None:
    """A body over the bound, or of unknown length, is answered 413 and never read."""
    guard = Guard(SMALL, limit=10)
    assert (await get(guard, "/", method="POST", content=b"x" * 10)).text == "10"
    assert (await get(guard, "/", method="POST", content=b"x" * 11)).status_code == 413

    async def endless() -> Any:
        yield b"x"

    assert (await get(guard, "/", method="POST", content=endless())).status_code == 413


async def test_closing_ends_open_streams() -> None:
    """An endless event stream ends properly when the process is told to stop."""

    async def forever(_: Request) -> StreamingResponse:
        async def beat() -> Any:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(beat())

    guard = Guard(Starlette(routes=[Route("/", forever)]))
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 3:
            guard.close()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    async with asyncio.timeout(10):
        await guard(scope, receive, send)
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
