"""The API's view of one or several controllers, some of which are away, hang or come back empty."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from support.apps import serving
from support.deaf import deaf
from support.processes import eventually, free_port

from kodolly.api.routing.follower import Follower, lines_of
from kodolly.api.routing.table import WorkerTable
from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension, Registration, Snapshot, WorkerRow, WorkerState


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects and returns to a primary sooner than in life."""
    monkeypatch.setattr("kodolly.api.routing.follower.RECONNECT", 0.05)
    monkeypatch.setattr("kodolly.api.routing.follower.STEADY", 0.3)
    # A pause of the test's own must not pass for a controller's silence.
    monkeypatch.setattr("kodolly.api.routing.follower.SILENCE", 30.0)
    monkeypatch.setattr("kodolly.api.routing.follower.CONNECT", 30.0)


class Followed:
    """A table that follows controllers, and the controllers by their ports."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.table = WorkerTable()
        self._stack = stack
        self._running: dict[int, AsyncExitStack] = {}

    async def follow(self, *urls: str) -> None:
        """Begins to follow these controllers, the primary first."""
        client = await self._stack.enter_async_context(new_client())
        task = asyncio.create_task(Follower(self.table, ",".join(urls), None, client).run())

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)

    async def start(self, port: int, *models: str) -> None:
        """A fresh controller that knows a ready worker of each model."""
        controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
        for model in models:
            row = {
                "worker_name": f"http://w-{model.encode().hex()}",
                "worker_status": {"model_names": [model]},
            }
            registration = Registration.model_validate(row | {"kodolly": {}})
            assert registration.worker_status is not None
            controller.registry.register(registration, registration.worker_status)
        own = await self._stack.enter_async_context(AsyncExitStack())
        await own.enter_async_context(serving(create_app(controller), port))
        own.callback(controller.stopping.set)
        self._running[port] = own

    async def stop(self, port: int) -> None:
        """That controller ends."""
        await self._running.pop(port).aclose()

    def models(self) -> list[str]:
        """What can be asked for, by the table."""
        return self.table.models()


@pytest.fixture
async def followed() -> AsyncIterator[Followed]:
    async with AsyncExitStack() as stack:
        yield Followed(stack)


@asynccontextmanager
async def frozen(*models: str) -> AsyncIterator[str]:
    """A controller that sends its table, or not even that, and then freezes with the line open."""
    line = b""
    if models:
        rows = [
            WorkerRow(
                name=f"http://{model}",
                model_names=[model],
                speed=1,
                queue_length=0,
                state=WorkerState.READY,
                kodolly=Extension(),
            )
            for model in models
        ]
        text = Snapshot(epoch="frozen", version=1, workers=rows).model_dump_json().encode() + b"\n"
        line = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + text

    async with deaf(line) as server:
        yield server.url


def urls(*ports: int) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in ports]


async def test_the_primary_s_table_counts(followed: Followed) -> None:
    """With both there, the first one's word is taken, whichever answered sooner."""
    first, second = free_port(), free_port()
    await followed.start(second, "b")
    await followed.follow(*urls(first, second))
    await eventually(lambda: followed.models() == ["b"])

    await followed.start(first, "a")
    await eventually(lambda: "a" in followed.models())


async def test_the_standby_takes_over_and_gives_back(followed: Followed) -> None:
    """The primary dies: the standby's changes reach the API. It returns: its own do again."""
    first, second = free_port(), free_port()
    await followed.start(first, "a")
    await followed.start(second, "a", "b")
    await followed.follow(*urls(first, second))
    await eventually(lambda: followed.models() == ["a"])

    await followed.stop(first)
    await eventually(lambda: followed.models() == ["a", "b"])

    await followed.start(first, "a", "b", "c")
    await eventually(lambda: "c" in followed.models())


async def test_a_primary_that_comes_back_empty_is_not_believed_at_once(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller just started knows nobody: the standby's table is kept until it is steady."""
    monkeypatch.setattr("kodolly.api.routing.follower.STEADY", 600.0)
    first, second = free_port(), free_port()
    await followed.start(first, "a")
    await followed.start(second, "a", "b")
    await followed.follow(*urls(first, second))
    await eventually(lambda: followed.models() == ["a"])
    await followed.stop(first)
    await eventually(lambda: followed.models() == ["a", "b"])

    await followed.start(first, "other")
    for _ in range(20):
        await asyncio.sleep(0.05)
        assert followed.models() == ["a", "b"]


async def test_a_frozen_primary_is_given_up(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that keeps the line and says nothing is as good as dead."""
    monkeypatch.setattr(
        "kodolly.api.routing.follower.SILENCE", 0.6
    )  # beyond the keep-alive of a live one
    second = free_port()
    await followed.start(second, "b")
    async with frozen("a") as url:
        await followed.follow(url, *urls(second))
        await eventually(lambda: "a" in followed.models())
        await eventually(lambda: "b" in followed.models())


async def test_a_primary_that_never_answers_delays_nothing(followed: Followed) -> None:
    """One that takes the connection and then hangs leaves the table to the other."""
    second = free_port()
    await followed.start(second, "b")
    async with frozen() as url:
        await followed.follow(url, *urls(second))
        await eventually(lambda: followed.models() == ["b"])


async def test_the_last_table_stays_in_force(followed: Followed) -> None:
    """With every controller away the workers known last are asked; a new empty one forgets none."""
    port = free_port()
    await followed.start(port, "a")
    await followed.follow(*urls(port))
    await eventually(lambda: followed.models() == ["a"])

    await followed.stop(port)
    for _ in range(10):
        await asyncio.sleep(0.05)
        assert followed.models() == ["a"]
    await followed.start(port, "b")
    await eventually(lambda: "b" in followed.models())
    assert followed.models() == ["a", "b"]


async def test_only_a_line_feed_ends_a_table(followed: Followed) -> None:
    """JSON may hold U+2028 and U+0085, which are line ends to Python's text but not on the wire."""
    port = free_port()
    await followed.start(port, "a\u2028b\u0085c")
    await followed.follow(*urls(port))
    await eventually(lambda: followed.models() == ["a\u2028b\u0085c"])


async def test_lines_are_put_together_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the stream is cut; a line without end is given up and not kept in memory."""
    monkeypatch.setattr("kodolly.api.routing.follower.MAX_LINE", 10)

    async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    lines = [line async for line in lines_of(chunks(b"a", b"b\n\ncd\ne", b"f", b"g"))]
    assert lines == [b"ab", b"", b"cd", b"efg"]
    with pytest.raises(ValueError, match="a line of more than 10 bytes"):
        await anext(lines_of(chunks(b"x" * 6, b"y" * 6, b"\n")))


async def test_what_is_no_table_is_passed_over(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that cannot be read is an error in the log, and the next table is taken."""
    port = free_port()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{'no': json}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        await followed.follow(*urls(port))
        await eventually(lambda: "sent no table" in caplog.text)
    await followed.start(port, "a")
    await eventually(lambda: followed.models() == ["a"])
