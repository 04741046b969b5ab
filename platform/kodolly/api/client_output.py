"""The client's side of an event stream, written to without a task as long as the client keeps up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from starlette.types import Send

from kodolly.api.sse import PING
from kodolly.observe.requests import Measurement

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientStalled(Exception):
    """The client has not read what it was sent for too long: its connection is given up."""


class PendingSend:
    """A coroutine that ran outside a task until it had to wait; awaited in a task, it goes on there.

    `waits_for`: the future it waits for, which is handed to the task as if the task had started it.
    """

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, None]:
        with contextlib.suppress(StopIteration):
            while True:
                try:
                    yield self._waits_for
                except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                    self._waits_for = self._work.throw(error)
                else:
                    self._waits_for = self._work.send(None)

    def close(self) -> None:
        """Gives up what is left."""
        self._work.close()


class Output(Protocol):
    """What a stream of whole server-sent events is written to; see `ClientOutput` for each name."""

    quiet_ticks: int
    request_id: str

    @property
    def has_started(self) -> bool:
        """Whether the reader has a part of the stream."""

    def push(self, data: bytes) -> PendingSend | None:
        """Takes events at once, or returns what is left to be awaited."""

    def ping(self) -> None:
        """Sends a comment."""

    async def finish(self, work: Awaitable[None]) -> None:
        """Awaits what `push` returned."""

    async def write(self, data: bytes) -> None:
        """Takes events, and waits for their reader."""

    async def close(self) -> None:
        """No more events will come."""


class ClientOutput:
    """A stream to one client. Its response starts with the first bytes: until then all may fail.

    `timeout`: seconds for which a client may keep us from sending, its buffers full. `chunk`:
    sends bytes without a coroutine if they can go at once, and tells whether it did.
    `quiet_ticks`: how often `Pings` looked since something was sent. `measurement`: of its request.
    """

    def __init__(
        self, send: Send, request_id: str, timeout: float, chunk: Callable[[bytes], bool]
    ) -> None:
        self.measurement = Measurement()
        self.has_started = False
        self.quiet_ticks = 0
        self._opening: asyncio.Task[None] | None = None
        self.request_id = request_id
        self._timeout = timeout
        self._send = send
        self._chunk = chunk

    def push(self, data: bytes) -> PendingSend | None:
        """Sends at once, in no task; if the client is slow, returns the rest of the work to await.

        Called for every token, by a callback of the event loop.
        """
        self.quiet_ticks = 0
        if self.has_started and self._chunk(data):
            return None
        body = {"type": "http.response.body", "body": data, "more_body": True}
        work = self._send(body) if self.has_started else self._start(data)
        return _run_until_it_waits(work)  # type: ignore[arg-type]

    def ping(self) -> None:
        """Sends a comment, unless the client has not even taken what was sent before it."""
        if self.has_started:
            self._chunk(PING)
            self.quiet_ticks = 0
        elif pending := self.push(PING):
            # Kept, since the event loop holds its tasks weakly.
            self._opening = asyncio.create_task(self.finish(pending))

    async def finish(self, work: Awaitable[None]) -> None:
        """Awaits a pending send. Raises ClientStalled."""
        try:
            async with asyncio.timeout(self._timeout):
                await work
        except TimeoutError:
            raise ClientStalled(f"the client took too little for {self._timeout:g} s") from None

    async def write(self, data: bytes) -> None:
        """Sends bytes; waits while the client is slow. Raises ClientStalled."""
        if pending := self.push(data):
            await self.finish(pending)

    async def close(self) -> None:
        """Ends the response. Raises ClientStalled."""
        end = {"type": "http.response.body", "body": b"", "more_body": False}
        if pending := _run_until_it_waits(self._send(end)):  # type: ignore[arg-type]
            await self.finish(pending)

    async def _start(self, data: bytes) -> None:
        self.has_started = True
        headers = [*HEADERS, (b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


class EventSink:
    """An output that gives events to other code of this process, which makes something of them.

    `consume` is called with whole events, the last of them `data: [DONE]`, in the callback in which
    they arrived. It returns what `ClientOutput.push` returned, if it sent something on.
    """

    def __init__(self, request_id: str, consume: Callable[[bytes], PendingSend | None]) -> None:
        self.has_started = False
        self.quiet_ticks = 0
        self.request_id = request_id
        self._consume = consume

    def push(self, data: bytes) -> PendingSend | None:
        """Gives the events to the consumer."""
        self.has_started = True
        return self._consume(data)

    def ping(self) -> None:
        """Nothing: who reads the consumer's own output pings that."""

    async def finish(self, work: Awaitable[None]) -> None:
        """Awaits what the consumer left to be sent."""
        await work

    async def write(self, data: bytes) -> None:
        """Gives the events to the consumer, and waits for its reader."""
        if pending := self.push(data):
            await pending

    async def close(self) -> None:
        """Nothing: the consumer knows the end by its events."""


def _run_until_it_waits(work: Coroutine[Any, Any, None]) -> PendingSend | None:
    """Runs `work` as far as it goes without waiting; returns what is left of it."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return PendingSend(work, waits_for)
