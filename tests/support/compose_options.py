"""The options that docker-compose.yml passes on, by service."""

from __future__ import annotations

from dataclasses import fields

from kodolly.options import environment_name
from kodolly.settings import (
    ApiSettings,
    CommonSettings,
    ControllerSettings,
    WebSettings,
    WorkerSettings,
    foreign_secrets,
)

SERVICE_CLASSES: dict[str, type[CommonSettings]] = {
    "controller": ControllerSettings,
    "worker": WorkerSettings,
    "worker-gpu": WorkerSettings,
    "api": ApiSettings,
    "web": WebSettings,
}
# Inside a container a process listens on every address and on its usual port. Where it is reached is
# KODOLLY_BIND, KODOLLY_API_PORT and KODOLLY_WEB_PORT, which compose reads itself.
FIXED_INSIDE = {"host", "port"}
# The CPU worker's engine has no adapters, and refuses to start with some.
NOT_FOR = {("worker", "KODOLLY_WORKER_ADAPTERS")}


def compose_variables(service: str) -> list[str]:
    """The variables of all options of a service's process that reach its container."""
    cls = SERVICE_CLASSES[service]
    names = {environment_name(cls, f.name) for f in fields(cls) if f.name not in FIXED_INSIDE}
    names -= foreign_secrets(cls)
    return sorted(name for name in names if (service, name) not in NOT_FOR)
