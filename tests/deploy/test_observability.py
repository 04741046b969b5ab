"""The files for Prometheus and Grafana: rules that hold, and a paragraph for each alert."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.prometheus import DASHBOARD, FOLDER, dashboard_queries

from kodolly.observe.requests import OUTCOME_OF_STATUS

DOCS = Path(__file__).parents[2] / "docs"


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("page", ["runbook.md", "runbook.ko.md"])
def test_every_alert_has_its_paragraph(page: str) -> None:
    """In both languages, and no paragraph is of an alert that is none."""
    headings = re.findall(r"^## (\w+)$", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
def test_alerts_come_and_do_not_come() -> None:
    """promtool plays made-up series to the rules."""
    for argv in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *argv], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_outcomes_that_exist() -> None:
    """A word misspelt in a selector would silently match nothing."""
    outcomes = {*OUTCOME_OF_STATUS.values(), "ok", "cancelled", "client_stalled", "broken"}
    for rule in rules():
        for words in re.findall(r'outcome=~?"([^"]+)"', rule["expr"]):
            assert set(words.split("|")) <= outcomes


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Unique panels and queries, all from the provisioned source; queries ask for no other variable."""
    board = json.loads(DASHBOARD.read_text("utf-8"))
    source = yaml.safe_load(
        (FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    )["datasources"][0]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
    assert all("$" not in query for query in dashboard_queries())


def test_the_page_of_metrics_names_all_of_them() -> None:
    """Every metric of a query stands in docs/observe.md."""
    page = (DOCS / "observe.md").read_text("utf-8")
    queries = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    names = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for query in queries
        for name in re.findall(r"kodolly_\w+", query)
    }
    assert {name for name in names if name not in page} == set()
