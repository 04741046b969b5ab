"""Who may see /metrics and the lists of what to scrape, on every face."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp
from support.apps import serving
from support.scripted_engine import Script, ScriptedEngine

from kodolly.api.app import create_app as create_api
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.http.metrics import OperatorDoor, is_local
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings, WebSettings, WorkerSettings
from kodolly.web.app import create_guarded_app
from kodolly.worker.app import Worker
from kodolly.worker.app import create_app as create_worker
from kodolly.worker.model import ServedModel

PAGE = (Path(__file__).parents[2] / "docs" / "observe.md").read_text("utf-8")
SECRET, TOKEN = "metrics-secret", "the-token"


def api_app(_: Path) -> ASGIApp:
    return create_api(
        ApiSettings(
            controller="http://127.0.0.1:1",
            client_keys=("client-key",),
            metrics_token=SECRET,
            token=TOKEN,
        )
    )


def controller_app(_: Path) -> ASGIApp:
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), TOKEN)
    extension = Extension.model_validate(
        {"engine_url": "http://h:3", "engine_key": "engine-key", "engine": "vllm"}
        | {"heart_beat_interval": 600}
    )
    controller.registry.register(
        Registration(worker_name="https://h:2", kodolly=extension),
        WorkerStatus(model_names=["demo"]),
    )
    return create_controller(controller, TOKEN, door=OperatorDoor([TOKEN, SECRET]))


def worker_app(scratch: Path) -> ASGIApp:
    settings = WorkerSettings(
        engine="openai", engine_url="http://127.0.0.1:1", token=TOKEN, metrics_token=SECRET
    )
    return create_worker(Worker(settings, scratch), ServedModel("demo", "demo", None), None)


@cache
def page_app(_: Path) -> ASGIApp:
    return create_guarded_app(WebSettings(api="http://127.0.0.1:1", metrics_token=SECRET))


FACES: dict[str, Callable[[Path], ASGIApp]] = {
    "api": api_app,
    "controller": controller_app,
    "worker": worker_app,
    "page": page_app,
}


@pytest.mark.parametrize("name", FACES)
async def test_metrics_are_for_those_with_the_secret(name: str, tmp_path: Path) -> None:
    """The metrics token or the token; not a client's key, nobody without, and it is no other key."""
    async with (
        serving(FACES[name](tmp_path)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        for authorization in ("", "Bearer wrong", "Bearer client-key", "Bearer"):
            answer = await client.get("/metrics", headers={"Authorization": authorization})
            assert answer.status_code == 401
            assert "process_" not in answer.text
        allowed = [SECRET] if name == "page" else [SECRET, TOKEN]
        for secret in allowed:
            answer = await client.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            families = {each.name for each in text_string_to_metric_families(answer.text)}
            assert {"process_resident_memory_bytes", "kodolly_http_requests"} <= families
            own = {each for each in families if each.startswith("kodolly_")}
            assert {each for each in own if f"`{each}" not in PAGE} == set(), "docs/observe.md"
        path = {"api": "/v1/models", "controller": "/watch", "worker": "/worker_get_status"}.get(
            name
        )
        if path is not None:
            method = "POST" if name == "worker" else "GET"
            headers = {"Authorization": f"Bearer {SECRET}"}
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401, "it opens nothing else"


@pytest.mark.parametrize("name", FACES)
async def test_made_up_paths_make_no_series(name: str, tmp_path: Path) -> None:
    """Whatever a stranger asks for is one route, on every face."""
    async with (
        serving(FACES[name](tmp_path)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        for number in range(5):
            await client.get(f"/made-up-{number}/x?{number}")
            await client.request("BREW", f"/v1/models/made-up-{number}")
        headers = {"Authorization": f"Bearer {SECRET}"}
        text = (await client.get("/metrics", headers=headers)).text
    assert "made-up" not in text
    assert "BREW" not in text
    assert 'route="(unknown)"' in text


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("127.0.0.1", 1), True),
        (("::1", 1), True),
        (("::1%lo", 1), True),
        (("10.0.0.1", 1), False),
        (("::", 1), False),
        (None, False),
        (("unix", None), False),
    ],
)
async def test_without_a_secret_only_this_machine_sees_them(
    client: tuple[str, int] | None, local: bool
) -> None:
    """Also where the process is opened to others by name."""
    assert is_local(client) is local
    refusal = OperatorDoor().refusal({"type": "http", "client": client, "headers": []})
    assert (refusal is None) is local
    assert refusal is None or refusal.status_code == 403


async def test_prometheus_is_told_what_to_scrape(tmp_path: Path) -> None:
    """http_sd: a target a worker with its labels, an engine through its worker; no engine key."""
    async with (
        serving(controller_app(tmp_path)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        assert (await client.get("/sd/workers")).status_code == 401
        headers = {"Authorization": f"Bearer {SECRET}"}
        workers = (await client.get("/sd/workers", headers=headers)).json()
        engines = (await client.get("/sd/engines", headers=headers)).text
    (worker,) = workers
    assert worker["targets"] == ["h:2"]
    assert worker["labels"]["__scheme__"] == "https"
    assert worker["labels"]["__metrics_path__"] == "/metrics"
    assert (worker["labels"]["model"], worker["labels"]["engine"]) == ("demo", "vllm")
    assert '"__metrics_path__":"/engine_metrics"' in engines
    assert "engine-key" not in engines


async def test_an_engines_metrics_come_through_its_worker(tmp_path: Path) -> None:
    """With the engine's own key, which the scraper does not know."""
    async with ScriptedEngine(Script(api_key="engine-key")) as engine:
        settings = WorkerSettings(
            engine="openai", engine_url=engine.url, engine_key="engine-key", metrics_token=SECRET
        )
        app = create_worker(Worker(settings, tmp_path), ServedModel("demo", "demo", None), None)
        async with (
            serving(app) as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            assert (await client.get("/engine_metrics")).status_code == 401
            headers = {"Authorization": f"Bearer {SECRET}"}
            answer = await client.get("/engine_metrics", headers=headers)
    assert answer.status_code == 200
    assert list(text_string_to_metric_families(answer.text))
