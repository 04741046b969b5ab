"""`kodolly top --once`: one table of a running controller and API."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.apps import serving

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.errors import KodollyError
from kodolly.http.client import new_client
from kodolly.observe.families import Family, text
from kodolly.observe.histogram import Histogram
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.top import command
from kodolly.top.sample import Sample, parse, take
from kodolly.top.view import page, quantile


@given(st.text(), st.floats(0, 1e9))
def test_what_our_processes_write_is_read_back(label: str, value: float) -> None:
    """Any model's name, through the text format and back."""
    written = text([Family("kodolly_x", "gauge", "X.").set(value, model=label)])
    assert list(parse(written.split("\n"))) == [("kodolly_x", {"model": label}, value)]


def sample(at: float, requests: int, tokens: int, *firsts: float) -> Sample:
    """A look at a model with so many requests and tokens, and first tokens after so many seconds."""
    histogram, family = (
        Histogram(),
        Family("kodolly_time_to_first_token_seconds", "histogram", "T."),
    )
    for first in firsts:
        histogram.observe(first)
    histogram.fill(family, model="m")
    families = [
        Family("kodolly_requests_total", "counter", "R.").set(requests, model="m", outcome="ok"),
        Family("kodolly_tokens_total", "counter", "T.").set(tokens, model="m", direction="out"),
        Family("kodolly_workers", "gauge", "W.").set(2, model="m", state="ready"),
        family,
    ]
    metrics: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in parse(text(families).split("\n")):
        metrics.setdefault(name, []).append((labels, value))
    row = {"name": "http://w:1", "model_names": ["m"], "state": "ready", "queue_length": 3}
    return Sample(at, [row], metrics)


def test_rates_are_those_between_two_looks() -> None:
    """Per second; first tokens of the streams in between."""
    before, now = sample(10.0, 100, 1000, 9.0), sample(12.0, 110, 1500, 9.0, 0.2, 0.2)
    text_of_page = page(before, now)
    worker = next(line for line in text_of_page.splitlines() if line.startswith("http://w:1"))
    assert worker.split()[:3] == ["http://w:1", "ready", "3"]
    model = next(line for line in text_of_page.splitlines() if line.startswith("m "))
    assert model.split() == ["m", "2", "0", "0", "5.0", "0.0", "0.0", "250.0", "<0.25s", "<0.25s"]
    assert quantile(0.5, "m", now, now) == 0.25, "without new streams it is that of all"
    assert quantile(0.5, "other", before, now) is None


def test_a_name_cannot_move_the_cursor() -> None:
    """Workers name themselves."""
    row = {"name": "\x1b[2Jw", "model_names": ["\x1b[31mm"], "state": "ready", "queue_length": 0}
    assert "\x1b" not in page(Sample(0.0, [row]), Sample(1.0, [row]))


async def test_a_real_controller_is_shown_and_what_is_missing_is_said() -> None:
    """With the token; the API that is not there is one line."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), "secret")
    extension = Extension(engine_url="http://h:3", heart_beat_interval=600, engine="vllm")
    controller.registry.register(
        Registration(worker_name="http://h:2", kodolly=extension),
        WorkerStatus(model_names=["demo"]),
    )
    nobody = "http://127.0.0.1:9"
    async with serving(create_app(controller, "secret")) as url, new_client() as client:
        seen = await take(client, url, nobody, "secret")
        refused = await take(client, url, nobody, "wrong")
        controller.stopping.set()
    shown = page(seen, seen)
    assert any(
        line.split()[:2] == ["http://h:2", "ready"] and "vllm" in line and "demo" in line
        for line in shown.splitlines()
    )
    assert f"! {nobody}/metrics: " in shown
    assert not refused.workers
    assert any("give the token" in problem for problem in refused.problems)


def test_with_nobody_there_it_ends_with_an_error() -> None:
    """And says whom it asked."""
    with pytest.raises(KodollyError, match=r"http://127\.0\.0\.1:9/workers: "):
        command.main(
            ["--once", "--controller", "http://127.0.0.1:9", "--api", "http://127.0.0.1:9"]
        )
