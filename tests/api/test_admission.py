"""Slots, queues and refusals before the router."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodolly.api.admission.admission import LONGEST_RETRY_AFTER, Admission, Ticket
from kodolly.api.relay.retry import DEPOSIT, FLOOR, REFILL_S, RetryBudget
from kodolly.api.request import ApiRequest
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import Overloaded
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState

REQUEST = ApiRequest("/v1/completions", {"model": "m", "prompt": "x"}, "id", chat=False)


class Clock:
    """Time that a test moves by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def tell(table: WorkerTable, ready: int, lost: int = 0) -> None:
    """A snapshot of some workers of the model `m`."""
    states = [WorkerState.READY] * ready + [WorkerState.LOST] * lost
    rows = [
        WorkerRow(
            name=f"http://w{number}",
            model_names=["m"],
            speed=1,
            queue_length=0,
            state=state,
            kodolly=Extension(),
        )
        for number, state in enumerate(states)
    ]
    table.apply(Snapshot(epoch="e", version=1, workers=rows))


def door(
    slots: int = 1,
    *,
    size: int = 100,
    timeout: float = 600.0,
    clock: Callable[[], float] | None = None,
) -> tuple[Admission, WorkerTable]:
    """An admission with one ready worker of so many slots, and its table."""
    table = WorkerTable(Clock())
    tell(table, 1)
    admission = Admission(
        table, worker_limit=slots, queue_size=size, queue_timeout=timeout, clock=clock or Clock()
    )
    return admission, table


class Client:
    """A call that runs until it is told to end."""

    def __init__(self, admission: Admission, key: str = "", priority: str = "default") -> None:
        self.ticket: Ticket = admission.ticket("m", key=key, priority=priority)
        self.runs = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.ticket:
            self.runs = True
            try:
                await self.end.wait()
            finally:
                self.runs = False

    async def leave(self) -> None:
        """The client hangs up."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def settled() -> None:
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@contextmanager
def error_of_status(headers: dict[str, str] | None = None) -> Iterator[None]:
    with pytest.raises(Overloaded) as refusal:
        yield
    error = refusal.value
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(error.headers["Retry-After"]) <= LONGEST_RETRY_AFTER
    assert headers is None or error.headers == headers


async def test_calls_beyond_the_bound_wait_their_turn() -> None:
    """As many run as the workers have slots; the next is let in when one ends."""
    admission, _ = door(2)
    clients = [Client(admission) for _ in range(4)]
    await settled()
    assert [c.runs for c in clients] == [True, True, False, False]
    assert [c.ticket.position for c in clients] == [0, 0, 1, 2]
    assert (admission.running("m"), admission.waiting("m")) == (2, 2)
    clients[1].end.set()
    await settled()
    assert [c.runs for c in clients] == [True, False, True, False]
    for client in clients:
        client.end.set()
    await asyncio.gather(*(client.task for client in clients))
    assert (admission.running("m"), admission.waiting("m")) == (0, 0)


async def test_a_body_that_fails_frees_its_slot() -> None:
    """An exception within leaves no slot behind."""
    admission, _ = door(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(20), admission.ticket("m"):
                raise ZeroDivisionError
    assert admission.running("m") == 0


async def test_a_full_queue_is_429() -> None:
    """Beyond slots and queue a call is refused at once, with a time to come again."""
    admission, _ = door(1, size=2)
    clients = [Client(admission) for _ in range(3)]
    await settled()
    with error_of_status():
        async with admission.ticket("m"):
            pass
    assert admission.waiting("m") == 2
    for client in clients:
        await client.leave()
    assert admission.running("m") == 0


async def test_no_queue_at_all() -> None:
    """A queue of size 0 refuses whatever cannot run."""
    admission, _ = door(1, size=0)
    async with admission.ticket("m"):
        with error_of_status():
            async with admission.ticket("m"):
                pass
    async with admission.ticket("m"):
        pass


async def test_waiting_too_long_is_429() -> None:
    """A call that waited for `queue_timeout` is refused and leaves the queue."""
    admission, _ = door(1, timeout=0.02)
    async with admission.ticket("m"):
        with error_of_status():
            async with admission.ticket("m"):
                pass
        assert admission.waiting("m") == 0
    assert admission.running("m") == 0


async def test_one_key_cannot_fill_the_queue() -> None:
    """A key that comes to a queue full of another's calls gets the place of its newest."""
    admission, _ = door(1, size=5)
    hog = [Client(admission, "hog") for _ in range(6)]
    await settled()
    late = Client(admission, "late")
    await settled()
    with error_of_status():
        await hog[-1].task
    assert admission.waiting("m") == 5
    assert late.ticket.position == 2
    with error_of_status():
        async with admission.ticket("m", key="hog"):
            pass
    for client in [*hog[:-1], late]:
        await client.leave()
    assert admission.running("m") == 0


