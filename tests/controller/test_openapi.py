"""The OpenAPI documents of controller and worker: whole, true, and behind the token."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.apps import serving

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.openai import Offer
from kodolly.http.client import new_client
from kodolly.settings import WorkerSettings
from kodolly.worker.app import Worker
from kodolly.worker.app import create_app as create_worker_app

WORKER = WorkerSettings(engine="openai", engine_url="http://127.0.0.1:1", model_name="demo")


def controller_app(token: str | None = None) -> FastAPI:
    return create_app(Controller(Registry(90, 3), Dispatcher("shortest_queue"), token), token)


@pytest.fixture(params=["controller", "worker"])
def document(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The document of one of the two."""
    if request.param == "controller":
        return controller_app().openapi()
    worker = Worker(WORKER, tmp_path)
    return create_worker_app(worker, worker.describe([Offer("demo")]), None).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """No `$ref` dangles, so that generators of clients work."""
    schemas = document["components"]["schemas"]
    refs = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document))
    assert refs
    assert set(refs) <= set(schemas)
    assert json.dumps(document).count('"$ref"') == len(refs)


def test_errors_are_the_ones_that_are_sent(document: dict[str, Any]) -> None:
    """A refusal is a 4xx with our own body; FastAPI's 422 is never sent, and not promised."""
    for path, method, operation in operations(document):
        assert "422" not in operation["responses"], (path, method)
        assert "4XX" in operation["responses"], (path, method)
        assert operation["description"], (path, method)


def test_each_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    """The name is FastChat's; HEAD, which is served as well, is not listed."""
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert {method for _, method, _ in operations(document)} == {"get", "post"}


def test_bodies_name_their_fields() -> None:
    """What FastChat's processes send stands in the document with its fields."""
    document = controller_app().openapi()
    body = document["paths"]["/receive_heart_beat"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    properties = document["components"]["schemas"][schema]["properties"]
    assert {"worker_name", "queue_length", "kodolly"} <= set(properties)


async def test_the_document_needs_the_token_and_no_page_shows_it() -> None:
    """The document is served; pages that would load scripts from other hosts are not there."""
    async with serving(controller_app("s3cret")) as url, new_client() as client:
        assert (await client.get(f"{url}/openapi.json")).status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        answer = await client.get(f"{url}/openapi.json", headers=headers)
        assert answer.status_code == 200
        assert answer.json()["info"]["title"] == "KoDolly controller"
        for path in ("/docs", "/redoc"):
            assert (await client.get(url + path, headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/register_worker", {"worker_name": "http://a:1", "worker_status": {"model_names": ["m"]}}),
        ("POST", "/receive_heart_beat", {"worker_name": "http://a:1", "queue_length": 1}),
        ("POST", "/get_worker_address", {"model": "m"}),
        ("POST", "/list_models", None),
        ("POST", "/worker_get_status", None),
        ("POST", "/drain_worker", {"worker_name": "http://a:1"}),
        ("GET", "/workers", None),
        ("GET", "/test_connection", None),
    ],
)  # fmt: skip
async def test_answers_have_the_fields_of_the_document(method: str, path: str, body: Any) -> None:
    """A 200's fields are those that the document promises, no more and no less."""
    app = controller_app()
    operation = app.openapi()["paths"][path][method.lower()]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    async with serving(app) as url, new_client() as client:
        answer: httpx.Response = await client.request(method, url + path, json=body)
    assert answer.status_code == 200
    if "$ref" in schema:
        model = app.openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert set(answer.json()) == set(model["properties"])
    else:
        assert isinstance(answer.json(), {"string": str}.get(schema.get("type"), type(None)))
