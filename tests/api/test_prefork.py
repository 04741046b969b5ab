"""Real API processes: several on one port, ended and replaced without harm to anybody."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest
from support.apps import serving
from support.processes import Process, eventually, free_port, start, wait_http
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.http.downstream.protocol import FIRST_REQUEST_GRACE
from kodolly.protocol.wire import Extension, Registration, WorkerStatus

ROOT = Path(__file__).parents[2]
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "안녕"}],
    "stream": True,
}


@asynccontextmanager
async def engine_and_controller(script: Script) -> AsyncIterator[tuple[ScriptedEngine, str]]:
    """A scripted engine as the one worker of a real controller."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    async with ScriptedEngine(script) as engine, serving(create_app(controller)) as url:
        extension = Extension(engine_url=engine.url, heart_beat_interval=600, context_length=9999)
        controller.registry.register(
            Registration(worker_name=engine.url, kodolly=extension),
            WorkerStatus(model_names=["demo"]),
        )
        yield engine, url
        controller.stopping.set()


@contextmanager
def api(controller: str, *flags: str) -> Iterator[tuple[Process, str]]:
    port = free_port()
    argv = [sys.executable, "-m", "kodolly", "api", "--port", str(port)]
    with start([*argv, "--controller", controller, *flags], cwd=ROOT) as process:
        yield process, f"http://127.0.0.1:{port}"


async def is_ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def ask(url: str) -> str:
    """The raw stream of one chat, on a connection of its own."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=CHAT) as answer,
    ):
        return (await answer.read()).decode()


async def has_counted(url: str, requests: int) -> bool:
    """Whether the port's processes have counted so many requests together, whichever answers."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        line = f'kodolly_requests_total{{model="demo",outcome="ok"}} {requests}\n'
        return line in await answer.text()


async def test_sigterm_finishes_what_it_has() -> None:
    """Readiness goes first, requests are still taken for a moment, and no answer is cut."""
    async with engine_and_controller(Script(token_delay=0.05)) as (engine, controller):
        with api(controller, "--drain-delay", "30") as (process, url):
            await eventually(lambda: is_ready(url))
            first = asyncio.create_task(ask(url))
            await eventually(lambda: engine.running == 1)
            os.kill(process.pid, signal.SIGTERM)
            await eventually(lambda: not_ready(url))
            asking = asyncio.create_task(ask(url))
            await eventually(lambda: len(engine.requests) == 2)
            os.kill(process.pid, signal.SIGTERM)  # the second one ends the delay
            late = await asking
            assert (await first).endswith("data: [DONE]\n\n")
            assert late.endswith("data: [DONE]\n\n")
            await eventually(lambda: not process.running)
            assert process.popen.returncode == 0


async def not_ready(url: str) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/ready") as answer:
        assert answer.headers.get("Connection") == "close" or answer.status == 200
        return answer.status == 503


async def test_an_answer_that_outlasts_the_drain_is_told_so() -> None:
    """At the end of its time a process says why it stops, in an event and not by a cut."""
    async with engine_and_controller(Script(token_delay=0.05, length=2000)) as (engine, controller):
        with api(controller, "--drain-timeout", "1") as (process, url):
            await eventually(lambda: is_ready(url))
            asking = asyncio.create_task(ask(url))
            await eventually(lambda: engine.running == 1)
            os.kill(process.pid, signal.SIGTERM)
            assert '"code":"shutting_down"' in await asking
            await eventually(lambda: engine.running == 0)


@pytest.fixture
def children() -> Any:
    def of(process: Process) -> list[int]:
        return sorted(child.pid for child in psutil.Process(process.pid).children())

    return of


SLOW = 120.0  # seconds: several new processes, one after the other, on a busy machine