async def test_a_new_worker_lets_in_who_waits() -> None:
    """Slots come with workers, without a call that ends."""
    admission, table = door(1)
    clients = [Client(admission) for _ in range(3)]
    await settled()
    tell(table, 2)
    await settled()
    assert [c.runs for c in clients] == [True, True, False]
    tell(table, 1)
    clients[0].end.set()
    await settled()
    assert [c.runs for c in clients] == [False, True, False]
    for client in clients:
        await client.leave()
    assert admission.running("m") == 0


async def test_without_a_worker_nobody_waits() -> None:
    """A model that nobody serves now is the router's to refuse, and leaves no trace."""
    admission, table = door(1)
    for _ in range(3):
        async with admission.ticket("nobody-has-it") as ticket:
            assert (ticket.position, ticket.wait) == (0, 0.0)
    assert admission._lanes == {}
    tell(table, 0, lost=1)
    async with admission.ticket("m"), admission.ticket("m"):
        assert admission.running("m") == 0


async def test_the_wait_is_told_from_what_calls_took() -> None:
    """Place in the queue, times how long calls run, by the slots there are."""
    clock = Clock()
    admission, _ = door(2, clock=clock, size=3)
    first = Client(admission)
    await settled()
    clock.now = 8.0
    first.end.set()
    await settled()
    clients = [Client(admission) for _ in range(5)]
    await settled()
    assert [c.ticket.wait for c in clients] == [0, 0, 4.0, 8.0, 12.0]
    with error_of_status({"Retry-After": "16"}):
        async with admission.ticket("m"):
            pass
    for client in clients:
        await client.leave()


async def test_priority_comes_first_and_flex_in_the_end() -> None:
    """Classes get their turns by weight."""
    admission, _ = door(1)
    running = Client(admission)
    await settled()
    clients = {p: Client(admission, priority=p) for p in ("flex", "default", "priority")}
    await settled()
    order = []
    for _ in clients:
        running.end.set()
        await settled()
        name = next(name for name, client in clients.items() if client.runs)
        order.append(name)
        running = clients[name]
    assert order == ["priority", "default", "flex"]
    running.end.set()
    await running.task


async def test_a_client_that_goes_as_its_turn_comes_passes_the_turn_on() -> None:
    """The slot given to a call whose client left in the same moment goes to the next."""
    admission, _ = door(1)
    clients = [Client(admission) for _ in range(3)]
    await settled()
    clients[0].end.set()
    await asyncio.sleep(0)
    assert admission.waiting("m") == 1  # the second has its turn now, but has not run yet
    assert not clients[1].runs
    await clients[1].leave()
    await settled()
    assert clients[2].runs
    await clients[2].leave()
    assert (admission.running("m"), admission.waiting("m")) == (0, 0)


async def test_a_client_that_goes_while_it_waits_leaves_its_place() -> None:
    """Those behind move up at once, and a slot that comes free in that moment is not lost on it."""
    admission, table = door(1)
    clients = [Client(admission) for _ in range(4)]
    await settled()
    await clients[1].leave()
    assert [c.ticket.position for c in clients] == [0, 0, 1, 2]
    clients[2].task.cancel()
    tell(table, 2)
    await settled()
    assert clients[3].runs
    assert (admission.running("m"), admission.waiting("m")) == (2, 0)
    for client in clients:
        await client.leave()
    assert admission.running("m") == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "end", "leave", "end+leave", "workers"]),
        st.integers(0, 7),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["priority", "default", "flex"]),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_no_slot_is_ever_lost(steps: list[tuple[str, int, str, str]]) -> None:
    """Whoever comes, ends, leaves or is refused, in whatever order: bounds hold, all is freed."""
    asyncio.run(_live(steps))


