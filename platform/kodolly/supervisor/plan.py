"""The processes that `kodolly up` runs, and their flags."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from kodolly.errors import SettingsError
from kodolly.options import environment_name, resolve
from kodolly.protocol.addresses import host_in_url
from kodolly.settings import (
    ENGINE_PORT,
    LOCAL,
    SECTIONS,
    STORE_FILE,
    WORKER_PORT,
    ApiSettings,
    CommonSettings,
    ControllerSettings,
    HttpSettings,
    UpSettings,
    WebSettings,
    WorkerSettings,
    foreign_secrets,
)
from kodolly.supervisor.service import ServiceSpec

KODOLLY = (sys.executable, "-m", "kodolly")
# A worker's engine listens this many ports above the worker, whatever --worker-port is.
ENGINE_OFFSET = ENGINE_PORT - WORKER_PORT
LAST_PORT = 65535
DRAIN = 5.0  # seconds for open responses when everything stops
# Controller and workers listen on loopback alone, whatever the settings file says of other machines.
PLAIN_HTTP = ("--tls-cert=", "--tls-key=")


class Listener(NamedTuple):
    """An address that must be free, and the flag that changes its port."""

    host: str
    port: int
    flag: str


def services(settings: UpSettings, config: Path | None = None) -> list[ServiceSpec]:
    """All processes in the order in which they are started. They are stopped in reverse.

    Each gets the common options in `settings` and the settings file `config`, but only its own secrets.
    """
    specs: list[tuple[type[CommonSettings], ServiceSpec]] = [
        (ControllerSettings, _controller(settings)),
        *((WorkerSettings, _worker(settings, index)) for index in range(settings.workers)),
        (ApiSettings, _api(settings, config)),
    ]
    if settings.web:
        specs.append((WebSettings, _web(settings)))
    common = _common(settings, config)
    return [_with_own_secrets(cls, spec, common) for cls, spec in specs]


def _with_own_secrets(
    cls: type[CommonSettings], spec: ServiceSpec, common: Mapping[str, str]
) -> ServiceSpec:
    foreign = foreign_secrets(cls)
    env = {name: value for name, value in common.items() if name not in foreign}
    return replace(spec, env=env | dict(spec.env), without=foreign)


def listeners(settings: UpSettings) -> list[Listener]:
    """Every address that `kodolly up` listens on. Raises SettingsError for impossible ports."""
    first, flag = settings.worker_port, "--worker-port"
    last = first + settings.workers - 1 + ENGINE_OFFSET
    if last > LAST_PORT:
        raise SettingsError(
            f"{flag}: {first} is too high: the engines need ports up to {last}, beyond {LAST_PORT}"
        )
    result = [Listener(LOCAL, settings.controller_port, "--controller-port")]
    for port in range(first, first + settings.workers):
        result += [Listener(LOCAL, port, flag), Listener(LOCAL, port + ENGINE_OFFSET, flag)]
    result.append(Listener(settings.host, settings.api_port, "--api-port"))
    if settings.web:
        result.append(Listener(settings.host, settings.web_port, "--web-port"))
    flags: dict[int, str] = {}
    for listener in result:
        if (other := flags.setdefault(listener.port, listener.flag)) != listener.flag:
            raise SettingsError(f"{other} and {listener.flag} both take port {listener.port}")
    return result


def page_url(settings: UpSettings) -> str:
    """The chat page's URL."""
    return f"{_scheme(settings)}://{host_in_url(settings.host)}:{settings.web_port}"


def api_url(settings: UpSettings) -> str:
    """The API's URL: an OpenAI client's base URL without the /v1."""
    return f"{_scheme(settings)}://{host_in_url(settings.host)}:{settings.api_port}"


def reachable_api_url(settings: UpSettings) -> str:
    """The URL at which this machine reaches the API."""
    return f"{_scheme(settings)}://{_reachable(settings.host)}:{settings.api_port}"


def _common(settings: UpSettings, config: Path | None) -> dict[str, str]:
    """The common options as environment variables: other users can read a command line."""
    values = {f.name: getattr(settings, f.name) for f in fields(HttpSettings)}
    env = {
        environment_name(HttpSettings, name): _as_variable(value)
        for name, value in values.items()
        if value not in (None, ())
    }
    return env | ({"KODOLLY_CONFIG": str(config.absolute())} if config else {})


