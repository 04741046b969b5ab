"""Odd streams, requests and registrations that lie beside the project, each sent as it stands."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.processes import Process, eventually, free_port, start, wait_http
from support.shared_data import shared_cases

from kodolly.protocol.wire import Extension, Registration, WorkerStatus

from .conftest import Stack

EMBEDDED = Path(__file__).parents[2] / "adapters/kodolly_adapters/embedded/kodolly-ko-8m"
CONTENT = re.compile(r'"content":"([^"]*)"')
QUESTION = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "안녕"}]}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
SCHEMA = {"response_format": {"type": "json_object"}}


async def post(url: str, body: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("more", [{}, TOOLS, SCHEMA], ids=["plain", "tools", "schema"])
@pytest.mark.parametrize("size", [10**6, 1], ids=["whole", "bytes"])
@pytest.mark.parametrize("path", shared_cases("sse"))
async def test_a_stream_comes_out_once_or_as_a_failure(
    stack: Stack, engines: Callable[..., Any], path: Path, size: int, more: dict[str, Any]
) -> None:
    """Its whole text and one [DONE]; of a failed one the text, an error event and no [DONE]."""
    wire = path.read_bytes()
    requests = await engines(wire, size)
    status, body = await post(f"{stack.url}/v1/chat/completions", QUESTION | more)
    assert status == 200, body
    assert "".join(CONTENT.findall(body)) == "".join(CONTENT.findall(wire.decode()))
    failed = path.stem.startswith("error")
    assert ('"worker_lost"' in body) == failed
    assert body.count("data: [DONE]\n\n") == (not failed)
    assert len(requests) == 1


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The transformers engine with the model that comes with KoDolly."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    argv = [sys.executable, "-m", "kodolly.engines.transformers", "--model", str(EMBEDDED)]
    flags = ["--served-model-name", EMBEDDED.name, "--port", str(port), "--threads", "1"]
    log = tmp_path_factory.mktemp("log") / "engine.log"
    engine: Process
    with start([*argv, *flags], log=log) as engine:
        wait_http(f"{url}/health", 300, process=engine)
        yield url


@pytest.mark.parametrize("path", shared_cases("requests"))
async def test_a_conversation_is_answered_or_its_field_named(
    stack: Stack, embedded: str, path: Path
) -> None:
    """Every conversation gets an answer, streamed and whole; a field of the wrong type is a 400."""
    extension = Extension(engine_url=embedded, heart_beat_interval=600, context_length=1024)
    stack.controller.registry.register(
        Registration(worker_name=embedded, kodolly=extension),
        WorkerStatus(model_names=[EMBEDDED.name]),
    )
    await eventually(stack.is_followed)
    request = json.loads(path.read_bytes())
    for stream in (False, True):
        body = request | {"stream": stream, "max_tokens": 4}
        status, answer = await post(f"{stack.url}/v1/chat/completions", body)
        if "response_format" in request:
            assert (status, json.loads(answer)["error"]["param"]) == (400, "response_format")
        else:
            assert status == 200, answer
            assert "error" not in answer


@pytest.mark.parametrize("path", shared_cases("registrations"))
async def test_a_registration_is_one_row_or_refused(stack: Stack, path: Path) -> None:
    """A port that is none is a 400; a worker that comes by two spellings is one row."""
    body = json.loads(path.read_bytes())
    name = body["worker_name"].rstrip("/")
    answers = [
        await post(f"{stack.controller_url}/register_worker", body | {"worker_name": each})
        for each in (body["worker_name"], name)
    ]
    rows = [row.name for row in stack.controller.registry.rows()]
    if path.stem == "reg_bad_port":
        assert [status for status, _ in answers] == [400, 400], answers
        assert rows == []
    else:
        assert [status for status, _ in answers] == [200, 200], answers
        assert rows == [name]
