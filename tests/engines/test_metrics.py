"""What an engine's own counters say of its work."""

import pytest

from kodolly.engines.metrics import steps_of_engine, totals

VLLM_STEPS = """\
vllm:generation_tokens_total{engine="0"} 40.0
vllm:iteration_tokens_total_count{engine="0"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_requests_running{engine="0"} 1.0
"""


@pytest.mark.parametrize(
    ("line", "later"),
    [
        ('vllm:generation_tokens_total{engine="0"} 40.0', "41.0"),
        ('vllm:iteration_tokens_total_count{engine="0"} 7.0', "8.0"),
        ('vllm:kv_cache_usage_perc{engine="0"} 0.25', "0.26"),
    ],
)
def test_every_step_shows(line: str, later: str) -> None:
    """A token, a counted step and a piece of a prompt read into the cache each change the marks."""
    moved = VLLM_STEPS.replace(line, line.rpartition(" ")[0] + " " + later)
    assert steps_of_engine(totals(moved)) != steps_of_engine(totals(VLLM_STEPS))


def test_the_number_of_requests_is_no_step() -> None:
    """A request that comes or goes is no proof that the engine works."""
    busier = VLLM_STEPS.replace('running{engine="0"} 1.0', 'running{engine="0"} 9.0')
    assert steps_of_engine(totals(busier)) == steps_of_engine(totals(VLLM_STEPS))
    assert steps_of_engine(totals("process_open_fds 7.0\n")) is None
