"""What other processes answer is read up to a bound, whatever they send and whoever reads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from support.apps import stop_accepting
from support.fleet import completion

from kodolly.api.engine_io.calls import EngineCalls, EngineTimeouts
from kodolly.api.engine_io.stall_watch import StallWatch
from kodolly.api.errors import WorkerFailed
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.controller.app import Controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import EngineClient
from kodolly.errors import ControllerError, EngineCallError
from kodolly.http.client import MAX_STATUS, new_client, request_bounded
from kodolly.http.upstream import Pool
from kodolly.protocol.wire import Extension, WorkerRow, WorkerState
from kodolly.worker.registration import ControllerClient

FLOOD = 64 * 2**20  # bytes that a hostile process would like to send
ROOM = 4 * 2**20  # that may be on the way beyond the bound: buffers of sockets and parsers


class Flooding:
    """A server that answers everything with a body that has no end in sight."""

    def __init__(self, status: str = "200 OK", header: str = "X: y") -> None:
        self.sent = 0
        self._head = f"HTTP/1.1 {status}\r\n{header}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Writes until the client has enough."""
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._head)
            while self.sent < FLOOD:
                writer.write(piece)
                await writer.drain()
                self.sent += 0x10000
        writer.close()


@contextlib.asynccontextmanager
async def serving(flooding: Flooding) -> AsyncIterator[str]:
    server = await asyncio.start_server(flooding.answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_accepting(server)


def engine_calls(client: httpx.AsyncClient) -> EngineCalls:
    table = WorkerTable()
    return EngineCalls(Pool(1.0), StallWatch(table, client), EngineTimeouts(30.0, 30.0))


def worker(url: str) -> Worker:
    extension = Extension(engine_url=url, heart_beat_interval=1)
    row = WorkerRow(
        name=url,
        model_names=["m"],
        speed=1,
        queue_length=0,
        state=WorkerState.READY,
        kodolly=extension,
    )
    return Worker(row)


async def controller_asks_a_worker(url: str, client: httpx.AsyncClient) -> Any:
    controller = Controller(Registry(90, 3), Dispatcher("lottery"), None)
    controller._client = client
    assert await controller._fetch_status(url, None) is None
    raise ValueError


async def worker_beats(url: str, client: httpx.AsyncClient) -> Any:
    await ControllerClient(url, None, client, 30.0).heartbeat("http://w", 0, Extension())


async def worker_looks_for_a_controller(url: str, client: httpx.AsyncClient) -> Any:
    await ControllerClient(url, None, client, 30.0).supports_states()


async def worker_lists_models(url: str, client: httpx.AsyncClient) -> Any:
    await EngineClient(url, None, client).models()


async def worker_takes_a_sample(url: str, client: httpx.AsyncClient) -> Any:
    sample = await EngineClient(url, None, client).sample(timeout=30.0)
    assert (sample.load, sample.steps) == (None, None)
    raise ValueError


async def api_decodes_tokens(url: str, client: httpx.AsyncClient) -> Any:
    await engine_calls(client).detokenize(completion("p"), worker(url), [1])


READERS: tuple[Callable[[str, httpx.AsyncClient], Awaitable[Any]], ...] = (
    controller_asks_a_worker,
    worker_beats,
    worker_looks_for_a_controller,
    worker_lists_models,
    worker_takes_a_sample,
    api_decodes_tokens,
)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
async def test_a_body_without_end_is_read_up_to_a_bound(
    read: Callable[[str, httpx.AsyncClient], Awaitable[Any]],
) -> None:
    """Each reader fails as it does for any bad answer, and closes the connection."""
    flooding = Flooding()
    failures = (ValueError, ControllerError, EngineCallError, WorkerFailed)
    async with serving(flooding) as url, new_client() as client:
        with pytest.raises(failures):
            await read(url, client)
    assert flooding.sent <= 3 * (MAX_STATUS + ROOM)  # a sample makes three calls


async def test_a_redirect_is_followed_and_its_body_is_bounded_too() -> None:
    """httpx by itself would read it whole."""
    flooding = Flooding("307 Temporary Redirect", "Location: /elsewhere")
    async with serving(flooding) as url, new_client() as client:
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            await request_bounded(client, "POST", url, limit=1000, follow_redirects=True)
    assert flooding.sent <= ROOM

    hops: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        hops.append(head.split(b" ")[1].decode())
        more = f"307 Go\r\nLocation: /{len(hops)}\r\nContent-Length: 0"
        last = "200 OK\r\nContent-Length: 5"
        line = last if len(hops) > 3 else more
        writer.write(f"HTTP/1.1 {line}\r\nConnection: close\r\n\r\n".encode())
        writer.write(b"there" * (line is last))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    async with new_client() as client:
        assert (await request_bounded(client, "GET", url))[0] == 307
        hops.clear()
        assert await request_bounded(client, "GET", url, follow_redirects=True) == (200, b"there")
    assert hops == ["/0", "/1", "/2", "/3"]
    await stop_accepting(server)
