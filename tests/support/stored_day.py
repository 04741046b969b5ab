"""A whole stack that keeps answers: controller, workers before scripted engines, two API processes on one store."""

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from support.postgres import Postgres
from support.processes import Process, free_port, start, wait_http

MODEL, LENGTH, PACE = "demo", 700, 0.02  # about 14 s of text
SCRIPT: dict[str, Any] = {"length": LENGTH, "token_delay": PACE, "numbered": True}
QUESTION = "긴 이야기를 해 줘"
TIMEOUT = 90.0
STORE = "store.sqlite3"
DELTAS = ("response.output_text.delta", "response.function_call_arguments.delta")
HOME = Path(__file__).parents[1]


@dataclass
class Day:
    """The processes by name, and how each is started again."""

    controller: str = ""
    apis: list[str] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    folder: Path = Path()
    database: Postgres | None = None  # None: a SQLite file

    def start(self, name: str, *command: str) -> None:
        """Starts a process, or starts it again."""
        if command:
            self.commands[name] = list(command)
        self.processes[name] = start(
            [sys.executable, "-m", *self.commands[name]],
            env={"PYTHONPATH": str(HOME)},
            log=self.folder / f"{name}.log",
        )

    def kill(self, name: str) -> None:
        """SIGKILL to the process and all it started."""
        self._signal(name, signal.SIGKILL)
        self.processes[name].kill()

    def wait(self) -> None:
        """Returns once both API processes have workers."""
        for url in self.apis:
            wait_http(f"{url}/ready", timeout=TIMEOUT)

    def log(self, name: str) -> str:
        """The end of its log."""
        return self.processes[name].output()

    async def stop(self, name: str) -> None:
        """SIGSTOP, at a moment when it holds no lock of a SQLite file: that would stop everybody."""
        while True:
            self._signal(name, signal.SIGSTOP)
            await asyncio.sleep(0.1)
            if self.database is not None or self._is_unlocked():
                return
            self._signal(name, signal.SIGCONT)
            await asyncio.sleep(0.03)

    def _is_unlocked(self) -> bool:
        file = sqlite3.connect(self.folder / STORE, timeout=1, isolation_level=None)
        with contextlib.closing(file), contextlib.suppress(sqlite3.OperationalError):
            file.execute("BEGIN IMMEDIATE")
            return True
        return False

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        """To the process and to those below it, which have sessions of their own."""
        top = psutil.Process(self.processes[name].pid)
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextlib.contextmanager
def stored_day(folder: Path, database: Postgres | None) -> Iterator[Day]:
    """The stack with two workers, all ready; everything is dead afterwards."""
    url = asyncio.run(database.new_database()) if database else f"sqlite:///{folder / STORE}"
    day = Day(folder=folder, database=database)
    ports = [free_port() for _ in range(7)]
    day.controller = f"http://127.0.0.1:{ports[0]}"
    controller = ("--controller", day.controller)
    try:
        day.start("controller", "kodolly", "controller", "--port", str(ports[0]))
        wait_http(f"{day.controller}/health", process=day.processes["controller"])
        for number, (engine, worker, api) in enumerate((ports[1:4], ports[4:7]), start=1):
            engine_url = f"http://127.0.0.1:{engine}"
            engine_words = ("--port", str(engine), "--model", MODEL, "--script", json.dumps(SCRIPT))
            day.start(f"engine{number}", "support.scripted_engine", *engine_words)
            wait_http(f"{engine_url}/health")
            attached = ("--engine", "openai", "--engine-url", engine_url)
            beats = ("--port", str(worker), "--heart-beat-interval", "1")
            day.start(f"worker{number}", "kodolly", "worker", *attached, *beats, *controller)
            stores = ("--port", str(api), "--store", url, "--drain-timeout", "5")
            day.start(f"api{number}", "kodolly", "api", *stores, *controller)
            day.apis.append(f"http://127.0.0.1:{api}")
        day.wait()
        yield day
    finally:
        for process in day.processes.values():
            process.stop()


@dataclass
class Phone:
    """A client that attaches again wherever it can, after the last event it has."""

    day: Day
    response_id: str = ""
    last: int = -1
    text: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    attached: int = 0

    async def create(
        self, http: httpx.AsyncClient, api: str, leave_after: int = 10**9, **fields: Any
    ) -> None:
        """Creates the answer, and leaves after some characters. `fields`: of the request."""
        body = {"model": MODEL, "input": QUESTION, "stream": True, **fields}
        async with http.stream("POST", f"{api}/v1/responses", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for _ in self._events(response):
                if len(self.text) >= leave_after:
                    return

    async def follow(self, http: httpx.AsyncClient, first: int = 0) -> None:
        """Reads to the end, by way of one API process after the other."""
        number = first
        while not self.end:
            api = self.day.apis[number % len(self.day.apis)]
            number += 1
            query = {"stream": "true", "starting_after": str(self.last)}
            url = f"{api}/v1/responses/{self.response_id}"
            with contextlib.suppress(httpx.HTTPError):
                async with http.stream("GET", url, params=query) as response:
                    if response.status_code == 200:
                        self.attached += 1
                        async for _ in self._events(response):
                            pass
            await asyncio.sleep(0.2)

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert event["sequence_number"] > self.last, "an event came twice"
            self.last = event["sequence_number"]
            if event["type"] == "response.created":
                self.response_id = event["response"]["id"]
            if event["type"] in DELTAS:
                self.text += event["delta"]
            if "response" in event and event["response"]["status"] != "in_progress":
                self.end = event
            yield event


async def reference(day: Day, http: httpx.AsyncClient, api: str = "") -> str:
    """The answer as a chat gives it when nothing happens."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    answer = await http.post(f"{api or day.apis[0]}/v1/chat/completions", json=body)
    return str(answer.json()["choices"][0]["message"]["content"])