async def test_several_processes_share_a_port_and_come_back(children: Any) -> None:
    """A killed process is replaced; SIGHUP replaces all; SIGTERM ends all. Nobody is refused."""
    async with engine_and_controller(Script(token_delay=0.01)) as (_, controller):
        with api(controller, "--processes", "2") as (process, url):
            await eventually(lambda: is_ready(url))
            await eventually(lambda: len(children(process)) == 2)
            before = children(process)
            for _ in range(3):
                await ask(url)
            # Once a process of them tells the sum, their parent knows it.
            await eventually(lambda: has_counted(url, 3))
            os.kill(before[0], signal.SIGKILL)
            await eventually(lambda: len(set(children(process)) - {before[0]}) == 2, SLOW)
            assert await has_counted(url, 3), "what a process had counted outlives it"

            asking = True

            async def keep_asking() -> int:
                asked = 0
                while asking:
                    begun = time.monotonic()
                    try:
                        assert (await ask(url)).endswith("data: [DONE]\n\n")
                    except aiohttp.ClientOSError:
                        # Only to one that connected and then, paused itself, did not ask.
                        assert time.monotonic() - begun > FIRST_REQUEST_GRACE
                        continue
                    asked += 1
                return asked

            clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
            old = set(children(process))
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: not old & set(children(process)), SLOW)
            await eventually(lambda: len(children(process)) == 2, SLOW)
            asking = False
            assert all(await asyncio.gather(*clients))
            os.kill(process.pid, signal.SIGTERM)
            await eventually(lambda: not process.running)
            assert process.popen.returncode == 0


async def test_sighup_replaces_a_single_process_under_its_streams(children: Any) -> None:
    """Twice in a row: the port answers all the while, and a stream begun before is whole."""
    script = Script(token_delay=0.05, length=300)
    async with engine_and_controller(script) as (engine, controller):
        with api(controller) as (process, url):
            await eventually(lambda: is_ready(url))
            asking = asyncio.create_task(ask(url))
            await eventually(lambda: engine.running == 1)
            seen = set(children(process))

            def has_more(process: Process, than: set[int]) -> bool:
                return bool(set(children(process)) - than)

            for _ in range(2):
                os.kill(process.pid, signal.SIGHUP)
                await eventually(partial(has_more, process, set(seen)), SLOW)
                seen |= set(children(process))
                await eventually(partial(is_ready, url))
            assert (await asking).endswith("data: [DONE]\n\n")
            await eventually(lambda: len(children(process)) == 1)
            assert len(seen) == 3
            assert process.running


def test_what_is_wrong_with_the_settings_is_said_once(tmp_path: Path) -> None:
    """An empty file of keys ends the command with one line; no process is started over and over."""
    (tmp_path / "keys").write_text("\n")
    argv = [sys.executable, "-m", "kodolly", "api", "--port", str(free_port())]
    argv += ["--client-keys-file", str(tmp_path / "keys")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "--client-keys-file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


async def test_nobody_is_let_in_to_wait_for_an_end(children: Any) -> None:
    """While the last answers run a new connection is refused, so that its client tries elsewhere."""
    script = Script(token_delay=0.05, length=2000)
    async with engine_and_controller(script) as (engine, controller):
        with api(controller, "--processes", "2") as (process, url):
            await eventually(lambda: is_ready(url))
            asking = asyncio.create_task(ask(url))
            await eventually(lambda: engine.running == 1)
            os.kill(process.pid, signal.SIGTERM)
            await eventually(lambda: refuses(url))
            assert not asking.done()
            asking.cancel()


async def refuses(url: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http,
            http.get(f"{url}/health") as answer,
        ):
            await answer.read()
    except aiohttp.ClientConnectorError:
        return True
    except TimeoutError:
        raise AssertionError("let in, and left to wait") from None
    except aiohttp.ClientError:  # in the moment of closing
        pass
    return False


async def test_processes_end_with_their_parent(children: Any) -> None:
    """After SIGKILL of the parent nobody holds the port."""
    async with engine_and_controller(Script()) as (_, controller):
        with api(controller, "--processes", "2") as (process, url):
            await eventually(lambda: is_ready(url))
            family = [psutil.Process(pid) for pid in children(process)]
            os.kill(process.pid, signal.SIGKILL)
            await eventually(lambda: not any(child.is_running() for child in family))


def test_a_taken_port_is_named() -> None:
    """Two parents on one port: the second says which port it could not have."""
    port = free_port()
    argv = [sys.executable, "-m", "kodolly", "api", "--processes", "2", "--port", str(port)]
    with start(argv, cwd=ROOT) as first:
        wait_http(f"http://127.0.0.1:{port}/health", process=first)
        second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0
    assert f"127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr
