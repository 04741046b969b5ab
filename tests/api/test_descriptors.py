"""File descriptors: all that the machine allows are used, and a lack of them is nobody else's fault."""

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.processes import eventually, free_port, start
from support.scripted_engine import Script, ScriptedEngine

from kodolly.engines.client import EngineClient
from kodolly.errors import NoDescriptor
from kodolly.http.client import new_client
from kodolly.worker.health import EngineMonitor, HealthLimits

from .conftest import Stack
from .test_prefork import ROOT, engine_and_controller, is_ready

LIMITED = "import os,resource,sys; resource.setrlimit(resource.RLIMIT_NOFILE,({},{})); os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "안녕"}],
    "stream": True,
}


def limited(controller: str, soft: int, hard: int, log: Path) -> Any:
    """`kodolly api` under limits of open files, and its URL."""
    port = free_port()
    argv = [sys.executable, "-c", LIMITED.format(soft, hard), "-m", "kodolly", "api"]
    flags = ["--port", str(port), "--controller", controller, "--worker-limit", "2000"]
    return start([*argv, *flags], cwd=ROOT, log=log), f"http://127.0.0.1:{port}"


async def chat(
    http: aiohttp.ClientSession, url: str, opening: asyncio.Semaphore | None = None
) -> int:
    """The status of a whole stream; 0 where the connection was refused or cut.

    `opening`: bounds those that have not begun yet. More than an engine's backlog (128) would time out on a busy machine.
    """
    opening = opening or asyncio.Semaphore(1000)
    try:
        async with opening:
            answer = await http.post(f"{url}/v1/chat/completions", json=CHAT)
        async with answer:
            text = await answer.text()
            return answer.status if answer.status != 200 or text.endswith("[DONE]\n\n") else 0
    except aiohttp.ClientError:
        return 0


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process may open no file within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_connection_that_we_cannot_open_is_not_held_against_the_worker(
    stack: Stack,
) -> None:
    """The client hears whose fault it is, and the worker serves as soon as there is a descriptor."""
    await stack.add(Script())
    async with aiohttp.ClientSession(stack.url) as http:
        async with http.get("/health") as answer:  # a connection that is kept
            await answer.read()
        with no_descriptor_left():
            async with http.post("/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 503
                assert (await answer.json())["error"]["code"] == "out_of_file_descriptors"
        assert not [worker for worker in stack.table.all() if worker.suspect_until]
        async with http.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 200


async def test_an_engine_that_we_cannot_ask_is_not_stalled() -> None:
    """Its agent looks on: for want of descriptors of its own it says nothing of the engine."""
    async with ScriptedEngine(Script()) as engine, new_client() as http:
        client = EngineClient(engine.url, None, http)
        patience = HealthLimits(stall_after=0.5, restart_after=5, canary_interval=0)
        watch = EngineMonitor(client, "demo", patience, tracks_load=True)
        with no_descriptor_left():
            with pytest.raises(NoDescriptor):
                await client.healthy()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watch.until_stalled(), 2.5)
        await watch.close()


async def test_600_streams_are_served_under_a_soft_limit_of_256(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one: it bounds nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the clients' and the engine's own
    script, opening = Script(length=40, token_delay=0.1), asyncio.Semaphore(64)
    async with engine_and_controller(script) as (engine, controller):
        process, url = limited(controller, 256, hard, tmp_path / "api.log")
        with process:
            await eventually(lambda: is_ready(url))
            async with session() as http:
                statuses = await asyncio.gather(*(chat(http, url, opening) for _ in range(600)))
    assert statuses == [200] * 600
    assert engine.running == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_the_log_says_so_and_no_worker_is_suspected(
    tmp_path: Path,
) -> None:
    """Under a hard limit of 64 some clients hear 503; those that are served are served whole."""
    log = tmp_path / "api.log"
    async with engine_and_controller(Script(length=20, token_delay=0.1)) as (_, controller):
        process, url = limited(controller, 64, 64, log)
        with process:
            await eventually(lambda: is_ready(url))
            async with session() as http:
                statuses = await asyncio.gather(*(chat(http, url) for _ in range(60)))
                assert set(statuses) <= {200, 503, 0}
                assert statuses.count(200) >= 10
                assert statuses.count(503) >= 10
                assert await chat(http, url) == 200
    text = log.read_text()
    assert "too many open files: this process may have 64" in text
    assert "does not answer" not in text
    assert "Traceback" not in text
