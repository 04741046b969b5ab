"""The controller's table: who is ready, draining, lost."""

import asyncio

import pytest
from support.clock import Clock

from kodolly.controller.app import ControllerTimes
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import REMOVE_LOST_AFTER, Registry
from kodolly.protocol.wire import (
    Extension,
    HeartbeatRequest,
    Registration,
    WorkerRow,
    WorkerState,
    WorkerStatus,
)
from kodolly.settings import ControllerSettings, WorkerSettings


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(expiration=90, missed_beats=3, clock=clock)


def register(
    registry: Registry, name: str, model: str = "m", extension: Extension | None = None
) -> None:
    status = WorkerStatus(model_names=[model], speed=1, queue_length=0)
    registry.register(Registration(worker_name=name, kodolly=extension), status)


def beat(name: str, queue: int = 0, state: WorkerState | None = None) -> HeartbeatRequest:
    extension = Extension(state=state) if state else None
    return HeartbeatRequest(worker_name=name, queue_length=queue, kodolly=extension)


def states(registry: Registry) -> dict[str, str]:
    return {row.name: row.state.value for row in registry.rows()}


def test_a_fastchat_worker_is_ready_at_once(registry: Registry) -> None:
    """FastChat's protocol has no states: registered means ready."""
    register(registry, "http://a")

    assert states(registry) == {"http://a": "ready"}


def test_our_worker_has_the_state_it_tells(registry: Registry) -> None:
    """A KoDolly worker is listed as starting until it says that it made a token."""
    register(registry, "http://a", extension=Extension(state=WorkerState.STARTING))
    assert registry.ready() == []

    registry.heartbeat(beat("http://a", state=WorkerState.READY))

    assert states(registry) == {"http://a": "ready"}


def test_a_beat_of_an_unknown_worker_asks_it_to_register(registry: Registry) -> None:
    """After a controller's restart workers learn from their next beat to register again."""
    assert registry.heartbeat(beat("http://a")) is False


def test_our_worker_is_lost_after_three_missed_beats(registry: Registry, clock: Clock) -> None:
    """A worker that told its interval is lost after three of them, not after FastChat's 90 s."""
    register(registry, "http://a", extension=Extension(heart_beat_interval=5))
    clock.now += 15
    registry.sweep()
    assert states(registry) == {"http://a": "ready"}

    clock.now += 0.1
    registry.sweep()

    assert states(registry) == {"http://a": "lost"}


def test_a_worker_may_change_its_interval(registry: Registry, clock: Clock) -> None:
    """It is judged by the interval that its last heartbeat told."""
    register(registry, "http://a", extension=Extension(heart_beat_interval=5))
    extension = Extension(heart_beat_interval=10, state=WorkerState.READY)
    registry.heartbeat(HeartbeatRequest(worker_name="http://a", queue_length=0, kodolly=extension))
    for _ in range(30):
        clock.now += 1
        registry.sweep()
    assert states(registry) == {"http://a": "ready"}

    clock.now += 1
    registry.sweep()
    assert states(registry) == {"http://a": "lost"}


def test_out_of_the_box_a_dead_worker_is_lost_within_four_seconds(clock: Clock) -> None:
    """By the defaults of both sides and the pace of the sweeps, not FastChat's 90 to 180 s."""
    ours, theirs = ControllerSettings(), WorkerSettings()
    registry = Registry(ours.expiration, ours.missed_beats, clock)
    extension = Extension(heart_beat_interval=theirs.heart_beat_interval)
    register(registry, "http://a", extension=extension)
    died = clock.now
    while states(registry) != {"http://a": "lost"}:
        clock.now += ControllerTimes().sweep_interval
        registry.sweep()

    assert clock.now - died <= 4


def test_a_controller_that_stood_still_loses_nobody(registry: Registry, clock: Clock) -> None:
    """After a pause of its own the controller lets everybody beat first; the dead are lost then."""
    register(registry, "http://a", extension=Extension(heart_beat_interval=1))
    registry.sweep()
    clock.now += 20
    registry.sweep()
    assert states(registry) == {"http://a": "ready"}

    for _ in range(4):
        clock.now += 1
        registry.sweep()
    assert states(registry) == {"http://a": "lost"}


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.STALLED, WorkerState.DRAINING])
def test_only_a_ready_worker_gets_requests(registry: Registry, state: WorkerState) -> None:
    """One that loads, makes no tokens, or is about to leave is listed, and nobody is sent there."""
    register(registry, "http://a", extension=Extension(state=WorkerState.READY))
    assert len(registry.ready()) == 1
    registry.heartbeat(beat("http://a", state=state))

    assert registry.ready() == []
    assert states(registry) == {"http://a": state.value}


def test_a_fastchat_worker_is_lost_after_fastchats_expiration(
    registry: Registry, clock: Clock
) -> None:
    """A FastChat worker beats every 45 s, so it gets FastChat's own 90 s."""
    register(registry, "http://a")
    clock.now += 90
    registry.sweep()
    assert states(registry) == {"http://a": "ready"}

    clock.now += 0.1
    registry.sweep()

    assert states(registry) == {"http://a": "lost"}


