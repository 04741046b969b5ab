"""The bases and the rows that every training test starts from, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_runs import MAKERS, rows_file


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of each architecture, by name: only to read."""
    place = tmp_path_factory.mktemp("bases")
    for name, make in MAKERS.items():
        make(place / name)
    return place


@pytest.fixture
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test draw no curve.png, which takes longer than their steps; it has tests of its own."""
    monkeypatch.setattr("kodolly_adapters.train.callbacks.draw_curve", lambda *_: None)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of rows that can be learned by heart."""
    return rows_file(tmp_path_factory.mktemp("rows"))
