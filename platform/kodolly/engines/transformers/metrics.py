"""The engine's metrics in Prometheus' text format."""

from __future__ import annotations

from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.tokenizing import Tokenizing


def exposition(scheduler: Scheduler, tokenizing: Tokenizing, model: str) -> str:
    """All metrics of one engine, with its model's name as label."""
    label = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    waiting, encoding = scheduler.waiting, tokenizing.requests
    rows = (
        ("requests_running", "gauge", "Answers being generated.", scheduler.running),
        (
            "requests_waiting",
            "gauge",
            "Answers that wait for a free row, and requests that are being tokenized.",
            waiting + encoding,
        ),
        ("requests_tokenizing", "gauge", "Requests that are being tokenized.", encoding),
        ("aborted_total", "counter", "Answers aborted before their end.", scheduler.aborted_total),
        ("tokens_total", "counter", "Tokens generated.", scheduler.tokens_total),
        ("prompt_tokens_total", "counter", "Prompt tokens read.", scheduler.prompt_tokens_total),
    )
    lines = []
    for name, kind, text, value in rows:
        full = f"kodolly_engine_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
        lines.append(f'{full}{{model_name="{label}"}} {value}')
    return "\n".join(lines) + "\n"