async def _live(steps: list[tuple[str, int, str, str]]) -> None:
    admission, table = door(2, size=4)
    clients: list[Client] = []
    most = 2
    for act, number, key, priority in steps:
        if act == "come":
            clients.append(Client(admission, key, priority))
        elif act == "workers":
            tell(table, number % 3, lost=1)
            most = max(most, 2 * (number % 3))
        elif clients:
            client = clients[number % len(clients)]
            if "end" in act:
                client.end.set()
            if "leave" in act:
                client.task.cancel()
        for _ in range(number % 4):  # as far as the loop may have come by then
            await asyncio.sleep(0)
        assert admission.waiting("m") <= 4
        assert 0 <= admission.running("m") <= most
    await settled()
    capacity = admission.capacity("m")
    assert not admission.waiting("m") or admission.running("m") >= capacity
    await _all_gone(clients, lambda: tell(table, 1))
    assert (admission.running("m"), admission.waiting("m")) == (0, 0)


async def _all_gone(clients: list[Client], revive: Callable[[], None]) -> None:
    """Every call ends, with at least one worker to let in those that still wait."""
    revive()
    for client in clients:
        client.end.set()
    ends = await asyncio.gather(*(client.task for client in clients), return_exceptions=True)
    assert all(isinstance(end, (Overloaded, asyncio.CancelledError, type(None))) for end in ends)


class TestRetryBudget:
    """An outage is not amplified, and one worker's death costs nobody a stream."""

    def test_a_few_retries_are_always_free(self) -> None:
        """A quiet model may try again `FLOOR` times at once, and no more."""
        budget = RetryBudget(clock=Clock())
        assert [budget.allows("m") for _ in range(int(FLOOR) + 1)] == [True] * int(FLOOR) + [False]
        assert budget.allows("another model")

    def test_first_tries_earn_later_ones(self) -> None:
        """Five calls that are tried for the first time allow one more retry."""
        budget = RetryBudget(clock=Clock())
        while budget.allows("m"):
            pass
        for _ in range(round(1 / DEPOSIT)):
            assert not budget.allows("m")
            budget.first_attempt(REQUEST)
        assert budget.allows("m")
        assert not budget.allows("m")

    def test_what_runs_may_move_once(self) -> None:
        """Every running call may be moved once, however many they are."""
        budget = RetryBudget(lambda _: 300, Clock())
        assert sum(budget.allows("m") for _ in range(500)) == 300

    def test_time_heals(self) -> None:
        """A spent budget is whole again after `REFILL_S` seconds, and never more than whole."""
        clock = Clock()
        budget = RetryBudget(clock=clock)
        while budget.allows("m"):
            pass
        clock.now += REFILL_S / 2
        assert sum(budget.allows("m") for _ in range(100)) == FLOOR / 2
        clock.now += REFILL_S * 9
        assert sum(budget.allows("m") for _ in range(100)) == FLOOR

    def test_an_outage_is_not_amplified(self) -> None:
        """With every try failing, later tries stay near a fifth of the first ones."""
        clock = Clock()
        budget = RetryBudget(clock=clock)
        later = 0
        for _ in range(10_000):  # 100 a second
            clock.now += 0.01
            budget.first_attempt(REQUEST)
            later += sum(budget.allows("m") for _ in range(2))
        assert later <= FLOOR + 10_000 * DEPOSIT + 100 * FLOOR / REFILL_S

    def test_deposits_cannot_be_saved_up(self) -> None:
        """Years of good service do not pay for a storm."""
        budget = RetryBudget(clock=Clock())
        for _ in range(10_000):
            budget.first_attempt(REQUEST)
        assert sum(budget.allows("m") for _ in range(100)) == FLOOR
        assert len(budget._accounts) == 1
