"""What docker-compose.yml opens: read as text, without a Docker engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))[
    "services"
]


def published(service: str) -> list[str]:
    """The address part of each published port: all before the last two colons outside of braces."""
    ports = SERVICES[service].get("ports", [])
    return [re.fullmatch(r"(.*):\$\{\w+:-\d+\}:\d+", port)[1] for port in ports]  # type: ignore[index]


@pytest.mark.parametrize("service", ["api", "web"])
def test_what_is_published_is_what_the_process_is_told(service: str) -> None:
    """Each has an address of its own, loopback by default, and judges by that whether it is open."""
    address = published(service)
    name = f"KODOLLY_{service.upper()}"
    assert address == [f"${{{name}_BIND:-${{KODOLLY_BIND:-127.0.0.1}}}}"]
    environment = SERVICES[service]["environment"]
    assert environment[f"{name}_PUBLISHED_ADDRESS"] == address[0]
    assert environment[f"{name}_OPEN"] is None  # handed on from .env, and set nowhere else


def test_nothing_else_is_published() -> None:
    """Controller, workers and engines are reached from inside alone; Prometheus and Grafana from this machine."""
    addresses = {name: published(name) for name in SERVICES if published(name)}
    for name in ("prometheus", "grafana"):
        assert addresses.pop(name) == ["127.0.0.1"]
        assert SERVICES[name]["profiles"] == ["observability"], "only where somebody asks for them"
    assert list(addresses) == ["api", "web"]


def test_no_image_opens_itself() -> None:
    """The settings inside the images let nobody in: an image run by hand asks for keys."""
    text = (ROOT / "deploy" / "images" / "kodolly.toml").read_text("utf-8")
    assert "open" not in text
    assert "published" not in text


def test_containers_know_each_others_names() -> None:
    """Every service by whose name another one calls is on the allow-list, and the operator's names too."""
    names = set(SERVICES) - {"token", "prometheus", "grafana"}
    for service in names:
        hosts = SERVICES[service]["environment"]["KODOLLY_ALLOWED_HOSTS"].split(",")
        assert names <= set(hosts)
        assert "${KODOLLY_ALLOWED_HOSTS:-}" in hosts
