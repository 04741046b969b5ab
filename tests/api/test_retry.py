"""When a call is tried again, and when it is given up: a fault is not multiplied by retries."""

import pytest
from support.clock import Clock

from kodolly.api.relay.retry import MAX_LOST, PATIENCE_AT_FIRST, SOON, Tries
from kodolly.api.request import Call, WorkerGone
from kodolly.errors import EngineFailed, NoWorker

CALL = Call("/v1/completions", {"model": "m", "prompt": "x"}, "id", chat=False)
TOOK_IT = WorkerGone("broke off")
REFUSED = WorkerGone("does not answer", worked=False)


def test_a_spent_budget_is_the_end_of_fruitless_tries() -> None:
    """Work that an engine took and lost is not asked for again once the model has no retry left."""
    asked: list[str] = []

    def allows(model: str) -> bool:
        asked.append(model)
        return False

    with pytest.raises(NoWorker) as refusal:
        Tries(CALL, allows, Clock()).failed("w0", TOOK_IT, had=0)
    assert asked == ["m"]
    assert refusal.value.headers["Retry-After"]


def test_what_cost_nobody_anything_is_not_budgeted() -> None:
    """A refused connection, and a stream that has come further, are tried on without a retry left."""
    tries = Tries(CALL, lambda _: False, Clock())
    for number in range(20):
        tries.failed(f"w{number}", REFUSED, had=0)
    for had in range(1, MAX_LOST):
        tries.failed("w0", TOOK_IT, had=had)
    with pytest.raises(NoWorker):
        tries.failed("w0", TOOK_IT, had=MAX_LOST)


async def test_a_call_does_not_wait_for_ever_for_a_worker() -> None:
    """After its patience it is told to come again, or what the last engine said."""
    clock = Clock()
    for told in (None, EngineFailed("out of memory")):
        tries = Tries(CALL, lambda _: True, clock)
        tries.failed("w0", WorkerGone("broke off", told), had=0)
        clock.now += PATIENCE_AT_FIRST + 0.1
        with pytest.raises(EngineFailed if told else NoWorker):
            await tries.wait(begun=False)


def test_who_was_long_at_work_is_not_blamed_for_its_workers_end() -> None:
    """Three workers lost in a row end a call that may have killed them, not one that was at work."""
    clock = Clock()
    quick, long = (Tries(CALL, lambda _: True, clock) for _ in range(2))
    for number in range(2):
        quick.failed(f"w{number}", TOOK_IT, had=0)
    with pytest.raises(NoWorker):
        quick.failed("w2", TOOK_IT, had=0)
    for number in range(MAX_LOST - 1):
        clock.now += SOON + 0.1
        long.failed(f"w{number}", TOOK_IT, had=0)
    clock.now += SOON + 0.1
    with pytest.raises(NoWorker):
        long.failed("w7", TOOK_IT, had=0)


def test_a_request_that_broke_two_engines_is_not_given_to_a_third() -> None:
    """Two engines that broke down early on one request are enough; two that only refused are not."""
    tries = Tries(CALL, lambda _: True, Clock())
    tries.failed("w0", WorkerGone("broke off", died=True), had=0)
    with pytest.raises(EngineFailed, match="2 engines broke down"):
        tries.failed("w1", WorkerGone("broke off", died=True), had=0)
    full = Tries(CALL, lambda _: True, Clock())
    full.failed("w0", WorkerGone("answered 503"), had=0)
    full.failed("w1", WorkerGone("answered 503"), had=0)


def test_an_engine_that_broke_down_later_or_after_tokens_is_not_the_requests_doing() -> None:
    """Streams that came further, and calls that ran for long, outlive any two engines."""
    clock = Clock()
    further, long = (Tries(CALL, lambda _: True, clock) for _ in range(2))
    for had in range(1, 5):
        further.failed("w0", WorkerGone("broke off", died=True), had=had)
    for _ in range(3):
        clock.now += SOON + 0.1
        long.failed("w0", WorkerGone("broke off", died=True), had=0)
