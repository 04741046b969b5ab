"""The wait before a restart: longer each time, until a process has run well."""

from kodolly.processes.restarts import RestartBackoff


def test_the_wait_doubles_up_to_its_limit() -> None:
    """A process that ends again and again is started less and less often."""
    backoff = RestartBackoff(first=0.5, longest=3.0, healthy_run=30.0)

    assert [backoff.wait_after(1.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_long_run_begins_anew() -> None:
    """After a run beyond `healthy_run` the wait is the first one; at exactly that it is not."""
    backoff = RestartBackoff(first=0.5, longest=3.0, healthy_run=30.0)
    backoff.wait_after(0.0)
    backoff.wait_after(0.0)

    assert backoff.wait_after(30.0) == 2.0
    assert backoff.wait_after(30.1) == 0.5
    assert backoff.wait_after(0.0) == 1.0
