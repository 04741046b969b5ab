"""The live list of models and the line that tells of it."""

import socket
from types import SimpleNamespace
from typing import Any

import gradio as gr
from aiohttp import web
from support.apps import serving_aiohttp
from support.scripted_engine import ScriptedEngine

from kodolly.web import models
from kodolly.web.chat import Chat
from kodolly.web.client import api_client
from kodolly.web.events import Events
from kodolly.web.models import LiveModels, ModelList
from kodolly.web.status import status_html
from kodolly.web.texts import EN, KO

KOREAN: Any = SimpleNamespace(headers={"accept-language": "ko-KR,ko;q=0.9"})
ENGLISH: Any = SimpleNamespace(headers={"accept-language": "en-US"})


class Listed:
    """A chat whose live list is what a test says."""

    def __init__(self, *names: str, problem: str = "") -> None:
        self.now = ModelList(names, problem)
        self.live = self

    async def get(self) -> ModelList:
        return self.now


def events(listed: Listed) -> Events:
    chat: Any = listed
    return Events(chat)


async def test_lists_what_the_api_lists(chat: Chat) -> None:
    """Names come in the API's order."""
    assert await chat.live.get() == ModelList(("demo",))


async def test_one_request_serves_many_pages(engine: ScriptedEngine) -> None:
    """Pages that ask within a second share one answer."""
    asked = 0

    async def count(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"object": "list", "data": []})

    app = web.Application()
    app.router.add_get("/v1/models", count)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with api_client(f"http://127.0.0.1:{runner.addresses[0][1]}", None) as client:
        live = LiveModels(client)
        assert [await live.get() for _ in range(5)] == [ModelList(problem="no_worker")] * 5
    await runner.cleanup()
    assert asked == 1


async def test_an_unreachable_api_is_a_problem_not_an_error() -> None:
    """The page goes on asking: the list never raises."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with api_client(f"http://127.0.0.1:{taken.getsockname()[1]}", None) as client:
            assert await LiveModels(client).get() == ModelList(problem="api_down")


async def test_the_list_is_asked_again_when_stale(
    chat: Chat, engine: ScriptedEngine, monkeypatch: Any
) -> None:
    """A model that came later appears."""
    monkeypatch.setattr(models, "MAX_AGE", 0.0)
    assert (await chat.live.get()).models == ("demo",)
    engine.script.model = "demo-2"
    assert (await chat.live.get()).models == ("demo-2",)


async def test_a_wrong_key_is_told(engine: ScriptedEngine) -> None:
    """An API that refuses the page's key is not an API that is away."""
    engine.script.api_key = "right"
    async with api_client(engine.url, "wrong") as client:
        assert (await LiveModels(client).get()).problem == "no_access"


async def test_the_first_look_chooses_the_first_model() -> None:
    """A fresh page has a model chosen and says that all is well, in the reader's language."""
    picker, status, _ = await events(Listed("a", "b")).refresh(None, None, KOREAN)
    assert picker["value"] == "a"
    assert picker["choices"] == [("a", "a"), ("b", "b")]
    assert KO["ready"] in status
    _, status, _ = await events(Listed("a")).refresh(None, None, ENGLISH)
    assert EN["ready"] in status


async def test_the_choice_is_kept_while_it_lives() -> None:
    """New models never change what a person chose."""
    listed = Listed("a", "b")
    _, _, seen = await events(listed).refresh(None, None, KOREAN)
    listed.now = ModelList(("a", "b", "c"))
    picker, _, seen = await events(listed).refresh("b", seen, KOREAN)
    assert picker["value"] == "b"
    listed.now = ModelList(("a", "c"))
    picker, _, _ = await events(listed).refresh("b", seen, KOREAN)
    assert picker["value"] == "a"


async def test_nothing_new_changes_nothing() -> None:
    """An unchanged list leaves the page alone, so an open menu stays open."""
    listed = Listed("a", "b")
    _, _, seen = await events(listed).refresh("b", None, KOREAN)
    assert await events(listed).refresh("b", seen, KOREAN) == (gr.skip(), gr.skip(), gr.skip())


async def test_a_choice_comes_back_with_its_worker() -> None:
    """With all workers gone the page says so; the old choice returns with them."""
    listed = Listed("a", "b")
    _, _, seen = await events(listed).refresh("b", None, KOREAN)
    listed.now = ModelList(problem="no_worker")
    picker, status, seen = await events(listed).refresh("b", seen, KOREAN)
    assert picker["choices"] == []
    assert KO["status_no_worker"] in status
    listed.now = ModelList(("a", "b"))
    picker, status, _ = await events(listed).refresh(None, seen, KOREAN)
    assert picker["value"] == "b"
    assert KO["ready"] in status


async def test_nonsense_from_a_browser_is_a_fresh_page() -> None:
    """What the page claims to have seen may be anything."""
    picker, _, _ = await events(Listed("a")).refresh(7, "[1", KOREAN)
    assert picker["value"] == "a"


def test_every_problem_has_a_status_line() -> None:
    """No problem of the list is without words."""
    for problem in ("no_worker", "api_down", "no_access"):
        assert KO[f"status_{problem}"] in status_html(ModelList(problem=problem), "ko")


async def test_a_model_that_makes_embeddings_is_not_offered() -> None:
    """Nobody can chat with it. One that does not say what it does is."""

    async def models(_: web.Request) -> web.Response:
        cards = [
            {"id": name, "object": "model", "created": 1, "owned_by": "x"} | more
            for name, more in (
                ("chats", {"capabilities": ["chat", "completions"]}),
                ("vectors", {"capabilities": ["embeddings"]}),
                ("silent", {"capabilities": None}),
            )
        ]
        return web.json_response({"object": "list", "data": cards})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with serving_aiohttp(app) as url, api_client(url, None) as client:
        assert await LiveModels(client).get() == ModelList(("chats", "silent"))
