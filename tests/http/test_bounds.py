"""What a client may take before any key is asked: connections, time for each step, nesting of JSON."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send
from support.processes import free_port
from support.wire import START, Wire, connected, turns
from support.wire import turns as loop_turns
from uvicorn.server import ServerState

from kodolly.errors import BadRequest
from kodolly.http import bodies, server
from kodolly.http.bounds import MAX_NESTING, Bounds, load_json
from kodolly.http.downstream.protocol import HttpProtocol, bounded
from kodolly.settings import ApiSettings, WebSettings, load

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BOUNDS = Bounds(
    max_connections=3, head_timeout=10, body_timeout=20, idle_timeout=30, read_timeout=40
)


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, then answers."""
    try:
        await Request(scope, receive).body()
    except ClientDisconnect:
        return
    await send(START)
    await send({"type": "http.response.body", "body": b"abcd"})


def pass_seconds(protocol: HttpProtocol, wire: Wire, begin: int, seconds: int) -> int:
    """Looks at the connection once a second; the second in which it was closed, else the last one."""
    for now in range(begin, begin + seconds + 1):
        protocol.close_if_late(now)
        if wire.closed:
            return now
    return begin + seconds


@pytest.mark.parametrize(
    ("first", "more", "seconds", "status"),
    [
        (b"", b"", 30, None),
        (b"GET /", b"a", 10, 408),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n", 10, 408),
        (HEAD, b"x", 20, 408),
        (
            HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked"),
            b"1\r\nx\r\n",
            20,
            408,
        ),
        (GET, b"", 30, None),
        (GET, b"\r\n", 10, 408),
    ],
    ids=["nothing", "line", "fields", "body", "chunks", "kept", "kept, empty lines"],
)
async def test_a_slow_client_is_closed(
    first: bytes, more: bytes, seconds: int, status: int | None
) -> None:
    """Whatever it goes on to send each second; a request under way is told why."""
    protocol, wire = connected(reading, bounded(BOUNDS))
    if first:
        protocol.data_received(first)
    await turns()
    wire.writes.clear()
    for now in range(100):
        protocol.close_if_late(now)
        if wire.closed:
            break
        if more:
            protocol.data_received(more)
        await turns(2)
    assert seconds <= now <= seconds + 2
    answer = b"".join(wire.writes)
    assert answer.startswith(b"HTTP/1.1 408 ") == (status == 408)
    assert (b"request_timeout" in answer) == (status == 408)
    protocol.connection_lost(None)
    await turns()


async def test_a_busy_connection_is_never_late() -> None:
    """Request after request on one connection, each of which is in its body when it is looked at."""
    protocol, wire = connected(reading, bounded(BOUNDS))
    for now in range(100):
        protocol.data_received(HEAD)
        protocol.close_if_late(now)
        protocol.data_received(b"x" * 100)
        await turns()
    assert not wire.closed


async def test_an_application_that_takes_its_time_is_not_the_clients_fault() -> None:
    """Neither an answer that is long in coming nor a body that nobody reads yet ends the connection."""

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    protocol, wire = connected(waiting, bounded(BOUNDS))
    protocol.data_received(GET)
    await turns()
    assert pass_seconds(protocol, wire, 0, 1000) == 1000
    protocol.connection_lost(None)
    await turns()

    async def lazy(scope: Scope, receive: Receive, send: Send) -> None:
        await turns(10)

    protocol, wire = connected(lazy, bounded(BOUNDS))
    protocol.data_received(HEAD.replace(b"100", b"10000000") + b"x" * 100_000)
    assert protocol.flow.read_paused
    assert pass_seconds(protocol, wire, 0, 1000) == 1000
    protocol.connection_lost(None)
    await turns(12)


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """No byte of a response taken for too long; each byte taken counts as progress."""

    async def streaming(_: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass

    protocol, wire = connected(streaming, bounded(BOUNDS))
    protocol.data_received(GET)
    await turns()
    protocol.pause_writing()
    for now in range(100):
        wire.waiting = 1000 - now
        protocol.close_if_late(now)
    assert not wire.closed
    assert pass_seconds(protocol, wire, 100, 100) == 140
    assert wire.aborted
    protocol.connection_lost(None)
    await turns()


async def test_a_body_that_stays_behind_an_answer_ends_the_connection() -> None:
    """The answer was given without it: nothing is written behind that answer."""

    async def early(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"abcd"})

    protocol, wire = connected(early, bounded(BOUNDS))
    protocol.data_received(HEAD)
    await turns()
    assert pass_seconds(protocol, wire, 0, 100) == 21
    assert b"".join(wire.writes).count(b"HTTP/1.1") == 1


async def test_connections_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """One too many is told so and closed; the log has one line until many are free again."""
    kind, state = bounded(BOUNDS), ServerState()
    kept = [connected(reading, kind, state) for _ in range(3)]
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            protocol, wire = connected(reading, kind, state)
            assert b"".join(wire.writes).startswith(b"HTTP/1.1 503 ")
            assert b"too_many_connections" in b"".join(wire.writes)
            assert wire.closed
            protocol.connection_lost(None)
        assert [wire.closed for _, wire in kept] == [False, False, False]
        assert len(caplog.records) == 1
        assert "--max-connections" in caplog.text
        for each, _ in kept[:2]:
            each.connection_lost(None)
        again = [connected(reading, kind, state) for _ in range(3)]
        assert [wire.closed for _, wire in again] == [False, False, True]
        assert len(caplog.records) == 2


