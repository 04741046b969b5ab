"""An engine's load and step counters, read from its Prometheus metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass

SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+\d+)?\s*")

# Names of the gauges for requests running and requests waiting, one pair for each kind of engine.
LOAD_GAUGES = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ("kodolly_engine_requests_running", "kodolly_engine_requests_waiting"),
)

# Metrics that change when the engine makes a step, and only then. vLLM's counters do not change while
# it reads a long prompt in parts; its cache usage does.
STEP_METRICS = (
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
TOKENIZING = "kodolly_engine_requests_tokenizing"
PREFIXES = ("vllm:", "sglang:", "llamacpp:", "kodolly_engine_")

Steps = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class EngineSample:
    """The state of a running engine at one moment.

    `load`: requests running and waiting; None if the engine does not report it. `steps`: values of
    STEP_METRICS; None if it reports none of them, or they were not read. `tokenizes`: it is turning
    text into tokens, which is no step and uses the CPU as one does.
    """

    load: int | None
    steps: Steps | None
    tokenizes: bool = False


def totals(metrics: str) -> dict[str, float]:
    """Metric name -> value, summed over its labels; only metrics of engines we know."""
    values: dict[str, float] = {}
    for line in metrics.splitlines():
        if line.startswith(PREFIXES) and (sample := SAMPLE.fullmatch(line)):
            name, value = sample.groups()
            try:
                values[name] = values.get(name, 0.0) + float(value)
            except ValueError:
                continue
    return values


def requests_in_engine(values: dict[str, float]) -> int | None:
    """Requests running plus waiting; None if the engine does not report them."""
    for running, waiting in LOAD_GAUGES:
        if running in values:
            return int(values[running] + values.get(waiting, 0.0))
    return None


def steps_of_engine(values: dict[str, float]) -> Steps | None:
    """The values of STEP_METRICS, in order; None if the engine reports none of them."""
    steps = tuple(values.get(name) for name in STEP_METRICS)
    return steps if any(value is not None for value in steps) else None
