"""The control plane's benchmark measures what it says, and its tables are checked."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's main module; its helpers start in the repository's root."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.chdir(REPOSITORY)
    return importlib.import_module("benchmarks.control.run")


def test_a_small_run(run: Any) -> None:
    """Real processes: every heartbeat is answered, and the followers' tables are right at the end."""
    outcome = run.measure(workers=8, followers=2, seconds=1.0, warm_up=0.2)
    assert outcome.wrong == 0
    assert outcome.controller > 0
    assert outcome.follower_worst >= outcome.follower_mean > 0
    assert 1 <= outcome.beats <= 9


def test_the_verdict(run: Any) -> None:
    """A target missed by any one process, too little load, or a wrong table is no success."""
    good = run.Outcome(1000, 10, 30.0, 0.07, 0.004, 0.005, 0, 990)
    assert good.meets_targets()
    assert not replace(good, controller=0.11).meets_targets()
    assert not replace(good, follower_worst=0.02).meets_targets()
    assert not replace(good, wrong=1).meets_targets()
    assert not replace(good, beats=500).meets_targets()
    text = run.markdown(good, "make bench-control")
    assert all(figure in text for figure in ("1,000", "7.0%", "0.40%", "0.50%", "990 a second"))
