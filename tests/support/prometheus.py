"""A real Prometheus that scrapes a stack by the project's own prometheus.yml, and the queries it must answer."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.processes import free_port, wait_until

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "kodolly.json"
SELECTOR = re.compile(r"\b((?:kodolly|process)_\w+|up)\b(?:\{([^}]*)\})?")


def is_installed() -> bool:
    """Whether this machine has Prometheus (Debian's package of that name)."""
    return shutil.which("prometheus") is not None


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        query = urllib.parse.urlencode({"query": expression})
        result: list[dict[str, Any]] = self._get(f"query?{query}")["result"]
        return result

    def targets(self) -> dict[str, str]:
        """Job -> what is wrong with its last scrape, "" if nothing is."""
        active = self._get("targets")["activeTargets"]
        return {
            target["labels"]["job"]: target["lastError"] if target["health"] != "up" else ""
            for target in active
        }

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]


@contextmanager
def scraping(folder: Path, ports: Mapping[str, int], token: str) -> Iterator[Prometheus]:
    """Prometheus with the project's configuration, for processes on this machine, once a second.

    `ports`: of controller, api and web.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yml")]
    secret = {"type": "Bearer", "credentials": token}
    for job in config["scrape_configs"]:
        job["authorization"] = secret
        name = job["job_name"].removeprefix("kodolly-")
        for discovery in job.get("http_sd_configs", ()):
            assert discovery["url"].startswith("http://controller:21001/")
            discovery["url"] = discovery["url"].replace(
                "controller:21001", f"127.0.0.1:{ports['controller']}"
            )
            discovery |= {"authorization": secret, "refresh_interval": "1s"}
        if "http_sd_configs" not in job:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[name]}"]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    argv = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            wait_until(lambda: prometheus.query("vector(1)"), timeout=60)
            yield prometheus
        finally:
            process.terminate()
            process.wait(30)


def dashboard_queries() -> list[str]:
    """The dashboard's queries, with Grafana's variables filled in as it does."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    return [q.replace("$__rate_interval", "1m").replace("$model", ".*") for q in queries]


def alert_selectors() -> list[str]:
    """A query for each metric in an alert: that the metric exists, and has the labels it is chosen by."""
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    queries = set()
    for rule in rules:
        for name, matchers in SELECTOR.findall(rule["expr"]):
            labels = re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers)
            queries.add(name + "{" + ",".join(f'{label}!=""' for label in labels) + "}")
    return sorted(queries)
