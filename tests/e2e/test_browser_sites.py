"""A stranger's page in a real Chromium, on an origin of its own and under DNS rebinding. `make test-browser`.

Every process runs without keys and tokens, as on a developer's machine: nothing but Host, Origin and content type
stands between the page and them.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("playwright")

from e2e.browser import CHROMIUM, FLAGS, SLOW, Stack, Worker
from playwright.sync_api import Browser, Page, sync_playwright
from support.processes import free_port, start, wait_http
from support.tiny_models import make_tiny_llama

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no {CHROMIUM}: install chromium or set KODOLLY_CHROMIUM"
    ),
]

START = 300.0  # seconds for a model on a busy machine
# What a page tries on each face: a path to read, and a POST that would do something.
REGISTER = {"worker_name": "http://127.0.0.1:9", "worker_status": {"model_names": ["theirs"]}}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
GENERATE = {"model": "demo", "prompt": "hi", "max_tokens": 2}
JOIN = {"data": [], "fn_index": 0, "session_hash": "theirs"}
TARGETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "controller": ("/watch", "/register_worker", REGISTER),
    "api": ("/v1/models", "/v1/chat/completions", CHAT),
    "web": ("/config", "/gradio_api/queue/join", JOIN),
    "worker": ("/ready", "/worker_generate", GENERATE),
    "engine": ("/v1/models", "/v1/completions", GENERATE),
}
# What fetch gave: its type and status and the text's beginning, or "failed".
ATTEMPT = """async ([url, options]) => {
  try {
    const answer = await fetch(url, options)
    const reader = answer.body && answer.body.getReader()
    const part = reader && (await reader.read()).value
    if (reader) await reader.cancel()
    return [answer.type, answer.status, part ? new TextDecoder().decode(part) : ""]
  } catch (error) { return ["failed", 0, ""] }
}"""


class Blank(BaseHTTPRequestHandler):
    """The stranger's own site: one empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>theirs</title>")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Ports of every process, all without keys, with a scripted engine behind the API."""
    with ExitStack() as exits:
        stack = exits.enter_context(Stack(tmp_path_factory.mktemp("logs")))
        scripted = Worker(stack.url("controller"))
        scripted.start()
        exits.callback(scripted.stop)
        ports = {
            **stack.ports,
            "worker": free_port(),
            "engine": free_port(),
            "script": scripted.port,
        }
        kodolly = [sys.executable, "-m", "kodolly"]
        attached = [
            "--engine",
            "openai",
            "--engine-url",
            scripted.url,
            "--port",
            str(ports["worker"]),
        ]
        model = make_tiny_llama(tmp_path_factory.mktemp("models") / "llama")
        engine = [*kodolly[:2], "kodolly.engines.transformers", "--model", str(model)]
        controller = ["--controller", stack.url("controller")]
        for name, argv in (
            ("worker", [*kodolly, "worker", *attached, *controller]),
            ("engine", [*engine, "--served-model-name", "demo", "--port", str(ports["engine"])]),
        ):
            process = exits.enter_context(start(argv, log=stack.logs / f"{name}.log"))
            wait_http(f"http://127.0.0.1:{ports[name]}/health", timeout=START, process=process)
        yield ports


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for which the stranger's names lead to this machine."""
    rules = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def foreign(page: Page) -> Iterator[Page]:
    """A page on an origin of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page.goto(f"http://theirs.example:{server.server_port}/")
    yield page
    server.shutdown()
    server.server_close()


def attempt(page: Page, url: str, **options: Any) -> tuple[str, int, str]:
    kind, status, text = page.evaluate(ATTEMPT, [url, options])
    return kind, status, text


def work_done(faces: dict[str, int]) -> tuple[Any, ...]:
    """What a stranger's request would change: the table of workers, and requests at both engines."""
    read = urllib.request.urlopen
    with read(f"http://127.0.0.1:{faces['controller']}/workers", timeout=SLOW) as answer:
        names = sorted(row["name"] for row in json.load(answer)["workers"])
    with read(f"http://127.0.0.1:{faces['script']}/scripted", timeout=SLOW) as answer:
        chats = [each for each in json.load(answer)["requests"] if "hi" in json.dumps(each)]
    with read(f"http://127.0.0.1:{faces['engine']}/metrics", timeout=SLOW) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if "prompt_tokens" in line or "requests_total" in line]
    return names, len(chats), counts


@pytest.mark.parametrize("face", TARGETS)
def test_a_page_of_another_origin_reads_and_does_nothing(
    foreign: Page, faces: dict[str, int], face: str
) -> None:
    """By fetch of every mode and type, and by a form: nothing is readable, nothing is done."""
    reading, doing, body = TARGETS[face]
    before = work_done(faces)
    text = json.dumps(body)
    for host in ("127.0.0.1", "localhost", "them.example"):
        url = f"http://{host}:{faces[face]}"
        assert attempt(foreign, url + reading)[0] == "failed"
        assert attempt(foreign, url + reading, mode="no-cors")[2] == ""
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": kind}
            for mode in ("cors", "no-cors"):
                options = {"method": "POST", "mode": mode, "headers": headers, "body": text}
                assert attempt(foreign, url + doing, **options)[0] in ("failed", "opaque")
        with foreign.expect_navigation():
            foreign.evaluate(
                """([action, text]) => {
                  const form = document.createElement("form")
                  Object.assign(form, {action, method: "POST", enctype: "text/plain"})
                  const input = document.createElement("input")
                  Object.assign(input, {name: text.slice(0, -1) + ', "x": "', value: '"}'})
                  form.append(input); document.body.append(form); form.submit()
                }""",
                [url + doing, text],
            )
        assert "theirs" not in foreign.title()
        foreign.go_back()
    assert work_done(faces) == before


@pytest.mark.parametrize("face", TARGETS)
def test_a_page_whose_name_was_rebound_reads_and_does_nothing(
    page: Page, faces: dict[str, int], face: str
) -> None:
    """To the browser the server is the page's own; every request is a 421 that says which option to set."""
    reading, doing, body = TARGETS[face]
    before = work_done(faces)
    theirs = f"http://rebound.example:{faces[face]}"

    # The refusal is a document of their origin, so scripts run in it as in a page that was rebound.
    assert page.goto(f"{theirs}/").status == 421  # type: ignore[union-attr]
    headers = {"Content-Type": "application/json"}
    for path, options in (
        (reading, {}),
        ("/", {}),
        (doing, {"method": "POST", "headers": headers, "body": json.dumps(body)}),
    ):
        kind, status, text = attempt(page, path, **options)
        assert (kind, status) == ("basic", 421)
        assert "--allowed-hosts rebound.example" in text
    assert page.goto(theirs + reading).status == 421  # type: ignore[union-attr]
    assert work_done(faces) == before


def test_the_same_attempts_succeed_from_a_page_of_their_own(
    page: Page, faces: dict[str, int]
) -> None:
    """The attempts above fail for want of a name and an origin, not because they are broken."""
    own = f"http://localhost:{faces['api']}"
    page.route(f"{own}/theirs", lambda route: route.fulfill(content_type="text/html", body=""))
    page.goto(f"{own}/theirs")
    before = work_done(faces)
    headers = {"Content-Type": "application/json"}
    assert "demo" in attempt(page, "/v1/models")[2]
    body = json.dumps(CHAT)
    done = attempt(page, "/v1/chat/completions", method="POST", headers=headers, body=body)
    assert done[:2] == ("basic", 200)
    assert work_done(faces)[1] == before[1] + 1
