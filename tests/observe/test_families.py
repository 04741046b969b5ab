"""Metrics as Prometheus reads them, and the sum of several processes."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kodolly.errors import NoWorker, Overloaded
from kodolly.observe.families import Family, merged, of_rows, text
from kodolly.observe.histogram import Histogram
from kodolly.observe.process import process_families
from kodolly.observe.requests import MAX_MODELS, OTHER_MODELS, Measurement, RequestMetrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(families: Iterable[Family]) -> Samples:
    """What Prometheus' own parser makes of the text: (name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text(families))
        for sample in family.samples
    }


def ended(metrics: RequestMetrics, model: str, **values: object) -> None:
    """One request of a model that has ended."""
    with Measurement().by(metrics) as measurement:
        measurement.model = model
        for name, value in values.items():
            setattr(measurement, name, value)


@given(st.dictionaries(st.sampled_from("abc"), st.text(), max_size=3), st.floats(0, 1e9))
def test_every_label_survives(labels: dict[str, str], value: float) -> None:
    """Quotes, backslashes and line ends of a model's name come back as they were."""
    samples = parsed([Family("kodolly_x", "gauge", "X.").set(value, **labels)])
    assert samples == {("kodolly_x", tuple(sorted(labels.items()))): value}


def test_a_histogram_counts_each_bucket_with_all_before_it() -> None:
    """A value on a bound is in that bucket; the last bucket holds all."""
    histogram, family = Histogram((0.1, 1.0)), Family("h", "histogram", "H.")
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    histogram.fill(family, model="m")
    samples = parsed([family])
    buckets = {dict(labels).get("le"): v for (n, labels), v in samples.items() if n == "h_bucket"}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert samples["h_count", (("model", "m"),)] == 4
    assert abs(samples["h_sum", (("model", "m"),)] - 7.65) < 1e-9


def test_processes_are_summed_and_extremes_kept() -> None:
    """Counters and gauges add up; limits and starts of processes are the least or the most."""
    first = [
        Family("n_total", "counter", "N.").set(2, a="x"),
        Family("fds", "gauge", "F.", "max").set(7),
        Family("start", "gauge", "S.", "min").set(100),
    ]
    second = [
        Family("n_total", "counter", "N.").set(3, a="x").set(1, a="y"),
        Family("fds", "gauge", "F.", "max").set(5),
        Family("start", "gauge", "S.", "min").set(90),
    ]
    rows = [each.as_row() for each in second]
    assert parsed(merged([first, of_rows(rows)])) == {
        ("n_total", (("a", "x"),)): 5,
        ("n_total", (("a", "y"),)): 1,
        ("fds", ()): 7,
        ("start", ()): 90,
    }


def test_requests_are_counted_by_model_and_outcome() -> None:
    """Tokens, waits and retries go to the model; an error decides the outcome."""
    metrics = RequestMetrics()
    ended(metrics, "m", tokens_in=10, tokens_out=4, retries=2, resumes=1, queue_wait=0.3)
    for error in (Overloaded("full"), NoWorker("none")):
        try:
            with Measurement().by(metrics) as measurement:
                measurement.model = "m"
                raise error
        except (Overloaded, NoWorker):
            metrics.refuse(error)
    samples = parsed(metrics.families())

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    outcomes = ("ok", "overloaded", "no_worker")
    counted = [value("kodolly_requests_total", model="m", outcome=each) for each in outcomes]
    assert counted == [1, 1, 1]
    assert value("kodolly_requests_refused_total", reason="overloaded") == 1
    assert value("kodolly_tokens_total", model="m", direction="in") == 10
    assert value("kodolly_tokens_total", model="m", direction="out") == 4
    assert value("kodolly_retries_total", model="m") == 2
    assert value("kodolly_resumes_total", model="m") == 1
    assert value("kodolly_queue_wait_seconds_count", model="m") == 1


def test_models_that_come_and_go_take_bounded_room() -> None:
    """Beyond the bound they are counted together."""
    metrics = RequestMetrics()
    for number in range(MAX_MODELS + 50):
        ended(metrics, f"m{number}")
    requests = metrics.families()[0].samples
    assert len(requests) == MAX_MODELS + 1
    assert requests[f'kodolly_requests_total{{model="{OTHER_MODELS}",outcome="ok"}}'] == 50


def test_a_process_tells_of_itself() -> None:
    """Start, memory and files, under the names that every dashboard knows."""
    samples = parsed(process_families())
    assert samples["process_resident_memory_bytes", ()] > 2**20
    assert 0 < samples["process_open_fds", ()] < samples["process_max_fds", ()]
    assert samples["process_start_time_seconds", ()] > 1.6e9
