"""docker-compose.yml beside the options: what an operator writes into .env reaches its container.

Read as YAML here; tests/e2e/test_compose.py asks Docker itself.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.compose_options import SERVICE_CLASSES, compose_variables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services, with YAML's merges applied."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)["services"]
    return loaded


@pytest.mark.parametrize("service", SERVICE_CLASSES)
def test_every_option_reaches_its_container_and_no_other(
    service: str, services: dict[str, Any]
) -> None:
    """Each option is passed on by its own name; no container gets a setting, or secret, of another."""
    passed = {name for name in services[service]["environment"] if name.startswith("KODOLLY_")}
    missing = sorted(set(compose_variables(service)) - passed)
    assert not missing, f"add to {service}'s environment in docker-compose.yml: {missing}"
    assert not passed - set(compose_variables(service)), "no option of this process has that name"


@pytest.mark.parametrize("service", SERVICE_CLASSES)
def test_a_value_is_passed_on_as_it_is(service: str, services: dict[str, Any]) -> None:
    """Without a default of its own an entry is empty: unset where nobody sets it. With one, it yields.

    Compose adds the containers' names to the allowed hosts, and says where it publishes a port.
    """
    for name, value in services[service]["environment"].items():
        if name == "KODOLLY_ALLOWED_HOSTS":
            assert value.endswith(f",${{{name}:-}}")
        elif name.endswith("_PUBLISHED_ADDRESS"):
            bind = name.replace("PUBLISHED_ADDRESS", "BIND")
            assert value == f"${{{bind}:-${{KODOLLY_BIND:-127.0.0.1}}}}"
        else:
            assert value is None or value.startswith(f"${{{name}:-"), f"{service}: {name}: {value}"


@pytest.mark.parametrize("service", SERVICE_CLASSES)
def test_every_container_is_bounded(service: str, services: dict[str, Any]) -> None:
    """Memory and processes have limits that a setting moves."""
    for key in ("mem_limit", "pids_limit"):
        assert str(services[service][key]).startswith("${KODOLLY_"), f"{service}: {key}"


def test_each_kind_of_worker_has_a_token_of_its_own(services: dict[str, Any]) -> None:
    """The fleet's token is in no worker's container; the controller has all of them, the page none."""
    volumes = {
        name: {v.split(":")[0] for v in service.get("volumes", ()) if isinstance(v, str)}
        for name, service in services.items()
    }
    # What opens the metrics is everybody's who has some, and Prometheus'; it has no other token.
    others = {"prometheus", "grafana"}
    assert all("metrics-token" in volumes[name] for name in volumes if name != "grafana")
    assert volumes["prometheus"] & {"token", "worker-token", "worker-gpu-token"} == set()
    volumes = {n: v - {"metrics-token", "metrics"} for n, v in volumes.items() if n not in others}
    assert volumes == {
        "token": {"token", "worker-token", "worker-gpu-token"},
        "controller": {"token", "worker-token", "worker-gpu-token"},
        "worker": {"worker-token"},
        "worker-gpu": {"worker-gpu-token", "gpu-leases", "gpu-cache"},
        "api": {"token", "store"},
        "web": set(),
    }


def test_the_settings_table_names_what_compose_reads_itself(services: dict[str, Any]) -> None:
    """deploy/README.md tells of every variable that is compose's own."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    readme = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    own = {part.split(":")[0].split("}")[0] for part in text.split("${KODOLLY_")[1:]}
    options = {
        name.removeprefix("KODOLLY_") for s in SERVICE_CLASSES for name in compose_variables(s)
    }
    for name in own - options:
        assert f"`KODOLLY_{name}`" in readme or f"`_{name}`" in readme, f"KODOLLY_{name}"