async def test_the_server_looks_at_its_connections() -> None:
    """About once a second by its own count: a process that stood still does not blame its clients."""
    config = uvicorn.Config(reading, http=bounded(BOUNDS), log_config=None)
    config.load()
    made = server.Server(config)
    _, wire = connected(reading, bounded(BOUNDS), made.server_state)
    for counter in range(32 * server.SWEEP_TICKS):
        assert not await made.on_tick(counter)
        if wire.closed:
            break
    assert 30 * server.SWEEP_TICKS < counter <= 32 * server.SWEEP_TICKS


class Sender:
    """A client's body that comes in pieces, each when `go` is set."""

    def __init__(self, pieces: int, *, is_quick: bool = True) -> None:
        self.sent = self.asked = 0
        self.go = asyncio.Event()
        self._pieces = pieces
        if is_quick:
            self.go.set()

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.sent > bodies.LARGE_BODY:
            await self.go.wait()
        self.sent += len(PIECE)
        more = self.sent < self._pieces * len(PIECE)
        return {"type": "http.request", "body": PIECE, "more_body": more}

    async def read(self, turns: bodies.BodyTurns) -> int:
        request = Request({"type": "http", "headers": []}, self.receive)
        return len(await bodies.read_body(request, 10**9, turns))


PIECE = b"x" * 2**16


async def test_large_bodies_are_read_in_turn() -> None:
    """Two at a time; the others wait with little of them in memory, and small ones never wait."""
    turns = bodies.BodyTurns(2, seconds=60)
    slow = [Sender(10, is_quick=False) for _ in range(5)]
    reading = [asyncio.create_task(sender.read(turns)) for sender in slow]
    await loop_turns(50)
    assert await Sender(2).read(turns) == 2 * len(PIECE)
    large = -(-bodies.LARGE_BODY // len(PIECE)) + 1  # pieces until a body counts as large
    assert [sender.asked for sender in slow] == [large + 1] * 2 + [large] * 3
    for sender in slow[:2]:
        sender.go.set()
    await asyncio.gather(*reading[:2])
    assert not any(task.done() for task in reading[2:])
    for sender in slow:
        sender.go.set()
    assert await asyncio.gather(*reading) == [10 * len(PIECE)] * 5


async def test_a_slow_body_keeps_its_turn_for_a_moment_only() -> None:
    """Quick ones behind it are read meanwhile, and it comes to its end as well."""
    turns = bodies.BodyTurns(1, seconds=0.01)
    slow = Sender(10, is_quick=False)
    reading = asyncio.create_task(slow.read(turns))
    await loop_turns(20)
    assert await Sender(10).read(turns) == 10 * len(PIECE)
    slow.go.set()
    assert await reading == 10 * len(PIECE)
    assert await Sender(10).read(turns) == 10 * len(PIECE)


def nested(levels: int) -> bytes:
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_nesting_of_json_has_one_bound() -> None:
    """Up to it a body is read, beyond it the message says why; brackets inside of a text do not count."""
    assert load_json(nested(MAX_NESTING)) == json.loads(nested(MAX_NESTING))
    for levels in (MAX_NESTING + 1, 1000, 100_000):
        with pytest.raises(BadRequest, match=r"nest|JSON"):
            load_json(nested(levels))
    flat = {"text": "[{" * 10_000, "list": [[] for _ in range(10_000)]}
    assert load_json(json.dumps(flat).encode()) == flat


def run_controller(flags: list[str], _: Path) -> None:
    from kodolly.controller.app import main

    main(flags)


def run_api(flags: list[str], _: Path) -> None:
    from kodolly.api.app import run

    run(load(ApiSettings, flags, ""), None)  # type: ignore[arg-type]


def run_worker(flags: list[str], model: Path) -> None:
    from kodolly.worker.app import main

    main([*flags, "--model", str(model)])


def run_web(flags: list[str], _: Path) -> None:
    from kodolly.web.app import serve

    serve(load(WebSettings, flags, ""))


@pytest.mark.parametrize("run", [run_controller, run_api, run_worker, run_web])
def test_every_process_has_the_bounds_of_its_options(
    run: Callable[[list[str], Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What the flags say is what its server is started with."""
    started: list[Any] = []

    def start(self: server.Server, sockets: list[socket.socket]) -> None:
        started.append(self.config.http)
        for sock in sockets:
            sock.close()

    monkeypatch.setattr(server.Server, "run", start)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("kodolly.web.app.create_app", lambda _: None)  # Gradio's page takes seconds
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    flags = ["--max-connections", "7", "--head-timeout", "3", "--body-timeout", "4"]
    run([*flags, "--idle-timeout", "5", "--port", str(free_port())], tmp_path)
    assert [kind.bounds for kind in started] == [
        Bounds(max_connections=7, head_timeout=3, body_timeout=4, idle_timeout=5)
    ]
