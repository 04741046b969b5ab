"""The gateways under test: FastChat's and KoDolly's, before one and the same scripted engine."""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gateway.plan import MODEL, Target
from benchmarks.gateway.processes import free_port, running, wait_for, wait_for_port

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("fastchat-requirements.txt")
FASTCHAT = "FastChat"
KODOLLY = "KoDolly"
KODOLLY_STOCK = "KoDolly, FastChat worker"


def fastchat_python() -> Path:
    """The interpreter of FastChat's own environment, built on first use and kept."""
    home = ROOT / ".venv-fastchat"
    python = home / "bin" / "python"
    stamp = home / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print("building FastChat's environment (once, about a minute) ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        options = ["-qq", "--disable-pip-version-check", "--no-deps", "-r", str(REQUIREMENTS)]
        subprocess.run([str(python), "-m", "pip", "install", *options], check=True)
        stamp.write_text(wanted)
    return python


@contextlib.contextmanager
def stacks(directory: Path, names: list[str]) -> Iterator[tuple[list[Target], int, int]]:
    """Everything running: the targets (direct first), the engine's port and its pid."""
    with contextlib.ExitStack() as stack:
        engine_port = free_port()
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
        yield targets, engine_port, engine


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
        command = [str(fastchat_python()), "-m", f"fastchat.serve.{module}", *address]
        return [*command, "--controller-address", controller] if controller else command
    command = [sys.executable, "-m", "kodolly", part, *address]
    return [*command, "--controller", controller] if controller else command


def _slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")
