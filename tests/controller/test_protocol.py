"""The controller over HTTP: FastChat's endpoints by name and shape, and KoDolly's additions."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.apps import serving, serving_aiohttp
from support.deaf import deaf
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}


def controller(token: str | None = None) -> Controller:
    return Controller(Registry(90, 3), Dispatcher("shortest_queue"), token)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(create_app(controller())) as url, aiohttp.ClientSession(url) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, body: Any = None) -> Any:
    async with http.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def register(http: aiohttp.ClientSession, name: str, **fields: Any) -> None:
    body = {"worker_name": name, "check_heart_beat": True, "worker_status": STATUS, **fields}
    assert await post(http, "/register_worker", body) is None


async def test_fastchats_round_trip(http: aiohttp.ClientSession) -> None:
    """Register, beat, list, address: each with FastChat's own field names."""
    await register(http, "http://a:1")

    assert await post(http, "/list_models") == {"models": ["m"]}
    assert await post(http, "/get_worker_address", {"model": "m"}) == {"address": "http://a:1"}
    assert await post(http, "/get_worker_address", {"model": "x"}) == {"address": ""}
    beat = {"worker_name": "http://a:1", "queue_length": 3}
    assert await post(http, "/receive_heart_beat", beat) == {"exist": True}
    assert await post(http, "/receive_heart_beat", beat | {"worker_name": "http://b"}) == {
        "exist": False
    }
    status = await post(http, "/worker_get_status")
    assert status == {"model_names": ["m"], "speed": 1, "queue_length": 3}
    async with http.get("/test_connection") as answer:
        assert await answer.json() == "success"


async def test_models_are_listed_by_kind(http: aiohttp.ClientSession) -> None:
    """Language and multimodal models have lists of their own, sorted."""
    await register(http, "http://a:1")
    await register(
        http, "http://b:1", multimodal=True, worker_status=STATUS | {"model_names": ["v"]}
    )

    assert await post(http, "/list_models") == {"models": ["m", "v"]}
    assert await post(http, "/list_language_models") == {"models": ["m"]}
    assert await post(http, "/list_multimodal_models") == {"models": ["v"]}


