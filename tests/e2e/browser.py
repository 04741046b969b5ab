"""The page in a real Chromium: the stack behind it, and a person's hands on it."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from support.processes import Process, free_port, start, wait_http, wait_until

CHROMIUM = Path(os.environ.get("KODOLLY_CHROMIUM", "/usr/bin/chromium"))
# As root a browser runs only without its sandbox; the rest keeps it from calling home.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SLOW = 60.0  # seconds for a process or a page on a machine that has other work


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


class Worker:
    """A scripted engine that registers as a KoDolly worker; it can be stopped and started."""

    def __init__(self, controller: str, model: str = "demo") -> None:
        self.controller, self.model, self.port = controller, model, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Process | None = None

    def start(self) -> None:
        program = [sys.executable, "-m", "support.scripted_engine", "--port", str(self.port)]
        options = ["--model", self.model, "--record", "--heart-beat", "1"]
        self.process = start(
            [*program, *options, "--register-kodolly", self.controller],
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        wait_http(f"{self.url}/health", timeout=SLOW, process=self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def script(self, **fields: Any) -> None:
        """Changes what it answers from now on."""
        data = json.dumps(fields).encode()
        request = urllib.request.Request(f"{self.url}/scripted", data, method="POST")
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=10).close()

    def seen(self) -> dict[str, Any]:
        """Its counters and every request it saw."""
        with urllib.request.urlopen(f"{self.url}/scripted", timeout=10) as answer:
            counters: dict[str, Any] = json.load(answer)
        return counters

    def asked(self) -> list[str]:
        """Contents of the messages of the last request."""
        return [message["content"] for message in self.seen()["requests"][-1]["body"]["messages"]]


class Stack:
    """Controller, API and page on free ports."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.ports = {name: free_port() for name in ("controller", "api", "web")}
        self.processes: dict[str, Process] = {}
        self._exit = ExitStack()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def __enter__(self) -> Self:
        self.run("controller")
        self.run("api", "--controller", self.url("controller"))
        self.run("web", "--api", self.url("api"))
        for name, path in (("controller", "/health"), ("api", "/health"), ("web", "/")):
            wait_http(self.url(name) + path, timeout=SLOW, process=self.processes[name])
        return self

    def run(self, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "kodolly", name, "--port", str(self.ports[name]), *options]
        self.processes[name] = start(command, log=self.logs / f"{name}.log")
        self._exit.callback(self.processes[name].stop)

    def __exit__(self, *_: object) -> None:
        self._exit.close()


class Hands:
    """What a person does on one page, and what they see."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(SLOW * 1000)
        self.failed: list[str] = []
        page.on("requestfailed", lambda request: self.failed.append(str(request.failure)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self) -> None:
        """Opens the page; once more if this machine's network changed while it loaded.

        Chromium then drops every request, on loopback too; containers and namespaces coming up
        beside the test are such a change.
        """
        self.page.goto(self.url)
        wait_until(lambda: self.send.is_visible() or self._dropped(), SLOW, what="the page")
        if self._dropped():
            self.errors.clear()
            self.page.goto(self.url)
        expect(self.send).to_be_visible(timeout=SLOW * 1000)

    def _dropped(self) -> bool:
        return any("ERR_NETWORK" in failure for failure in self.failed)

    @property
    def input(self) -> Locator:
        return self.page.locator("#kd-input textarea")

    @property
    def send(self) -> Locator:
        return self.page.locator("#kd-input .submit-button")

    @property
    def stop(self) -> Locator:
        return self.page.locator("#kd-input .stop-button")

    @property
    def answers(self) -> Locator:
        return self.page.locator("#kd-chat .bot-row")

    @property
    def questions(self) -> Locator:
        return self.page.locator("#kd-chat .user-row")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def ask(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def ask_and_wait(self, text: str) -> None:
        """Asks and waits for the end of the answer."""
        self.ask(text)
        expect(self.questions.last).to_contain_text(text)
        self.idle()

    def idle(self) -> None:
        expect(self.send).to_be_visible(timeout=SLOW * 1000)

    def see(self, text: str) -> None:
        """Waits until `text` is on the page."""
        wait_until(lambda: text in self.text(), SLOW, what=f"{text!r} on the page")

    def text(self) -> str:
        return self.page.inner_text("body")

    def choose_model(self) -> None:
        self.page.locator("#kd-model input").click()

    def overflow(self) -> int:
        """Pixels the page is wider than the window."""
        script = "document.scrollingElement.scrollWidth - innerWidth"
        return int(self.page.evaluate(script))
