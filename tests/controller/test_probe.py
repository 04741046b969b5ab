"""FastChat workers whose port is closed, told from those that are only slow."""

import pytest
from support.apps import serving
from support.deaf import deaf
from support.processes import eventually, free_port
from support.scripted_engine import Script, ScriptedEngine

from kodolly.controller.app import Controller, ControllerTimes, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.protocol.wire import Extension, Registration, WorkerStatus

QUICK = ControllerTimes(probe_interval=0.05, probe_connect_timeout=0.2)


@pytest.fixture
def registry() -> Registry:
    return Registry(90, 600)


def register(registry: Registry, name: str, extension: Extension | None = None) -> None:
    status = WorkerStatus(model_names=["demo"])
    registry.register(Registration(worker_name=name, kodolly=extension), status)


def state(registry: Registry, name: str) -> str:
    return next(row.state.value for row in registry.rows() if row.name == name)


async def test_a_dead_fastchat_worker_is_lost_and_taken_back(registry: Registry) -> None:
    """Killed, it leaves rotation without a missed beat; started again, it returns without one."""
    controller = Controller(registry, Dispatcher("shortest_queue"), None, QUICK)
    port = free_port()
    name = f"http://127.0.0.1:{port}"
    async with serving(create_app(controller)):
        async with ScriptedEngine(Script(model="demo"), port=port):
            register(registry, name)
        await eventually(lambda: state(registry, name) == "lost")

        async with ScriptedEngine(Script(model="demo"), port=port):
            await eventually(lambda: state(registry, name) == "ready")


async def test_a_slow_fastchat_worker_is_left_alone(registry: Registry) -> None:
    """One that takes connections and answers none is busy, for all one knows; others go on."""
    controller = Controller(registry, Dispatcher("shortest_queue"), None, QUICK)
    dead = f"http://127.0.0.1:{free_port()}"

    async with serving(create_app(controller)), deaf() as server:
        slow = server.url
        register(registry, slow)
        register(registry, dead)
        await eventually(lambda: state(registry, dead) == "lost")

        assert state(registry, slow) == "ready"


async def test_our_workers_tell_for_themselves(registry: Registry) -> None:
    """A KoDolly worker is not probed: its beats come every second."""
    controller = Controller(registry, Dispatcher("shortest_queue"), None, QUICK)
    ours, fastchat = (f"http://127.0.0.1:{port}" for port in (free_port(), free_port()))
    async with serving(create_app(controller)):
        register(registry, ours, Extension())
        register(registry, fastchat)
        await eventually(lambda: state(registry, fastchat) == "lost")

        assert state(registry, ours) == "ready"


async def test_a_sweep_that_fails_is_not_the_last(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in one sweep is logged; the next one still finds the lost."""
    sweep = registry.sweep
    failed: list[bool] = []

    def once() -> None:
        if not failed:
            failed.append(True)
            raise RuntimeError("once")
        sweep()

    monkeypatch.setattr(registry, "sweep", once)
    controller = Controller(registry, Dispatcher("shortest_queue"), None, QUICK)
    async with serving(create_app(controller)):
        register(registry, "http://a", Extension(heart_beat_interval=0.0001))
        await eventually(lambda: state(registry, "http://a") == "lost")
    assert "a sweep of the table failed" in caplog.text