async def test_a_worker_without_status_is_asked_for_it(http: aiohttp.ClientSession) -> None:
    """A registration with worker_status null makes the controller ask the worker itself."""
    async with ScriptedEngine(Script(model="demo")) as engine:
        body = {"worker_name": engine.url, "check_heart_beat": False, "worker_status": None}
        assert await post(http, "/register_worker", body) is None

    assert await post(http, "/list_models") == {"models": ["demo"]}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/register_worker", {}, "worker_name"),
        ("/register_worker", {"worker_name": "ftp://a", "worker_status": STATUS}, "worker_name"),
        (
            "/register_worker",
            {"worker_name": "http://a", "worker_status": STATUS | {"speed": 0}},
            "worker_status.speed",
        ),
        ("/receive_heart_beat", {"worker_name": "http://a"}, "queue_length"),
        ("/get_worker_address", {}, "model"),
    ],
)
async def test_bad_payloads_name_the_field(
    http: aiohttp.ClientSession, path: str, body: Any, field: str
) -> None:
    """A malformed call is a 400 that names the field; speed 0 never enters the table."""
    async with http.post(path, json=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == field


async def test_refresh_loses_only_those_who_do_not_answer(http: aiohttp.ClientSession) -> None:
    """/refresh_all_workers asks everybody at once; who answers stays listed throughout."""
    async with ScriptedEngine(Script(model="demo")) as engine:
        await register(http, engine.url, worker_status=STATUS | {"model_names": ["demo"]})
        await register(http, "http://127.0.0.1:9")
        await post(http, "/refresh_all_workers")

        assert await post(http, "/list_models") == {"models": ["demo"]}


async def test_a_hung_worker_does_not_block_the_controller(http: aiohttp.ClientSession) -> None:
    """While one worker is slow to answer a status call, everybody else is served."""
    async with deaf() as server:
        body = {"worker_name": server.url, "check_heart_beat": True}
        hung = asyncio.create_task(http.post("/register_worker", json=body).__aenter__())
        await register(http, "http://a:1")

        assert await post(http, "/list_models") == {"models": ["m"]}
        assert not hung.done()
    (await hung).close()


async def test_relayed_streams_come_frame_by_frame(http: aiohttp.ClientSession) -> None:
    """A controller above ours can ask it like a worker; an unknown model is one error frame."""
    async with ScriptedEngine(Script(model="demo")) as engine:
        await register(http, engine.url, worker_status=STATUS | {"model_names": ["demo"]})
        body = {"model": "demo", "prompt": "안녕", "max_new_tokens": 5, "echo": False}
        async with http.post("/worker_generate_stream", json=body) as answer:
            frames = [json.loads(f) for f in (await answer.read()).split(b"\0") if f]
        assert frames[-1]["finish_reason"] == "length"
        assert "물론이죠" in frames[-1]["text"]

    async with http.post("/worker_generate_stream", json={"model": "x"}) as answer:
        frames = [json.loads(f) for f in (await answer.read()).split(b"\0") if f]
    assert [f["error_code"] for f in frames] == [50005]


async def next_line(stream: aiohttp.ClientResponse) -> Any:
    """The next line of a watch stream that is not empty."""
    while not (line := await stream.content.readline()).strip():
        pass
    return json.loads(line)


async def test_watch_tells_every_change(http: aiohttp.ClientSession) -> None:
    """The watch stream starts with the whole table and tells what each change makes of it."""
    await register(http, "http://a:1")
    async with http.get("/watch") as stream:
        first = json.loads(await stream.content.readline())
        assert [w["name"] for w in first["workers"]] == ["http://a:1"]

        await post(http, "/drain_worker", {"worker_name": "http://a:1"})
        second = await next_line(stream)
        assert second["rows"][0]["state"] == "draining"
        assert second["version"] > first["version"] >= second["since"]
        assert second["epoch"] == first["epoch"]

        await post(http, "/deregister_worker", {"worker_name": "http://a:1"})
        third = await next_line(stream)
        assert third["removed"] == ["http://a:1"]
        assert third["since"] == second["version"]


async def test_engine_keys_go_to_followers_only(http: aiohttp.ClientSession) -> None:
    """The key of an engine rides in the watch stream and is left out of the readable table."""
    await register(http, "http://a:1", kodolly={"engine_url": "http://a:2", "engine_key": "k3y"})
    async with http.get("/workers") as answer:
        assert "k3y" not in await answer.text()
    async with http.get("/watch") as stream:
        assert b"k3y" in await stream.content.readline()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic !!!"}, 401),
        ({"Authorization": "Bearer s3cret"}, 200),
        ({"Authorization": aiohttp.encode_basic_auth("worker", "s3cret")}, 200),
    ],
)
async def test_strangers_cannot_register(headers: dict[str, str], status: int) -> None:
    """With a token set, a call needs it: as Bearer, or as the password of a FastChat worker's URL."""
    app = create_app(controller("s3cret"), "s3cret")
    async with serving(app) as url, aiohttp.ClientSession(url) as http:
        body = {"worker_name": "http://a:1", "check_heart_beat": True, "worker_status": STATUS}
        async with http.post("/register_worker", json=body, headers=headers) as answer:
            assert answer.status == status
        async with http.get("/health") as answer:
            assert answer.status == 200


async def test_a_web_page_cannot_register_a_worker(http: aiohttp.ClientSession) -> None:
    """A page open in the operator's browser is turned away: nothing of ours sends Origin."""
    body = {"worker_name": "http://evil", "check_heart_beat": True, "worker_status": STATUS}
    headers = {"Origin": "http://evil", "Content-Type": "text/plain"}
    async with http.post("/register_worker", data=json.dumps(body), headers=headers) as answer:
        assert answer.status == 403

    assert await post(http, "/list_models") == {"models": []}


async def test_the_token_never_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that answers an error is logged without the headers we sent it."""
    app = create_app(controller("s3cret"), "s3cret")
    headers = {"Authorization": "Bearer s3cret"}
    async with (
        serving(app) as url,
        serving_aiohttp(web.Application()) as worker,  # it has no path but 404
        aiohttp.ClientSession(url, headers=headers) as http,
        http.post(
            "/register_worker", json={"worker_name": worker, "worker_status": None}
        ) as answer,
    ):
        assert answer.status == 400

    assert "no status from" in caplog.text
    assert "s3cret" not in caplog.text
