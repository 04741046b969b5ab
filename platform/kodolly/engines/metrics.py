"""What an engine's Prometheus text tells of its health: how much it has to do, and whether it steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+\d+)?\s*")

# The gauges of requests running and of requests waiting, by engine.
LOAD_GAUGES = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ("kodolly_engine_requests_running", "kodolly_engine_requests_waiting"),
)

# Numbers that move with the engine's steps and with nothing else. vLLM's counters stand still
# while a long prompt is read in pieces; the cache that fills up meanwhile does not.
STEP_MARKS = (
    "vllm:iteration_tokens_total_count",
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:kv_cache_usage_perc",
    "sglang:generation_tokens_total",
    "sglang:prompt_tokens_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:prompt_tokens_total",
    "llamacpp:n_decode_total",
    "kodolly_engine_tokens_total",
    "kodolly_engine_prompt_tokens_total",
)
KNOWN = ("vllm:", "sglang:", "llamacpp:", "kodolly_engine_")

Steps = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Pulse:
    """One look at a running engine.

    `load`: requests running and waiting, or None if it does not tell. `steps`: numbers that change
    when it makes a step, or None if it tells none, or was not asked because it has nothing to do.
    """

    load: int | None
    steps: Steps | None


def totals(metrics: str) -> dict[str, float]:
    """The samples of known engines by name, summed over their labels."""
    values: dict[str, float] = {}
    for line in metrics.splitlines():
        if line.startswith(KNOWN) and (sample := SAMPLE.fullmatch(line)):
            name, value = sample.groups()
            try:
                values[name] = values.get(name, 0.0) + float(value)
            except ValueError:
                continue
    return values


def requests_in_engine(values: dict[str, float]) -> int | None:
    """Requests running plus waiting; None if unknown."""
    for running, waiting in LOAD_GAUGES:
        if running in values:
            return int(values[running] + values.get(waiting, 0.0))
    return None


def steps_of_engine(values: dict[str, float]) -> Steps | None:
    """The step marks that are there; None if there are none."""
    marks = tuple(values.get(name) for name in STEP_MARKS)
    return marks if any(mark is not None for mark in marks) else None
