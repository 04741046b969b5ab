"""The attacked processes: controller, one worker with its engine, API with a key, page; all on loopback."""

import contextlib
import json
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from support.processes import free_port, wait_http

from benchmarks.chaos.stack import ROOT, SHIM, Service
from benchmarks.hostile.plan import BODY_TIMEOUT, HEAD_TIMEOUT, MODEL, SCRIPT
from benchmarks.hostile.raw import Target

HOST = "127.0.0.1"
START = 300.0  # seconds; a loaded machine takes its time to import Gradio or torch
EMBEDDED = ROOT / "adapters/kodolly_adapters/embedded/kodolly-ko-8m"
CONTROLLER_POSTS = (
    "/register_worker",
    "/receive_heart_beat",
    "/list_models",
    "/worker_generate_stream",
)
WORKER_POSTS = ("/worker_get_status", "/worker_generate_stream", "/count_token", "/model_details")
API_POSTS = ("/v1/chat/completions", "/v1/completions")
WEB_POSTS = ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload")
ENGINE_POSTS = (*API_POSTS, "/tokenize", "/detokenize")


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs; `key` is the one that the API takes."""

    services: dict[str, Service]
    targets: list[Target]
    key: str

    def pids(self) -> dict[str, int]:
        """Process id by name: of the API the process that serves, and the worker's engine too."""
        pids = {name: one.process.pid for name, one in self.services.items() if one.process}
        pids["api"] = psutil.Process(pids["api"]).children()[0].pid
        for child in psutil.Process(pids["worker"]).children(recursive=True):
            words = " ".join(child.cmdline())
            if "kodolly.engines.transformers" in words and "leash" not in words:
                pids["engine"] = child.pid
        return pids

    def dead(self) -> list[str]:
        """Names of processes that have ended."""
        return [name for name, one in self.services.items() if not one.running]

    def tracebacks(self) -> dict[str, int]:
        """Tracebacks in each process's log."""
        logs = {name: one.log.read_text("utf-8", "replace") for name, one in self.services.items()}
        return {name: text.count("Traceback (most recent") for name, text in logs.items()}


@contextlib.contextmanager
def stack(place: Path, engine: str) -> Iterator[Stack]:
    """A stack that answers chats; everything is dead afterwards. `engine`: scripted or transformers."""
    key = secrets.token_hex(16)
    env = {"KODOLLY_TOKEN": secrets.token_hex(16), "PYTHONPATH": str(ROOT / "tests")}
    env |= {"OMP_NUM_THREADS": "1", "KODOLLY_HEAD_TIMEOUT": str(HEAD_TIMEOUT)}
    env["KODOLLY_BODY_TIMEOUT"] = str(BODY_TIMEOUT)
    ports = {name: free_port() for name in ("controller", "worker", "engine", "api", "web")}

    def service(name: str, *flags: str, **more: str) -> Service:
        command = [sys.executable, "-m", "kodolly", name, *flags]
        command += ["--host", HOST, "--port", str(ports[name])]
        url = f"http://{HOST}:{ports[name]}"
        return Service(name, command, url, env | more, place / f"{name}.log")

    controller = service("controller")
    api_url = f"http://{HOST}:{ports['api']}"
    at = ("--controller", controller.url)
    worker = service("worker", *at, "--engine-port", str(ports["engine"]), *_engine(place, engine))
    services = {
        "controller": controller,
        "worker": worker,
        "api": service("api", *at, KODOLLY_API_CLIENT_KEYS=key),
        "web": service("web", "--api", api_url, KODOLLY_WEB_API_KEY=key),
    }
    with contextlib.ExitStack() as ends:
        for one in services.values():
            one.log.unlink(
                missing_ok=True
            )  # an earlier run's, whose tracebacks would be counted again
            ends.callback(one.close)
            one.start()
        wait_http(api_url + "/ready", START, process=services["api"].process)
        wait_http(services["web"].url + "/", START, process=services["web"].process)
        yield Stack(services, _targets(ports, key, engine), key)


def _engine(place: Path, engine: str) -> list[str]:
    """The worker's flags for its engine."""
    if engine == "transformers":
        return ["--engine", "transformers", "--model", str(EMBEDDED), "--model-name", MODEL]
    shim = place / "engine"
    shim.write_text(SHIM % (sys.executable, place / "journal"))
    shim.chmod(0o755)
    flags = ["--engine", "vllm", "--engine-python", str(shim), "--model", str(EMBEDDED)]
    return [*flags, "--model-name", MODEL, f"--engine-args=--script={json.dumps(SCRIPT)}"]


def _targets(ports: dict[str, int], key: str, engine: str) -> list[Target]:
    models = ("/v1/models", "/v1/models/demo", "/health", "/ready", "/openapi.json")
    made = [
        Target("api", HOST, ports["api"], models, API_POSTS, key),
        Target(
            "controller",
            HOST,
            ports["controller"],
            ("/health", "/workers", "/watch"),
            CONTROLLER_POSTS,
        ),
        Target("worker", HOST, ports["worker"], ("/health", "/ready"), WORKER_POSTS),
        Target("web", HOST, ports["web"], ("/", "/config", "/gradio_api/info"), WEB_POSTS),
    ]
    if engine == "transformers":
        made.append(Target("engine", HOST, ports["engine"], ("/health", "/metrics"), ENGINE_POSTS))
    return made
