"""The hop of every token: bytes in one callback, a client that is slower, an engine that breaks off."""

import asyncio
from collections.abc import Callable
from typing import Self, cast

import pytest
from starlette.types import Message

from kodolly.api.client_output import ClientOutput, ClientStalled
from kodolly.api.engine_io.calls import EngineResponse
from kodolly.api.engine_io.stall_watch import StallWatch, WatchedCall
from kodolly.api.errors import WorkerFailed
from kodolly.api.relay.engine_events import EngineEvents
from kodolly.api.relay.stream_pump import StreamPump
from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import Journal
from kodolly.api.routing.table import Worker
from kodolly.http.upstream import Broken, Connection, Sink

REQUEST = ApiRequest("/v1/chat/completions", {"model": "demo", "stream": True}, "id", chat=True)
DONE = b"data: [DONE]\n\n"


def event(n: int) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%d"},"token_ids":[%d]}]}\n\n' % (n, n)


class Engine:
    """The engine's end of a pipe: `pour` by the pipe, the rest by the test."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.paused = False

    def pour(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def says(self, data: bytes) -> None:
        assert self.sink is not None
        self.sink.data(data)

    def ends(self, error: Broken | None = None) -> None:
        assert self.sink is not None
        self.sink.end(error)


class Client:
    """The client's end: takes messages while it has room."""

    def __init__(self) -> None:
        self.got = b""
        self.room = asyncio.Event()
        self.room.set()

    async def send(self, message: Message) -> None:
        await self.room.wait()
        self.got += message.get("body", b"")


class Bench:
    """A pipe between the two, run by a task of its own."""

    def __init__(self, *, hide_ids: bool = False, timeout: float = 60.0) -> None:
        self.engine, self.client = Engine(), Client()
        self.journal = Journal(REQUEST)
        self.call = WatchedCall(cast(Worker, None), cast(StallWatch, None))
        response = EngineResponse(cast(Connection, self.engine), self.call)
        self.pump = StreamPump(
            response,
            ClientOutput(self.client.send, "id", timeout, lambda _: False),
            EngineEvents(1, self.journal, hide_ids=hide_ids),
        )

    async def __aenter__(self) -> Self:
        self.running = asyncio.create_task(self.pump.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_a_token_reaches_the_client_within_the_callback_that_brought_it() -> None:
    """No task has to run for it."""
    async with Bench() as bench:
        bench.engine.says(event(1) + event(2)[:9])
        assert bench.client.got == event(1)
        bench.engine.says(event(2)[9:])
        assert bench.client.got == event(1) + event(2)
        bench.engine.says(DONE)
        await bench.running
    assert bench.client.got == event(1) + event(2) + DONE


async def test_hidden_ids_are_in_the_journal_and_not_on_the_wire() -> None:
    """What the client did not ask for stays here, to go on from."""
    async with Bench(hide_ids=True) as bench:
        bench.engine.says(event(7))
        assert b'"token_ids":null' in bench.client.got
        bench.journal.fold()
        assert list(bench.journal.choices[0].ids) == [7]


async def test_a_slow_client_holds_its_engine_back_and_loses_nothing() -> None:
    """What had been read already waits its turn, in order; then the engine may go on."""
    async with Bench() as bench:
        bench.engine.says(event(1))
        bench.client.room.clear()
        bench.engine.says(event(2))
        assert bench.engine.paused
        bench.engine.says(event(3))
        bench.engine.says(event(4) + DONE)
        await settled()
        assert bench.client.got == event(1)
        assert bench.call.silence(1e9) == 0  # the client is what we wait for
        bench.client.room.set()
        await bench.running
    assert bench.client.got == event(1) + event(2) + event(3) + event(4) + DONE


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    """No engine is held back for ever."""
    async with Bench(timeout=0.05) as bench:
        bench.client.room.clear()
        bench.engine.says(event(1))
        with pytest.raises(ClientStalled):
            await asyncio.wait_for(bench.running, 20)


async def test_the_engine_goes_on_once_the_client_has_caught_up() -> None:
    """And tokens take the short way again."""
    async with Bench() as bench:
        bench.client.room.clear()
        bench.engine.says(event(1))
        await settled()
        bench.client.room.set()
        await settled()
        assert not bench.engine.paused
        bench.engine.says(event(2))
        assert bench.client.got == event(1) + event(2)


def breaks(engine: Engine) -> None:
    engine.says(event(3))
    engine.ends(Broken("reset"))


def ends_early(engine: Engine) -> None:
    engine.says(event(3) + b"data: {")
    engine.ends()


FAILURES: dict[str, Callable[[Engine], None]] = {
    "error event": lambda engine: engine.says(event(3) + b'data: {"error":{"message":"x"}}\n\n'),
    "abort": lambda engine: engine.says(
        event(3) + b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n'
    ),
    "broken": breaks,
    "ended early": ends_early,
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", FAILURES)
async def test_what_came_before_a_failure_is_the_clients(name: str, slow: bool) -> None:
    """The failure itself is not; the journal says what another engine has to go on from."""
    async with Bench() as bench:
        bench.engine.says(event(1))
        if slow:
            bench.client.room.clear()
        bench.engine.says(event(2))
        FAILURES[name](bench.engine)
        await settled()
        bench.client.room.set()
        with pytest.raises(WorkerFailed):
            await bench.running
    assert bench.client.got == event(1) + event(2) + event(3)
    bench.journal.fold()
    assert list(bench.journal.choices[0].ids) == [1, 2, 3]


async def test_the_watch_can_end_a_silent_stream() -> None:
    """With the failure it names; every byte starts the silence anew."""
    async with Bench() as bench:
        before = bench.call._last_data
        assert before is not None
        await asyncio.sleep(0.01)
        bench.engine.says(event(1))
        assert (bench.call._last_data or 0) > before
        bench.call.fail(WorkerFailed("is stalled"))
        with pytest.raises(WorkerFailed, match="is stalled"):
            await bench.running


async def test_a_fault_of_ours_ends_the_stream() -> None:
    """It is raised where the call is answered, not lost in the event loop."""
    async with Bench() as bench:
        bench.journal.add = None  # type: ignore[method-assign,assignment]
        bench.engine.says(event(1))
        with pytest.raises(TypeError):
            await bench.running


async def test_a_comment_is_no_sign_of_life() -> None:
    """A frozen engine may go on sending them; an event in any form is one."""
    async with Bench() as bench:
        before = bench.call._last_data
        await asyncio.sleep(0.01)
        bench.engine.says(b": ping\n\n")
        assert bench.call._last_data == before
        bench.engine.says(event(1).replace(b"data: ", b"data:"))
        assert (bench.call._last_data or 0) > (before or 0)
    assert b"ping" not in bench.client.got
