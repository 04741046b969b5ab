"""What a controller hears of a worker: ours, FastChat's own, which has no states, one that comes late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from support.apps import serving, serving_aiohttp
from support.processes import eventually, free_port

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.errors import ControllerError
from kodolly.http.client import new_client
from kodolly.http.server import cancel_and_wait
from kodolly.protocol.wire import Extension, WorkerState, WorkerStatus
from kodolly.worker.registration import UNREADY_QUEUE_LENGTH, ControllerClient, Heartbeat

NAME = "http://127.0.0.1:9"


class Worker:
    """A worker whose state a test sets by hand."""

    name = NAME
    state = WorkerState.STARTING

    def last_status(self) -> WorkerStatus:
        return WorkerStatus(model_names=["demo"], queue_length=2)

    def extension(self) -> Extension:
        return Extension(state=self.state, heart_beat_interval=0.05)


@asynccontextmanager
async def sending(url: str, worker: Worker) -> AsyncIterator[Heartbeat]:
    """A running heartbeat."""
    async with new_client() as client:
        heartbeat = Heartbeat(ControllerClient(url, None, client), worker, retry_interval=0.02)
        task = asyncio.create_task(heartbeat.run())
        try:
            yield heartbeat
        finally:
            await cancel_and_wait(task)


@asynccontextmanager
async def fastchat_controller(heard: list[tuple[str, Any]]) -> AsyncIterator[str]:
    """A controller of FastChat's kind: it has no /health, and every worker it hears of is ready."""

    async def hear(request: web.Request) -> web.Response:
        heard.append((request.path, await request.json()))
        return web.json_response({"exist": True})

    app = web.Application()
    app.router.add_post("/register_worker", hear)
    app.router.add_post("/receive_heart_beat", hear)
    async with serving_aiohttp(app) as url:
        yield url


async def test_a_fastchat_controller_hears_nothing_before_the_first_token() -> None:
    """It would send requests to whoever registers, so a loading worker does not."""
    worker, heard = Worker(), list[tuple[str, Any]]()
    async with fastchat_controller(heard) as url, sending(url, worker) as heartbeat:
        await asyncio.sleep(0.3)
        assert heard == []

        worker.state = WorkerState.READY
        heartbeat.send_now()
        await eventually(lambda: heard)
        assert heard[0][0] == "/register_worker"
        assert heard[0][1]["worker_status"]["queue_length"] == 2


async def test_a_fastchat_controller_asks_a_stalled_worker_last() -> None:
    """It knows no states, but it does not choose the longest queue."""
    worker, heard = Worker(), list[tuple[str, Any]]()
    worker.state = WorkerState.READY
    async with fastchat_controller(heard) as url, sending(url, worker) as heartbeat:
        await eventually(lambda: heard)
        worker.state = WorkerState.STALLED
        heartbeat.send_now()
        await eventually(lambda: heard[-1][1].get("queue_length") == UNREADY_QUEUE_LENGTH)

        worker.state = WorkerState.READY
        heartbeat.send_now()
        await eventually(lambda: heard[-1][1].get("queue_length") == 2)


async def test_a_controller_that_comes_later_hears_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While nobody is there the heartbeat tries on, and complains once; then it registers."""
    port, worker = free_port(), Worker()
    async with sending(f"http://127.0.0.1:{port}", worker):
        await eventually(lambda: "no controller at" in caplog.text)
        await asyncio.sleep(0.3)
        assert caplog.text.count("no controller at") == 1

        controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
        async with serving(create_app(controller), port):
            await eventually(controller.registry.rows)
            assert controller.registry.ready() == []  # it loads


async def test_a_change_is_told_at_once() -> None:
    """A stall does not wait for the next beat."""
    controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)

    class Slow(Worker):
        def extension(self) -> Extension:
            return Extension(state=self.state, heart_beat_interval=600)

    worker = Slow()
    worker.state = WorkerState.READY
    async with serving(create_app(controller)) as url, sending(url, worker) as heartbeat:
        await eventually(controller.registry.ready)
        worker.state = WorkerState.STALLED
        heartbeat.send_now()
        await eventually(lambda: controller.registry.rows()[0].state is WorkerState.STALLED)


async def test_a_token_that_no_header_can_hold_is_an_error_without_it() -> None:
    """HTTP headers hold no Korean: the call fails, its message does not repeat the secret."""
    controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
    async with serving(create_app(controller)) as url, new_client() as client:
        controllers = ControllerClient(url, "비밀열쇠", client)
        with pytest.raises(ControllerError) as caught:
            await controllers.register(NAME, Worker().last_status(), Worker().extension())

    assert "비밀열쇠" not in str(caught.value)
