"""The watch stream: the table once, then what changes, each line made once for all followers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kodolly.api.routing.table import WorkerTable
from kodolly.api.routing.table_copy import BadLine, TableCopy
from kodolly.controller import feed as feed_module
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.feed import Feed
from kodolly.controller.heartbeat import HeartbeatEndpoint
from kodolly.controller.registry import Registry
from kodolly.errors import BadRequest
from kodolly.protocol.wire import (
    Change,
    Extension,
    HeartbeatRequest,
    Registration,
    WorkerState,
    WorkerStatus,
)


@pytest.fixture
def registry() -> Registry:
    return Registry(90, 3)


def register(registry: Registry, name: str, queue: int = 0) -> bool:
    status = WorkerStatus(model_names=["m"], queue_length=queue)
    registry.register(Registration(worker_name=name, kodolly=Extension()), status)
    return True


def beat(registry: Registry, name: str, queue: int, state: str = "ready") -> bool:
    extension = Extension(state=WorkerState(state))
    request = HeartbeatRequest(worker_name=name, queue_length=queue, kodolly=extension)
    return registry.heartbeat(request)


@asynccontextmanager
async def running(registry: Registry) -> AsyncIterator[Feed]:
    feed = Feed(registry, asyncio.Event())
    task = asyncio.create_task(feed.run())
    yield feed
    task.cancel()


async def next_lines(stream: AsyncIterator[bytes]) -> list[bytes]:
    """The lines of the next piece of a watch stream that is no keep-alive."""
    while not (piece := await anext(stream)).strip():
        pass
    return piece.splitlines()


class Copies:
    """A table copy and the API's table, both by the lines of one stream."""

    def __init__(self) -> None:
        self.copy, self.table = TableCopy(), WorkerTable()
        self._is_first = True

    def take(self, lines: list[bytes]) -> None:
        for line in lines:
            change = self.copy.take(line, first=self._is_first)
            self._is_first = False
            if change is None:
                self.table.apply(self.copy.snapshot())
            else:
                self.table.apply_change(change)

    def seen(self) -> list[dict[str, tuple[str, int]]]:
        return [
            {row.name: (row.state.value, row.queue_length) for row in rows}
            for rows in (self.copy.snapshot().workers, [w.row for w in self.table.all()])
        ]


async def test_changes_make_the_same_table(registry: Registry) -> None:
    """Rows that come, change and go, and loads: a follower's table is the controller's."""
    register(registry, "http://a")
    register(registry, "http://b")
    copies = Copies()
    async with running(registry) as feed:
        stream = feed.lines()
        copies.take(await next_lines(stream))
        for step in (
            lambda: beat(registry, "http://a", 5),
            lambda: register(registry, "http://c", 2),
            lambda: registry.remove("http://b"),
            lambda: registry.drain("http://a"),
            lambda: [registry.remove("http://c"), register(registry, "http://c", 7)],
            lambda: [beat(registry, "http://c", 8), register(registry, "http://b", 1)],
            lambda: [register(registry, "http://d"), registry.remove("http://d")],
        ):
            step()
            copies.take(await next_lines(stream))
            own = {r.name: (r.state.value, r.queue_length) for r in registry.rows()}
            assert copies.seen() == [own, own]


async def test_a_table_is_not_told_twice(registry: Registry) -> None:
    """Who joins while a change waits to be sent has it in the table, and hears the next one only."""
    async with running(registry) as feed:
        register(registry, "http://a")
        stream = feed.lines()
        (table,) = await next_lines(stream)
        assert b"http://a" in table
        await asyncio.sleep(0.1)  # the change that waited is sent to whoever lacks it
        registry.drain("http://a")
        (line,) = await next_lines(stream)
    assert [row.state for row in Change.model_validate_json(line).rows] == [WorkerState.DRAINING]


async def test_a_load_is_no_row(registry: Registry) -> None:
    """A heartbeat that changes the queue alone costs its row's number and the queue's length."""
    register(registry, "http://a")
    register(registry, "http://b")
    registry.take_change()
    beat(registry, "http://b", 3)
    change = registry.take_change()
    assert (change.rows, change.removed) == ([], [])
    assert change.loads == [(registry.rows()[1].number, 3)]


