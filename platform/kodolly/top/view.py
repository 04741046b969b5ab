"""Two looks as a table of text: what is, and what has happened in between."""

from __future__ import annotations

import math
import time

from kodolly.logs import escape_controls
from kodolly.top.sample import Sample

FAILURES = ("broken", "engine_failed", "no_worker", "internal_error")
FIRST_TOKEN = "kodolly_time_to_first_token_seconds_bucket"
WORKERS = ("WORKER", "STATE", "QUEUE", "BEAT", "ENGINE", "MODELS")
MODELS = ("MODEL", "READY", "RUN", "WAIT", "REQ/S", "FAIL/S", "429/S", "TOK/S", "TTFT50", "TTFT95")
WIDEST = 48  # characters of a column


def page(before: Sample, now: Sample) -> str:
    """All of it, with a line end at the end."""
    lines = [f"KoDolly {time.strftime('%Y-%m-%d %H:%M:%S')}", *_heading(now)]
    lines += ["", *_table(WORKERS, [_worker(row, now) for row in now.workers])]
    lines += ["", *_table(MODELS, [_model(name, before, now) for name in _models(now)])]
    return "\n".join(lines) + "\n"


def _heading(now: Sample) -> list[str]:
    running = now.sum("kodolly_requests_in_flight")
    waiting = now.sum("kodolly_requests_queued")
    processes = now.sum("kodolly_api_processes")
    parts = [f"API processes: {processes:.0f}", f"{running:.0f} run", f"{waiting:.0f} wait"]
    if "kodolly_store_up" in now.metrics:
        parts.append("store up" if now.sum("kodolly_store_up") else "STORE DOWN")
    return [", ".join(parts), *(f"! {problem}" for problem in now.problems)]


def _worker(row: dict[str, object], now: Sample) -> list[str]:
    extension = row.get("kodolly")
    engine = extension.get("engine") if isinstance(extension, dict) else "FastChat"
    name, names = str(row.get("name")), row.get("model_names")
    beat = now.sum("kodolly_worker_heartbeat_age_seconds", worker=name)
    models = ", ".join(map(str, names)) if isinstance(names, list) else ""
    queue = str(row.get("queue_length"))
    return [name, str(row.get("state")), queue, f"{beat:.1f}s", str(engine or "-"), models]


def _models(now: Sample) -> list[str]:
    served = {str(name) for row in now.workers for name in _names(row)}
    return sorted(served | now.values("kodolly_requests_in_flight", "model"))


def _names(row: dict[str, object]) -> list[object]:
    names = row.get("model_names")
    return names if isinstance(names, list) else []


def _model(name: str, before: Sample, now: Sample) -> list[str]:
    seconds = max(now.time - before.time, 1e-3)

    def rate(metric: str, **labels: str) -> str:
        new = now.sum(metric, model=name, **labels) - before.sum(metric, model=name, **labels)
        return f"{max(0.0, new) / seconds:.1f}"

    failures = sum(float(rate("kodolly_requests_total", outcome=outcome)) for outcome in FAILURES)
    return [
        name,
        f"{now.sum('kodolly_workers', model=name, state='ready'):.0f}",
        f"{now.sum('kodolly_requests_in_flight', model=name):.0f}",
        f"{now.sum('kodolly_requests_queued', model=name):.0f}",
        rate("kodolly_requests_total"),
        f"{failures:.1f}",
        rate("kodolly_requests_total", outcome="overloaded"),
        rate("kodolly_tokens_total", direction="out"),
        _seconds(quantile(0.5, name, before, now)),
        _seconds(quantile(0.95, name, before, now)),
    ]


def quantile(share: float, model: str, before: Sample, now: Sample) -> float | None:
    """The time to first token (s) that this share of streams did not exceed, as a bucket's upper bound.

    Of the streams between the two looks; of all if there were none; None before the first.
    """
    bounds = sorted(now.values(FIRST_TOKEN, "le"), key=float)
    new = {b: now.sum(FIRST_TOKEN, model=model, le=b) for b in bounds}
    recent = {b: new[b] - before.sum(FIRST_TOKEN, model=model, le=b) for b in bounds}
    counts = recent if recent.get("+Inf", 0) > 0 else new
    total = counts.get("+Inf", 0)
    if total <= 0:
        return None
    return float(next(bound for bound in bounds if counts[bound] >= share * total))


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return ">600s" if math.isinf(value) else f"<{value:g}s"


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Columns as wide as what is in them."""
    cells = [list(heads), *([_short(escape_controls(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _short(cell: str) -> str:
    return cell if len(cell) <= WIDEST else cell[: WIDEST - 1] + "…"
