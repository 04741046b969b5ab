"""Progress where nobody watches: lines that say how far and how fast."""

from __future__ import annotations

import re

import pytest

from kodolly_adapters import terminal


@pytest.mark.parametrize(
    ("steps", "rate"), [(3, r"\d\.\d steps/s"), (2_000_000, r"[\d,]+ steps/s")]
)
def test_slow_rates_have_a_decimal(
    steps: int, rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three steps in two seconds are 1.5 steps/s, not 2 or 0."""
    monkeypatch.setattr(terminal, "LINE_INTERVAL", 0.0)
    with terminal.Progress("train", 4_000_000, unit="step") as progress:
        progress._start_time -= 2
        progress.add(steps)
    line = capsys.readouterr().err
    assert re.search(rf"kodolly train: {steps:,} steps of 4,000,000 steps, {rate}, ", line), line