async def test_busy_workers_share_a_line(registry: Registry) -> None:
    """Loads alone make at most one line in LOAD_INTERVAL, each worker in it once."""
    for number in range(20):
        register(registry, f"http://w{number}")
    async with running(registry) as feed:
        stream = feed.lines()
        await next_lines(stream)
        beat(registry, "http://w0", 1)
        await next_lines(stream)
        for queue in range(1, 4):
            for number in range(20):
                beat(registry, f"http://w{number}", queue)
            await asyncio.sleep(0)
        (line,) = await next_lines(stream)
    change = Change.model_validate_json(line)
    assert sorted(queue for _, queue in change.loads) == [3] * 20


async def test_a_row_does_not_wait_for_loads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of state goes out at once, however long loads may be collected."""
    monkeypatch.setattr(feed_module, "LOAD_INTERVAL", 600.0)
    register(registry, "http://a")
    async with running(registry) as feed:
        stream = feed.lines()
        await next_lines(stream)
        beat(registry, "http://a", 1)
        await next_lines(stream)
        beat(registry, "http://a", 2)
        beat(registry, "http://a", 2, "stalled")
        (line,) = await asyncio.wait_for(next_lines(stream), 20)
    assert Change.model_validate_json(line).rows[0].state is WorkerState.STALLED


async def test_a_follower_that_reads_too_slowly_gets_the_whole_table(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded; the table it gets instead is right."""
    monkeypatch.setattr(feed_module, "MAX_BACKLOG", 3)
    monkeypatch.setattr(feed_module, "LOAD_INTERVAL", 0.0)
    monkeypatch.setattr(feed_module, "COALESCE", 0.0)
    register(registry, "http://a")
    copies = Copies()
    async with running(registry) as feed:
        stream = feed.lines()
        copies.take(await next_lines(stream))
        for queue in range(1, 10):
            beat(registry, "http://a", queue)
            for _ in range(10):
                await asyncio.sleep(0)
        lines = await next_lines(stream)
    assert len(lines) <= 4
    copies.take(lines)
    assert copies.seen()[1] == {"http://a": ("ready", 9)}


def test_a_missed_change_is_noticed(registry: Registry) -> None:
    """A change that builds on one the follower never had, or another controller's, is refused."""
    register(registry, "http://a")
    registry.take_change()
    copy = TableCopy()
    first = registry.snapshot().model_dump_json().encode()
    lines = []
    for queue in (1, 2):
        beat(registry, "http://a", queue)
        lines.append(registry.take_change())
    with pytest.raises(BadLine):
        copy.take(lines[0].model_dump_json().encode(), first=True)
    copy.take(first, first=True)
    with pytest.raises(BadLine, match="missed"):
        copy.take(lines[1].model_dump_json().encode(), first=False)
    other = lines[0].model_copy(update={"epoch": "other"})
    with pytest.raises(BadLine, match="missed"):
        copy.take(other.model_dump_json().encode(), first=False)
    copy.take(lines[0].model_dump_json().encode(), first=False)
    copy.take(lines[1].model_dump_json().encode(), first=False)
    assert copy.snapshot().workers[0].queue_length == 2


def endpoint(registry: Registry) -> HeartbeatEndpoint:
    return HeartbeatEndpoint(registry, Dispatcher("shortest_queue"))


def raw(queue: object, state: str = "ready", name: str = "http://a") -> bytes:
    text = f'{{"worker_name":"{name}","queue_length":{queue},"kodolly":{{"state":"{state}"}}}}'
    return text.encode()


def test_the_quick_path_never_hides_a_change(registry: Registry) -> None:
    """A lost worker comes back, a drained one stays drained, and a new state is taken."""
    beats = endpoint(registry)
    assert beats.take(raw(0)) is False
    register(registry, "http://a")
    for _ in range(3):
        assert beats.take(raw(1)) is True
    registry.mark_lost("http://a")
    assert beats.take(raw(1)) is True
    assert registry.rows()[0].state is WorkerState.READY
    assert beats.take(raw(2, "stalled")) is True
    assert registry.rows()[0].state is WorkerState.STALLED
    registry.drain("http://a")
    for _ in range(3):
        assert beats.take(raw(3)) is True
        assert registry.rows()[0].state is WorkerState.DRAINING
    assert registry.rows()[0].queue_length == 3
    registry.remove("http://a")
    assert beats.take(raw(3)) is False


@pytest.mark.parametrize("queue", ["-1", '"5"x', "1.5", "null", str(2**40)])
def test_the_quick_path_checks_the_queue(registry: Registry, queue: str) -> None:
    """A queue that is no count is refused, after good heartbeats too."""
    beats = endpoint(registry)
    register(registry, "http://a")
    beats.take(raw(1))
    with pytest.raises(BadRequest):
        beats.take(raw(queue))
    assert registry.rows()[0].queue_length == 1
