"""Bodies are read only where they are declared as JSON: any page may send a form or a plain text."""

import httpx
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp
from support.apps import serving

from kodolly.api.app import create_app as create_api
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.errors import NotJson
from kodolly.http.bodies import require_json
from kodolly.settings import ApiSettings

REFUSED = [
    *(None, "", "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded"),
    *("multipart/form-data; boundary=application/json", "application/jsonp", "text/json", "+json"),
    *("application/octet-stream", "application/json,text/plain", "\xff"),
]
READ = [
    *(
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;",
    ),
    *("application/vnd.api+json", " application/json "),
]


def declared(kind: str | None) -> Request:
    headers = [] if kind is None else [(b"content-type", kind.encode("latin-1"))]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize("kind", REFUSED)
def test_other_types_are_refused_with_what_to_send(kind: str | None) -> None:
    """The message says what to write, with curl too."""
    with pytest.raises(NotJson, match=r"Content-Type: application/json.*--json") as refusal:
        require_json(declared(kind).scope["headers"])
    assert refusal.value.message.isascii()


@pytest.mark.parametrize("kind", READ)
def test_json_is_read_however_it_is_written(kind: str) -> None:
    """Parameters, capitals and +json types are JSON."""
    require_json(declared(kind).scope["headers"])


@pytest.mark.parametrize("face", ["api", "controller"])
async def test_only_json_is_read(face: str) -> None:
    """A form or plain text of JSON does nothing: 415, in the envelope of errors."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    app: ASGIApp
    if face == "api":
        app = create_api(ApiSettings(controller="http://127.0.0.1:1"))
        paths = ["/v1/chat/completions", "/v1/completions"]
    else:
        app = create_controller(controller)
        paths = [
            "/register_worker",
            "/receive_heart_beat",
            "/drain_worker",
            "/worker_generate_stream",
        ]
    body = b'{"worker_name": "http://a:1", "worker_status": {"model_names": ["m"]}, "model": "m"}'
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        for path in paths:
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                answer = await client.post(path, content=body, headers={"Content-Type": kind})
                assert answer.status_code == 415, path
                assert answer.json()["error"]["code"] == "unsupported_media_type"
    assert controller.registry.rows() == []
