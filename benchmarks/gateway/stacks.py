"""The gateways under test, all before one and the same scripted engine."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gateway.environments import ROOT, Unavailable, environment
from benchmarks.gateway.plan import MODEL, Target
from benchmarks.gateway.processes import (
    free_port,
    running,
    wait_for,
    wait_for_answer,
    wait_for_port,
)
from benchmarks.gateway.rivals import Command, Rival

FASTCHAT = "FastChat"
KODOLLY = "KoDolly"
KODOLLY_STOCK = "KoDolly, FastChat worker"


@contextlib.contextmanager
def stacks(
    directory: Path, names: list[str], others: Sequence[Rival]
) -> Iterator[tuple[list[Target], int, int, dict[str, str]]]:
    """Everything running: the targets (direct first), the engine's port and its pid, who is missing.

    `names` are FastChat's and our own gateways, `others` those that need no controller.
    """
    skipped: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        engine_port = free_port()
        if FASTCHAT in names:
            names = _with_fastchat(names, skipped)
        controllers = {name: free_port() for name in names}
        gateways = {
            name: stack.enter_context(_controller(name, directory, port))
            for name, port in controllers.items()
        }
        engine = stack.enter_context(_engine(directory, engine_port, controllers))
        targets = [Target("direct", engine_port, ())]
        for name, port in controllers.items():
            api_port, api = stack.enter_context(_api(name, directory, port))
            targets.append(Target(name, api_port, (gateways[name], api)))
        for rival in others:
            try:
                port = free_port()
                command = rival.command(port, f"http://127.0.0.1:{engine_port}", directory)
            except Unavailable as failure:
                skipped[rival.name] = str(failure)
                continue
            pid = stack.enter_context(_other(rival, directory, port, command))
            targets.append(Target(rival.name, port, (pid,)))
        yield targets, engine_port, engine, skipped


def _with_fastchat(names: list[str], skipped: dict[str, str]) -> list[str]:
    try:
        environment("fastchat")
    except Unavailable as failure:
        skipped[FASTCHAT] = str(failure)
        return [name for name in names if name != FASTCHAT]
    return names


@contextlib.contextmanager
def _other(rival: Rival, directory: Path, port: int, command: Command) -> Iterator[int]:
    argv, env = command
    with running(rival.key, argv, directory, env) as child:
        wait_for_answer(port, MODEL, child)
        yield child.pid


@contextlib.contextmanager
def _controller(name: str, directory: Path, port: int) -> Iterator[int]:
    command = _command(name, "controller", port)
    with running(f"controller-{_slug(name)}", command, directory, {}) as child:
        wait_for_port(port, child)
        yield child.pid


@contextlib.contextmanager
def _api(name: str, directory: Path, controller: int) -> Iterator[tuple[int, int]]:
    port = free_port()
    command = _command(name, "api", port, f"http://127.0.0.1:{controller}")
    with running(f"api-{_slug(name)}", command, directory, {}) as child:
        wait_for(f"http://127.0.0.1:{port}/v1/models", f'"id": "{MODEL}"', child)
        yield port, child.pid


@contextlib.contextmanager
def _engine(directory: Path, port: int, controllers: dict[str, int]) -> Iterator[int]:
    script = json.dumps({"length": 4096})
    command = [sys.executable, "-m", "support.scripted_engine", "--model", MODEL]
    command += ["--port", str(port), "--script", script]
    for name, controller in controllers.items():
        flag = "--register-kodolly" if name == KODOLLY else "--register"
        command += [flag, f"http://127.0.0.1:{controller}"]
    environment = {"PYTHONPATH": str(ROOT / "tests")}
    with running("engine", command, directory, environment) as child:
        wait_for_port(port, child)
        yield child.pid


def _command(name: str, part: str, port: int, controller: str | None = None) -> list[str]:
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if name == FASTCHAT:
        module = {"controller": "controller", "api": "openai_api_server"}[part]
        command = [
            str(environment("fastchat") / "python"),
            "-m",
            f"fastchat.serve.{module}",
            *address,
        ]
        return [*command, "--controller-address", controller] if controller else command
    command = [sys.executable, "-m", "kodolly", part, *address]
    return [*command, "--controller", controller] if controller else command


def _slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")