def _as_variable(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _controller_url(settings: UpSettings) -> str:
    return f"http://{LOCAL}:{settings.controller_port}"


def _controller(settings: UpSettings) -> ServiceSpec:
    flags = (
        *("--host", LOCAL, "--port", str(settings.controller_port)),
        *("--drain-timeout", str(DRAIN)),
        *PLAIN_HTTP,
    )
    url = f"{_controller_url(settings)}/health"
    return ServiceSpec("controller", (*KODOLLY, "controller", *flags), url)


def _worker(settings: UpSettings, index: int) -> ServiceSpec:
    port = settings.worker_port + index
    flags = [
        *("--host", LOCAL, "--port", str(port), "--engine-port", str(port + ENGINE_OFFSET)),
        *("--controller", _controller_url(settings), "--engine", settings.engine),
        *("--model", str(settings.model_directory()), "--drain-timeout", str(DRAIN)),
        *PLAIN_HTTP,
    ]
    for adapter in settings.adapters:
        flags += ["--adapters", adapter]
    flags += [f"--engine-args={argument}" for argument in settings.engine_args]
    if settings.model_aliases:
        flags += ["--model-aliases", ",".join(settings.model_aliases)]
    for flag, value in (
        ("--tool-parser", settings.tool_parser),
        ("--reasoning-parser", settings.reasoning_parser),
        ("--runner", settings.runner),
    ):
        flags += [flag, value] if value not in (None, "auto") else []
    if settings.conv_template:
        flags += ["--conv-template", settings.conv_template]
    if settings.engine_python:
        flags += ["--engine-python", settings.engine_python]
    name = "worker" if settings.workers == 1 else f"worker-{index + 1}"
    # Long enough for the agent's own drain and for stopping its engine.
    return ServiceSpec(
        name,
        (*KODOLLY, "worker", *flags),
        f"http://{LOCAL}:{port}/ready",
        grace=DRAIN + 20,
        env=_threads(settings.workers),
    )


def _api(settings: UpSettings, config: Path | None) -> ServiceSpec:
    flags = [
        *_store_flags(settings, config),
        *("--host", settings.host, "--port", str(settings.api_port)),
        *("--controller", _controller_url(settings), "--drain-timeout", str(DRAIN)),
        *_tls_flags(settings),
    ]
    if settings.open:
        flags.append("--open")
    url = f"{reachable_api_url(settings)}/health"
    return ServiceSpec("api", (*KODOLLY, "api", *flags), url, grace=DRAIN + 5)


def _store_flags(settings: UpSettings, config: Path | None) -> tuple[str, ...]:
    """The store is in --home, unless the API's own settings name another one."""
    flags = () if config is None else ("--config", str(config))
    api = resolve(ApiSettings, flags, prog="kodolly api", sections=SECTIONS)
    if api.sources["store"] != "default":
        return ()
    return ("--store", f"sqlite:///{Path(settings.home) / STORE_FILE}")


def _web(settings: UpSettings) -> ServiceSpec:
    flags = ["--host", settings.host, "--port", str(settings.web_port)]
    flags += ["--api", reachable_api_url(settings), *_tls_flags(settings)]
    if settings.tls_cert:
        flags += ["--api-certificate", settings.tls_cert]
    temperature = settings.temperature
    if temperature is None:
        temperature = _model_temperature(settings.model_directory())
    if temperature is not None:
        flags += ["--temperature", str(temperature)]
    if settings.open:
        flags.append("--open")
    url = f"{_scheme(settings)}://{_reachable(settings.host)}:{settings.web_port}/"
    return ServiceSpec("web", (*KODOLLY, "web", *flags), url)


def _scheme(settings: UpSettings) -> str:
    return "https" if settings.tls_cert else "http"


def _tls_flags(settings: UpSettings) -> tuple[str, ...]:
    """For API and page; a settings file that names other certificates for them is refused before."""
    return (f"--tls-cert={settings.tls_cert or ''}", f"--tls-key={settings.tls_key or ''}")


def _model_temperature(model: Path) -> float | None:
    """The temperature in the model's generation_config.json; None without a usable one."""
    try:
        config = json.loads((model / "generation_config.json").read_text("utf-8"))
        temperature = float(config["temperature"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return temperature if 0 <= temperature <= 2 else None


def _reachable(host: str) -> str:
    """A host, ready for a URL, at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": LOCAL, "": LOCAL, "::": "[::1]"}.get(host) or host_in_url(host)


def _threads(workers: int) -> dict[str, str]:
    """Divides the cores between the engines: OpenMP threads that wait for work keep a core busy."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
