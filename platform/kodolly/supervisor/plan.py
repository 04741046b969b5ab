"""Which processes `kodolly up` runs, with which flags."""

from __future__ import annotations

import os
import sys

from kodolly.settings import ENGINE_PORT, LOCAL, WORKER_PORT, UpSettings
from kodolly.supervisor.service import ServiceSpec

KODOLLY = (sys.executable, "-m", "kodolly")
# Worker and engine ports keep their distance, whatever the first worker's port.
ENGINE_OFFSET = ENGINE_PORT - WORKER_PORT
DRAIN = 5.0


def services(settings: UpSettings) -> list[ServiceSpec]:
    """Every process, in the order of starting; they stop in the reverse one."""
    specs = [_controller(settings)]
    specs += [_worker(settings, index) for index in range(settings.workers)]
    specs.append(_api(settings))
    if settings.web:
        specs.append(_web(settings))
    return specs


def ports(settings: UpSettings) -> dict[int, str]:
    """Every port that must be free, with the flag that moves it."""
    taken = {settings.controller_port: "--controller-port", settings.api_port: "--api-port"}
    for index in range(settings.workers):
        port = settings.worker_port + index
        taken |= {port: "--worker-port", port + ENGINE_OFFSET: "--worker-port"}
    return taken | ({settings.web_port: "--web-port"} if settings.web else {})


def page_url(settings: UpSettings) -> str:
    """Where a person finds the chat."""
    return f"http://{settings.host}:{settings.web_port}"


def api_url(settings: UpSettings) -> str:
    """What an OpenAI client takes as its base URL, without the /v1."""
    return f"http://{settings.host}:{settings.api_port}"


def _controller_url(settings: UpSettings) -> str:
    return f"http://{LOCAL}:{settings.controller_port}"


def _controller(settings: UpSettings) -> ServiceSpec:
    flags = ("--host", LOCAL, "--port", str(settings.controller_port))
    url = f"{_controller_url(settings)}/health"
    return ServiceSpec("controller", (*KODOLLY, "controller", *flags), url)


def _worker(settings: UpSettings, index: int) -> ServiceSpec:
    port = settings.worker_port + index
    flags = [
        *("--host", LOCAL, "--port", str(port), "--engine-port", str(port + ENGINE_OFFSET)),
        *("--controller", _controller_url(settings), "--engine", settings.engine),
        *("--model", str(settings.model_directory()), "--drain-timeout", str(DRAIN)),
    ]
    if settings.engine_python:
        flags += ["--engine-python", settings.engine_python]
    name = "worker" if settings.workers == 1 else f"worker-{index + 1}"
    # The leash must not cut the agent's own drain and its engine's end short.
    return ServiceSpec(
        name,
        (*KODOLLY, "worker", *flags),
        f"http://{LOCAL}:{port}/ready",
        grace=DRAIN + 20,
        env=_threads(settings.workers),
    )


def _api(settings: UpSettings) -> ServiceSpec:
    flags = [
        *("--host", settings.host, "--port", str(settings.api_port)),
        *("--controller", _controller_url(settings), "--drain-timeout", str(DRAIN)),
    ]
    url = f"http://{_own(settings.host)}:{settings.api_port}/health"
    return ServiceSpec("api", (*KODOLLY, "api", *flags), url, grace=DRAIN + 5)


def _web(settings: UpSettings) -> ServiceSpec:
    api = f"http://{_own(settings.host)}:{settings.api_port}"
    flags = ("--host", settings.host, "--port", str(settings.web_port), "--api", api)
    url = f"http://{_own(settings.host)}:{settings.web_port}/"
    return ServiceSpec("web", (*KODOLLY, "web", *flags), url)


def _own(host: str) -> str:
    """An address of this machine that reaches `host`."""
    return LOCAL if host in ("0.0.0.0", "::", "") else host


def _threads(workers: int) -> dict[str, str]:
    """Engines share the cores: waiting OpenMP threads spin and steal each other's time."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
