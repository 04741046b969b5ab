"""When a call is tried again, and when it is given up: a fault is not multiplied by retries."""

import pytest
from support.clock import Clock

from kodolly.api.errors import WorkerFailed
from kodolly.api.relay.retry import EARLY_FAILURE_S, MAX_LOST_WORKERS, WAIT_AT_START_S, RetryState
from kodolly.api.request import ApiRequest
from kodolly.errors import EngineFailed, NoWorker

REQUEST = ApiRequest("/v1/completions", {"model": "m", "prompt": "x"}, "id", chat=False)
TOOK_IT = WorkerFailed("broke off")
REFUSED = WorkerFailed("does not answer", did_work=False)


def test_a_spent_budget_is_the_end_of_fruitless_tries() -> None:
    """Work that an engine took and lost is not asked for again once the model has no retry left."""
    asked: list[str] = []

    def allows(model: str) -> bool:
        asked.append(model)
        return False

    with pytest.raises(NoWorker) as refusal:
        RetryState(REQUEST, allows, Clock()).failed("w0", TOOK_IT, delivered=0)
    assert asked == ["m"]
    assert refusal.value.headers["Retry-After"]


def test_what_cost_nobody_anything_is_not_budgeted() -> None:
    """A refused connection, and a stream that has come further, are tried on without a retry left."""
    state = RetryState(REQUEST, lambda _: False, Clock())
    for number in range(20):
        state.failed(f"w{number}", REFUSED, delivered=0)
    for delivered in range(1, MAX_LOST_WORKERS):
        state.failed("w0", TOOK_IT, delivered=delivered)
    with pytest.raises(NoWorker):
        state.failed("w0", TOOK_IT, delivered=MAX_LOST_WORKERS)


async def test_a_call_does_not_wait_for_ever_for_a_worker() -> None:
    """After its patience it is told to come again, or what the last engine said."""
    clock = Clock()
    for told in (None, EngineFailed("out of memory")):
        state = RetryState(REQUEST, lambda _: True, clock)
        state.failed("w0", WorkerFailed("broke off", told), delivered=0)
        clock.now += WAIT_AT_START_S + 0.1
        with pytest.raises(EngineFailed if told else NoWorker):
            await state.wait(in_stream=False)


def test_who_was_long_at_work_is_not_blamed_for_its_workers_end() -> None:
    """Three workers lost in a row end a call that may have killed them, not one that was at work."""
    clock = Clock()
    quick, long = (RetryState(REQUEST, lambda _: True, clock) for _ in range(2))
    for number in range(2):
        quick.failed(f"w{number}", TOOK_IT, delivered=0)
    with pytest.raises(NoWorker):
        quick.failed("w2", TOOK_IT, delivered=0)
    for number in range(MAX_LOST_WORKERS - 1):
        clock.now += EARLY_FAILURE_S + 0.1
        long.failed(f"w{number}", TOOK_IT, delivered=0)
    clock.now += EARLY_FAILURE_S + 0.1
    with pytest.raises(NoWorker):
        long.failed("w7", TOOK_IT, delivered=0)


def test_a_request_that_broke_two_engines_is_not_given_to_a_third() -> None:
    """Two engines that broke down early on one request are enough; two that only refused are not."""
    state = RetryState(REQUEST, lambda _: True, Clock())
    state.failed("w0", WorkerFailed("broke off", engine_crashed=True), delivered=0)
    with pytest.raises(EngineFailed, match="2 engines broke down"):
        state.failed("w1", WorkerFailed("broke off", engine_crashed=True), delivered=0)
    full = RetryState(REQUEST, lambda _: True, Clock())
    full.failed("w0", WorkerFailed("answered 503"), delivered=0)
    full.failed("w1", WorkerFailed("answered 503"), delivered=0)


def test_an_engine_that_broke_down_later_or_after_tokens_is_not_the_requests_doing() -> None:
    """Streams that came further, and calls that ran for long, outlive any two engines."""
    clock = Clock()
    further, long = (RetryState(REQUEST, lambda _: True, clock) for _ in range(2))
    for delivered in range(1, 5):
        further.failed("w0", WorkerFailed("broke off", engine_crashed=True), delivered=delivered)
    for _ in range(3):
        clock.now += EARLY_FAILURE_S + 0.1
        long.failed("w0", WorkerFailed("broke off", engine_crashed=True), delivered=0)
