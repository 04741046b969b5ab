"""What controller and worker tell to whoever has no token: no secret, on any path."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route
from support.apps import serving

from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import WorkerSettings
from kodolly.worker.app import Worker
from kodolly.worker.app import create_app as create_worker
from kodolly.worker.model import ServedModel

TOKEN, ENGINE_KEY = "the-token", "the-engine-key"
OPEN = {"/health", "/test_connection", "/ready"}


def face(name: str, scratch: Path, token: str | None) -> Any:
    """The application of a controller that knows one worker, or of a worker, with secrets to lose."""
    if name == "worker":
        settings = WorkerSettings(
            engine="openai", engine_url="http://127.0.0.1:1", engine_key=ENGINE_KEY, token=token
        )
        return create_worker(Worker(settings, scratch), ServedModel("demo", "demo", None), None)
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), token)
    extension = Extension.model_validate(
        {"engine_url": "http://127.0.0.1:1", "engine_key": ENGINE_KEY, "heart_beat_interval": 600}
    )
    registration = Registration(worker_name="http://127.0.0.1:1", kodolly=extension)
    controller.registry.register(registration, WorkerStatus(model_names=["demo"]))
    return create_controller(controller, token)


def paths_of(app: Any) -> list[tuple[str, str]]:
    """Every method and path, and one that is none."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = {(method, route.path) for route in routes for method in route.methods or ()}
    return sorted({*found, ("GET", "/nowhere"), ("POST", "/nowhere")})


@pytest.mark.parametrize("name", ["controller", "worker"])
async def test_without_the_token_no_path_tells_a_secret(name: str, tmp_path: Path) -> None:
    """401 everywhere but at the health checks, and neither token nor engine key in any answer."""
    app = face(name, tmp_path, TOKEN)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for method, path in paths_of(app):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}):
                answer = await client.request(method, path, headers=headers)
                assert path in OPEN or answer.status_code == 401, (method, path)
                said = answer.text + repr(answer.headers)
                assert TOKEN not in said
                assert ENGINE_KEY not in said


@pytest.mark.parametrize("headers", [{"Host": "rebound.example"}, {"Origin": "http://a.example"}])
async def test_a_browser_gets_no_engine_key_even_without_a_token(
    headers: dict[str, str], tmp_path: Path
) -> None:
    """/watch tells keys to the API; a page gets there by no name and from no origin."""
    async with (
        serving(face("controller", tmp_path, None)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        answer = await client.get("/watch", headers=headers)
    assert answer.status_code in (403, 421)
    assert ENGINE_KEY not in answer.text


async def test_people_see_no_engine_key(tmp_path: Path) -> None:
    """Every path that people and scripts read leaves it out, with the token too."""
    app = face("controller", tmp_path, TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, headers=headers) as client,
    ):
        for method, path in paths_of(app):
            if path == "/watch":  # the API's: it needs the key
                continue
            answer = await client.request(method, path, json={"model": "demo"})
            assert ENGINE_KEY not in answer.text, path
            assert TOKEN not in answer.text, path