def test_a_lost_worker_that_beats_is_back(registry: Registry, clock: Clock) -> None:
    """A beat after a long silence brings a worker back without registering."""
    register(registry, "http://a")
    clock.now += 100
    registry.sweep()

    assert registry.heartbeat(beat("http://a")) is True
    assert states(registry) == {"http://a": "ready"}


def test_lost_workers_are_forgotten_in_the_end(registry: Registry, clock: Clock) -> None:
    """The table does not fill up with workers that never come back."""
    register(registry, "http://a")
    clock.now += REMOVE_LOST_AFTER + 91
    registry.sweep()
    registry.sweep()

    assert states(registry) == {}


def test_a_drain_holds_until_the_worker_registers_anew(registry: Registry) -> None:
    """Beats of a worker that does not know it is drained do not put it back into rotation."""
    register(registry, "http://a")
    registry.drain("http://a")
    registry.heartbeat(beat("http://a", state=WorkerState.READY))
    assert states(registry) == {"http://a": "draining"}

    register(registry, "http://a")

    assert states(registry) == {"http://a": "ready"}


def test_a_draining_worker_that_falls_silent_is_lost(registry: Registry, clock: Clock) -> None:
    """Draining does not hide that a worker died."""
    register(registry, "http://a", extension=Extension(heart_beat_interval=1))
    registry.drain("http://a")
    clock.now += 4
    registry.sweep()

    assert states(registry) == {"http://a": "lost"}


def test_a_drained_worker_whose_engine_is_stuck_is_told(registry: Registry) -> None:
    """Its streams must go on elsewhere; it comes back drained."""
    register(registry, "http://a")
    registry.drain("http://a")
    registry.heartbeat(beat("http://a", state=WorkerState.STALLED))
    assert states(registry) == {"http://a": "stalled"}
    registry.heartbeat(beat("http://a", state=WorkerState.READY))
    assert states(registry) == {"http://a": "draining"}


def test_a_drain_outlives_a_silence(registry: Registry, clock: Clock) -> None:
    """A drained worker that was lost for a while comes back drained, not ready."""
    register(registry, "http://a")
    registry.drain("http://a")
    clock.now += 100
    registry.sweep()
    registry.heartbeat(beat("http://a"))

    assert states(registry) == {"http://a": "draining"}


def test_a_refresh_revives_a_fastchat_worker(registry: Registry) -> None:
    """A worker that does not beat is ready again once it answers /worker_get_status."""
    register(registry, "http://a")
    registry.mark_lost("http://a")
    registry.refresh("http://a", WorkerStatus(model_names=["m", "n"]))

    assert states(registry) == {"http://a": "ready"}
    assert registry.rows()[0].model_names == ["m", "n"]


async def test_waiters_wake_on_change_only(registry: Registry) -> None:
    """A beat that changes nothing wakes no follower; a change of load does."""
    register(registry, "http://a")
    registry.take_change()
    waiting = asyncio.create_task(registry.wait_for_change())
    registry.heartbeat(beat("http://a", queue=0))
    await asyncio.sleep(0)
    assert not waiting.done()

    registry.heartbeat(beat("http://a", queue=2))
    await asyncio.wait_for(waiting, 1)

    assert registry.rows()[0].queue_length == 2


def row(name: str, queue: int = 0, speed: float = 1, model: str = "m") -> WorkerRow:
    return WorkerRow(
        name=name, model_names=[model], speed=speed, queue_length=queue, state=WorkerState.READY
    )


def test_shortest_queue_weighs_by_speed() -> None:
    """The worker with the least queue per speed is chosen."""
    choice = Dispatcher("shortest_queue").choose([row("a", 3, 1), row("b", 4, 2)], "m")

    assert choice == "b"


def test_requests_handed_out_count_until_the_next_beat() -> None:
    """Between two heartbeats dispatches spread; a new queue length starts the count anew."""
    dispatcher = Dispatcher("shortest_queue")
    workers = [row("a"), row("b")]

    chosen = [dispatcher.choose(workers, "m") for _ in range(4)]

    assert sorted(chosen) == ["a", "a", "b", "b"]
    assert dispatcher.choose([row("a", 1), row("b", 5)], "m") == "a"


@pytest.mark.parametrize("method", ["shortest_queue", "lottery"])
def test_no_worker_is_an_empty_address(method: str) -> None:
    """FastChat's answer for a model nobody serves is the empty string."""
    assert Dispatcher(method).choose([row("a", model="other")], "m") == ""


def test_lottery_follows_the_weights() -> None:
    """Lottery draws by speed, and never a worker of another model."""
    workers = [row("a", speed=9), row("b", speed=1), row("c", speed=100, model="other")]
    dispatcher = Dispatcher("lottery")

    drawn = [dispatcher.choose(workers, "m") for _ in range(2000)]

    assert set(drawn) == {"a", "b"}
    assert 1650 < drawn.count("a") < 1950
