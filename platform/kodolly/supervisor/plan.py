"""Which processes `kodolly up` runs, with which flags."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from kodolly.errors import SettingsError
from kodolly.options import environment_name
from kodolly.settings import ENGINE_PORT, LOCAL, WORKER_PORT, CommonSettings, UpSettings
from kodolly.supervisor.service import ServiceSpec

KODOLLY = (sys.executable, "-m", "kodolly")
# Worker and engine ports keep their distance, whatever the first worker's port.
ENGINE_OFFSET = ENGINE_PORT - WORKER_PORT
LAST_PORT = 65535
DRAIN = 5.0


class Listener(NamedTuple):
    """An address that must be free, and the flag that moves it."""

    host: str
    port: int
    flag: str


def services(settings: UpSettings, config: Path | None = None) -> list[ServiceSpec]:
    """Every process, in the order of starting; they stop in the reverse one.

    They all get the common options of `settings` and its settings file `config`.
    """
    specs = [_controller(settings)]
    specs += [_worker(settings, index) for index in range(settings.workers)]
    specs.append(_api(settings))
    if settings.web:
        specs.append(_web(settings))
    common = _common(settings, config)
    return [replace(spec, env={**common, **spec.env}) for spec in specs]


def listeners(settings: UpSettings) -> list[Listener]:
    """Everything `kodolly up` will listen on. Raises SettingsError for ports that cannot be."""
    first, flag = settings.worker_port, "--worker-port"
    last = first + settings.workers - 1 + ENGINE_OFFSET
    if last > LAST_PORT:
        raise SettingsError(
            f"{flag}: {first} is too high: the engines need ports up to {last}, beyond {LAST_PORT}"
        )
    found = [Listener(LOCAL, settings.controller_port, "--controller-port")]
    for port in range(first, first + settings.workers):
        found += [Listener(LOCAL, port, flag), Listener(LOCAL, port + ENGINE_OFFSET, flag)]
    found.append(Listener(settings.host, settings.api_port, "--api-port"))
    if settings.web:
        found.append(Listener(settings.host, settings.web_port, "--web-port"))
    flags: dict[int, str] = {}
    for listener in found:
        if (other := flags.setdefault(listener.port, listener.flag)) != listener.flag:
            raise SettingsError(f"{other} and {listener.flag} both take port {listener.port}")
    return found


def page_url(settings: UpSettings) -> str:
    """Where a person finds the chat."""
    return f"http://{_in_url(settings.host)}:{settings.web_port}"


def api_url(settings: UpSettings) -> str:
    """What an OpenAI client takes as its base URL, without the /v1."""
    return f"http://{_in_url(settings.host)}:{settings.api_port}"


def _common(settings: UpSettings, config: Path | None) -> dict[str, str]:
    """The common options as variables: a command line, which anyone can read, holds no secret."""
    values = {f.name: getattr(settings, f.name) for f in fields(CommonSettings)}
    env = {
        environment_name(CommonSettings, name): str(value)
        for name, value in values.items()
        if value is not None
    }
    return env | ({"KODOLLY_CONFIG": str(config.absolute())} if config else {})


def _controller_url(settings: UpSettings) -> str:
    return f"http://{LOCAL}:{settings.controller_port}"


def _controller(settings: UpSettings) -> ServiceSpec:
    flags = (
        *("--host", LOCAL, "--port", str(settings.controller_port)),
        *("--drain-timeout", str(DRAIN)),
    )
    url = f"{_controller_url(settings)}/health"
    return ServiceSpec("controller", (*KODOLLY, "controller", *flags), url)


def _worker(settings: UpSettings, index: int) -> ServiceSpec:
    port = settings.worker_port + index
    flags = [
        *("--host", LOCAL, "--port", str(port), "--engine-port", str(port + ENGINE_OFFSET)),
        *("--controller", _controller_url(settings), "--engine", settings.engine),
        *("--model", str(settings.model_directory()), "--drain-timeout", str(DRAIN)),
    ]
    for adapter in settings.adapters:
        flags += ["--adapters", adapter]
    if settings.conv_template:
        flags += ["--conv-template", settings.conv_template]
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
    flags = ["--host", settings.host, "--port", str(settings.web_port), "--api", api]
    temperature = settings.temperature
    if temperature is None:
        temperature = _own_temperature(settings.model_directory())
    if temperature is not None:
        flags += ["--temperature", str(temperature)]
    url = f"http://{_own(settings.host)}:{settings.web_port}/"
    return ServiceSpec("web", (*KODOLLY, "web", *flags), url)


def _own_temperature(model: Path) -> float | None:
    """What the model itself asks for in its generation config, if it does."""
    try:
        config = json.loads((model / "generation_config.json").read_text("utf-8"))
        temperature = float(config["temperature"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return temperature if 0 <= temperature <= 2 else None


def _own(host: str) -> str:
    """What reaches a server on `host` from this machine, as it stands in a URL."""
    return {"0.0.0.0": LOCAL, "": LOCAL, "::": "[::1]"}.get(host) or _in_url(host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _threads(workers: int) -> dict[str, str]:
    """Engines share the cores: waiting OpenMP threads spin and steal each other's time."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
