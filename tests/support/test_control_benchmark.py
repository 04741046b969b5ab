"""The control plane's benchmark measures what it says, and its tables are checked."""

from dataclasses import replace

from benchmarks.control.run import Outcome, markdown, measure


def test_a_small_run() -> None:
    """Real processes: every heartbeat is answered, and the followers' tables are right at the end."""
    outcome = measure(workers=8, followers=2, seconds=1.0, warm_up=0.2)
    assert outcome.wrong == 0
    assert outcome.controller > 0
    assert outcome.follower_worst >= outcome.follower_mean > 0
    assert 1 <= outcome.beats <= 9


def test_the_verdict() -> None:
    """A target missed by any one process, or a wrong table, is no success; the report has them all."""
    good = Outcome(1000, 10, 30.0, 0.07, 0.004, 0.005, 0, 990)
    assert good.meets_targets()
    assert not replace(good, controller=0.11).meets_targets()
    assert not replace(good, follower_worst=0.02).meets_targets()
    assert not replace(good, wrong=1).meets_targets()
    assert not replace(good, beats=500).meets_targets()
    text = markdown(good, "make bench-control")
    assert all(figure in text for figure in ("1,000", "7.0%", "0.40%", "0.50%", "990 a second"))
