"""The servers that clients are pointed at: KoDolly on either engine, and beside it others for comparison."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.processes import Process, free_port, start, wait_http

ROOT = Path(__file__).parents[2]
START = 900.0  # seconds
SIZES = ("--dtype", "float32", "--max-model-len", 2048, "--max-num-seqs", 8)


@dataclass(frozen=True)
class Server:
    """A server's URL without /v1, the model to name, and a key."""

    url: str
    model: str
    key: str = "none"


class Servers:
    """Starts servers, and ends them with the `with` of `servers`."""

    def __init__(self, processes: ExitStack, logs: Path, model: Path) -> None:
        self._processes = processes
        self._logs = logs
        self._model = model
        self.workers: dict[str, Process] = {}
        self._env = {"KODOLLY_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "2"}

    def run(self, name: str, argv: list[str | int | Path], **env: str) -> Process:
        """Starts a program whose lines go to NAME.log."""
        log = self._logs / f"{name}.log"
        process = start(list(map(str, argv)), self._env | env, cwd=ROOT, log=log)
        return self._processes.enter_context(process)

    def kodolly(self, name: str, command: str, *args: str | int | Path, **env: str) -> Process:
        """Starts one of KoDolly's processes."""
        return self.run(name, [sys.executable, "-m", "kodolly", command, *args], **env)

    def controller(self, name: str) -> str:
        """Starts a controller; its URL."""
        port = free_port()
        process = self.kodolly(f"{name}-controller", "controller", "--port", port)
        wait_http(f"http://127.0.0.1:{port}/health", process=process)
        return f"http://127.0.0.1:{port}"

    def worker(self, controller: str, engine: str, *args: str | int | Path) -> Process:
        """Starts a worker whose model is called as its engine."""
        self.workers[engine] = self.kodolly(
            engine, "worker", "--engine", engine, "--model", self._model, "--model-name", engine,
            "--controller", controller, "--port", free_port(), "--engine-port", free_port(),
            "--start-timeout", int(START), "--drain-timeout", 1, *SIZES, *args,
        )  # fmt: skip
        return self.workers[engine]

    def api(self, controller: str, engine: str, *args: str | int | Path) -> Server:
        """KoDolly before one worker."""
        port = free_port()
        self.kodolly(f"{engine}-api", "api", "--port", port, "--controller", controller)
        worker = self.worker(controller, engine, *args)
        wait_http(f"http://127.0.0.1:{port}/ready", START, process=worker)
        return Server(f"http://127.0.0.1:{port}", engine)

    def scripted(self) -> Server:
        """KoDolly before a scripted engine, for tests of the API alone."""
        controller, engine = self.controller("scripted"), free_port()
        script = [sys.executable, "-m", "support.scripted_engine", "--model", "demo"]
        self.run("engine", [*script, "--port", engine], PYTHONPATH=str(ROOT / "tests"))
        url = f"http://127.0.0.1:{engine}"
        wait_http(f"{url}/health")
        attach = ("worker", "--engine", "openai", "--engine-url", url, "--port", free_port())
        self.kodolly("scripted", *attach, "--controller", controller)
        port = free_port()
        api = self.kodolly("scripted-api", "api", "--port", port, "--controller", controller)
        wait_http(f"http://127.0.0.1:{port}/ready", process=api)
        return Server(f"http://127.0.0.1:{port}", "demo")

    def transformers(self) -> Server:
        """KoDolly on the transformers engine."""
        return self.api(self.controller("transformers"), "transformers")

    def vllm(self, python: Path) -> Server:
        """KoDolly on vLLM."""
        tools = (
            "--engine-args=--enable-auto-tool-choice",
            "--engine-args=--tool-call-parser=hermes",
        )
        return self.api(self.controller("vllm"), "vllm", "--engine-python", python, *tools)


@contextmanager
def servers(logs: Path, model: Path) -> Iterator[Servers]:
    """What starts servers of `model`; the logs of all go to a folder."""
    with ExitStack() as processes:
        yield Servers(processes, logs, model)
