"""What a worker may say of itself: checked field by field, and one row however its address is spelled."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.apps import serving, serving_aiohttp

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.probe import Prober, is_port_closed
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Registration, WorkerStatus

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    async with serving(create_app(controller)) as url, aiohttp.ClientSession(url) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as answer:
        return answer.status, await answer.json()


def registration(name: Any = "http://a:1", **fields: Any) -> dict[str, Any]:
    return {"worker_name": name, "check_heart_beat": False, "worker_status": STATUS, **fields}


async def rows(http: aiohttp.ClientSession) -> list[str]:
    async with http.get("/workers") as answer:
        return [row["name"] for row in (await answer.json())["workers"]]


def status(**fields: Any) -> dict[str, Any]:
    return registration(worker_status=STATUS | fields)


def block(**fields: Any) -> dict[str, Any]:
    return registration(kodolly=fields)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (registration("http://127.0.0.1:99998"), "worker_name"),
        (registration("http://127.0.0.1:0"), "worker_name"),
        (registration("http://127.0.0.1:65536"), "worker_name"),
        (registration("http://127.0.0.1:２２"), "worker_name"),
        (registration("http://."), "worker_name"),
        (registration(check_heart_beat="maybe"), "check_heart_beat"),
        (registration(worker_status=[]), "worker_status"),
        (registration(kodolly="x"), "kodolly"),
        (registration("http://127.0.0.1:"), "worker_name"),
        (registration("http://127.0.0.1:+5"), "worker_name"),
        (registration("127.0.0.1:21002"), "worker_name"),
        (registration("ftp://a:1"), "worker_name"),
        (registration("http:a:1"), "worker_name"),
        (registration("http://"), "worker_name"),
        (registration("http://:80"), "worker_name"),
        (registration("http://user:pass@a:1"), "worker_name"),
        (registration("http://a:1/path"), "worker_name"),
        (registration("http://a:1?q=1"), "worker_name"),
        (registration("http://a:1#x"), "worker_name"),
        (registration("http://a b:1"), "worker_name"),
        (registration("http://a\n:1"), "worker_name"),
        (registration("http://한글:1"), "worker_name"),
        (registration("http://" + "a" * 64 + ":1"), "worker_name"),
        (registration("http://999.1.1.1:1"), "worker_name"),
        (registration("http://[::1:1"), "worker_name"),
        (registration("http://[::1]x:1"), "worker_name"),
        (registration("http://[fe80::1%25eth0]:1"), "worker_name"),
        (registration("http://" + "a." * 1100 + "b"), "worker_name"),
        (registration(5), "worker_name"),
        (registration(None), "worker_name"),
        (status(model_names=[]), "worker_status.model_names"),
        (status(model_names={"m": 1}), "worker_status.model_names"),
        (status(model_names="m"), "worker_status.model_names"),
        (status(model_names=[5]), "worker_status.model_names.0"),
        (status(model_names=[""]), "worker_status.model_names.0"),
        (status(model_names=["m" * 513]), "worker_status.model_names.0"),
        (status(model_names=["a\nb"]), "worker_status.model_names.0"),
        (status(model_names=["m"] * 257), "worker_status.model_names"),
        (status(speed=0), "worker_status.speed"),
        (status(speed=1e300), "worker_status.speed"),
        (status(queue_length=-1), "worker_status.queue_length"),
        (status(queue_length=2**40), "worker_status.queue_length"),
        (block(engine_url="http://a:99998"), "kodolly.engine_url"),
        (block(engine_url="a:1"), "kodolly.engine_url"),
        (block(engine_key="k\r\nX-Evil: 1"), "kodolly.engine_key"),
        (block(engine_key="열쇠"), "kodolly.engine_key"),
        (block(heart_beat_interval=1e9), "kodolly.heart_beat_interval"),
        (block(context_length=0), "kodolly.context_length"),
        (block(state="happy"), "kodolly.state"),
        (block(stop=[1]), "kodolly.stop.0"),
    ],
)
async def test_a_bad_registration_names_its_field(
    http: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    """It is a 400 that says which field is wrong, and nothing of it enters the table."""
    code, answer = await post(http, "/register_worker", body)
    assert code == 400, answer
    assert answer["error"]["param"] == field
    assert answer["error"]["message"].startswith(f"{field}: ")
    assert await rows(http) == []


@pytest.mark.parametrize("path", ["/receive_heart_beat", "/deregister_worker", "/drain_worker"])
async def test_other_calls_refuse_a_bad_name_too(http: aiohttp.ClientSession, path: str) -> None:
    """A heartbeat, a drain and a goodbye are checked like a registration."""
    body = {"worker_name": "http://a:99998", "queue_length": 1}
    code, answer = await post(http, path, body)
    assert (code, answer["error"]["param"]) == (400, "worker_name")


@pytest.mark.parametrize(
    ("names", "row"),
    [
        (["http://Node-1:21002", "http://node-1:21002/", "HTTP://node-1:21002"], "http://node-1:21002"),
        (["http://a:80", "http://a", "http://A:080/"], "http://a"),
        (["https://a:443/", "https://a", "https://a./"], "https://a"),
        (["http://[::1]:5", "http://[0:0:0:0:0:0:0:1]:5/"], "http://[::1]:5"),
        (["http://[FD00::0A]:5", "http://[fd00:0::a]:5"], "http://[fd00::a]:5"),
        (["http://127.0.0.1:5", "http://127.1:5", "http://[::ffff:127.0.0.1]:5", "http://0x7f.1.:5"], "http://127.0.0.1:5"),
    ],
)  # fmt: skip
async def test_one_worker_is_one_row(
    http: aiohttp.ClientSession, names: list[str], row: str
) -> None:
    """However it spells its address; heartbeats, drain and goodbye find the row by any spelling."""
    for name in names:
        assert (await post(http, "/register_worker", registration(name)))[0] == 200
        beat = {"worker_name": name, "queue_length": 1}
        assert await post(http, "/receive_heart_beat", beat) == (200, {"exist": True})
        assert await post(http, "/drain_worker", {"worker_name": name}) == (200, {"exist": True})
    assert await rows(http) == [row]
    gone = {"worker_name": names[-1]}
    assert await post(http, "/deregister_worker", gone) == (200, {"exist": True})
    assert await rows(http) == []


async def test_names_are_not_looked_up(http: aiohttp.ClientSession) -> None:
    """`localhost` may be another address than 127.0.0.1: they stay two workers."""
    for name in ("http://localhost:5", "http://127.0.0.1:5"):
        await post(http, "/register_worker", registration(name))
    assert await rows(http) == ["http://localhost:5", "http://127.0.0.1:5"]


async def test_an_engine_s_url_has_one_spelling_too(http: aiohttp.ClientSession) -> None:
    """The slash at its end would make `//v1/...` of every path; a prefix stays."""
    body = registration(kodolly={"engine_url": "http://A:22341/engine/", "state": "ready"})
    await post(http, "/register_worker", body)
    async with http.get("/workers") as answer:
        worker = (await answer.json())["workers"][0]
    assert worker["kodolly"]["engine_url"] == "http://a:22341/engine"


async def test_an_endless_status_is_not_read_to_its_end(http: aiohttp.ClientSession) -> None:
    """A worker that is asked for its status may answer a mebibyte and no more."""

    async def endless(_: web.Request) -> web.Response:
        return web.Response(body=b"[" + b" " * 2**21 + b"]")

    app = web.Application()
    app.router.add_post("/worker_get_status", endless)
    async with serving_aiohttp(app) as url:
        body = {"worker_name": url, "check_heart_beat": False}
        code, answer = await post(http, "/register_worker", body)
    assert (code, answer["error"]["param"]) == (400, "worker_status")


@pytest.mark.parametrize("url", ["http://a:99998", "http://[::1", "http://" + "a" * 300, "x", ""])
async def test_no_url_is_too_bad_to_be_probed(url: str) -> None:
    """What cannot be connected to is no proof of a closed port, and no error either."""
    assert await is_port_closed(url, 1.0) is False


async def test_the_prober_outlives_a_row_that_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with one worker, the others are still probed."""

    async def closed(url: str, _: float) -> bool:
        if url == "http://bad":
            raise RuntimeError("broken on purpose")
        return True

    async def never(_: str) -> WorkerStatus | None:
        return None

    monkeypatch.setattr("kodolly.controller.probe.is_port_closed", closed)
    registry = Registry(90, 3)
    for name in ("http://bad", "http://dead"):
        registry.register(Registration(worker_name=name), WorkerStatus(model_names=["m"]))
    await Prober(registry, never, interval=0.01, connect_timeout=5).round()
    assert [row.state.value for row in registry.rows()] == ["ready", "lost"]
