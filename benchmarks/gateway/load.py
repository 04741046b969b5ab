"""A raw HTTP/1.1 load generator: keep-alive, one recv loop, nothing parsed on the clock.

Only two things are looked for while the clock runs: the first non-empty content and the end of
the body. Whether an answer is right is decided from its kept bytes when the clock has stopped.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from benchmarks.gateway.plan import MODEL, Cell

TIMEOUT = 90.0  # seconds for one answer
FIRST_CONTENT = re.compile(rb'"content": ?"[^"]')
HEADER_END = b"\r\n\r\n"
CHUNKED_END = b"\r\n0\r\n\r\n"
QUESTION = "한국어로 아무 이야기나 해 주세요."


@dataclass(slots=True)
class Sample:
    """One answer: seconds to its end and to its first content, and its raw bytes."""

    seconds: float
    first: float | None
    raw: bytes
    error: str | None = None


def request_of(cell: Cell) -> bytes:
    """The whole HTTP request of a cell."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": cell.tokens,
            "temperature": 0,
            "stream": cell.streamed,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] | None = None
        self.reset(streamed=False)

    def reset(self, *, streamed: bool) -> None:
        self.parts: list[bytes] = []
        self.head = b""
        self.tail = b""
        self.missing: int | None = None  # bytes of a body with a Content-Length
        self.first: float | None = None
        self.in_head, self.looking = True, streamed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionResetError("connection lost"))

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        if self.in_head or self.looking:
            self.head += data
            if self.looking and FIRST_CONTENT.search(self.head):
                self.first, self.looking = time.perf_counter(), False
        if self.in_head and HEADER_END in self.head:
            self._read_head()
        elif self.missing is not None:
            self.missing -= len(data)
        self.tail = (self.tail + data)[-len(CHUNKED_END) :]
        ended = self.tail == CHUNKED_END if self.missing is None else self.missing <= 0
        if not self.in_head and ended and self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _read_head(self) -> None:
        head, _, rest = self.head.partition(HEADER_END)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        self.missing = int(length[1]) - len(rest) if length else None
        self.in_head = False

    async def ask(self, request: bytes, streamed: bool) -> Sample:
        """Send one request and wait for the end of its answer."""
        self.reset(streamed=streamed)
        self.done = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        error = None
        try:
            if self.transport is None:
                raise ConnectionResetError("connection lost")
            self.transport.write(request)
            async with asyncio.timeout(TIMEOUT):
                await self.done
        except (OSError, TimeoutError) as failure:
            error = f"{type(failure).__name__}: {failure}"
            if self.transport is not None:
                self.transport.abort()
        end = time.perf_counter()
        first = None if self.first is None else self.first - begin
        return Sample(end - begin, first, b"".join(self.parts), error)


async def run(port: int, cell: Cell) -> list[Sample]:
    """All requests of a cell against one port, in the order in which they ended."""
    loop = asyncio.get_running_loop()
    request = request_of(cell)
    todo = iter(range(cell.requests))
    samples: list[Sample] = []

    async def connect() -> Connection:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        return connection

    async def person(connection: Connection) -> None:
        for _ in todo:
            if connection.transport is None:
                connection = await connect()
            samples.append(await connection.ask(request, cell.streamed))
        if connection.transport is not None:
            connection.transport.close()

    people = min(cell.concurrency, cell.requests)
    connections = [await connect() for _ in range(people)]
    await asyncio.gather(*(person(connection) for connection in connections))
    return samples


async def hold(port: int, cell: Cell, measure: Callable[[], float]) -> tuple[float, float, int]:
    """Opens a cell's streams and measures before them and while all are silent.

    Returns both figures and how many streams said their first token in time; then hangs up.
    """
    loop = asyncio.get_running_loop()
    request = request_of(cell)
    before = measure()
    opened: list[Connection] = []
    for _ in range(cell.requests):
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        connection.reset(streamed=True)
        assert connection.transport is not None
        connection.transport.write(request)
        opened.append(connection)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and any(c.first is None for c in opened):
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    during, started = measure(), sum(c.first is not None for c in opened)
    for connection in opened:
        if connection.transport is not None:
            connection.transport.abort()
    return before, during, started


def body_of(raw: bytes) -> bytes:
    """The body of a raw response, its chunks joined."""
    head, _, body = raw.partition(HEADER_END)
    if b"chunked" not in head.lower():
        return body
    return b"".join(_chunks(body))


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        line = body.index(b"\r\n", at)
        size = int(body[at:line], 16)
        if size == 0:
            return
        yield body[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


def text_of(raw: bytes, streamed: bool) -> str:
    """The text an answer says. Raises ValueError if it is no whole, good answer."""
    status = raw.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise ValueError(f"status {status}")
    body = body_of(raw)
    if not streamed:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [line for line in body.decode().split("\n\n") if line]
    if events.pop() != "data: [DONE]":
        raise ValueError("no [DONE]")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)
