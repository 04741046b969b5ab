"""The training curve as a picture: losses and learning rate over steps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]  # one line of metrics.jsonl


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def draw(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw the loss on training and held-out rows and, below, the learning rate into the PNG `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps, losses = _series(records, "loss")
    upper.plot(steps, losses, color="0.7", linewidth=0.8, label="training, each step")
    upper.plot(steps, _smooth(losses), color="C0", label="training, smoothed")
    held_steps, held = _series(records, "eval_loss")
    if held:
        upper.plot(held_steps, held, color="C1", marker="o", label="held-out rows")
    upper.set_title(title)
    upper.set_ylabel("loss (nats a token)")
    upper.legend()
    lower.plot(*_series(records, "learning_rate"), color="C2")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    unfinished = path.with_name(f".{path.name}.tmp")
    figure.savefig(unfinished, format="png", dpi=120)
    os.replace(unfinished, path)


def _series(records: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    found = [(int(r["step"]), float(r[key])) for r in records if key in r]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """An exponential mean whose start is corrected, so that it does not lag at first."""
    smoothed, total, scale = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        scale = weight * scale + (1 - weight)
        smoothed.append(total / scale)
    return smoothed
