"""Follows the controllers' watch streams, which bring the table of workers to this process.

The stream of every controller is open all the time, so that the next one's table is there when the
first falls silent. The table is that of one controller; if none answers, the last one stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

import httpx

from kodolly.api.routing.table import WorkerTable
from kodolly.api.routing.table_copy import BadLine, TableCopy
from kodolly.http.client import CALL_ERRORS, describe_call_error
from kodolly.protocol.wire import Change

log = logging.getLogger(__name__)

RECONNECT = 0.5  # seconds from the end of a stream to the next attempt
# Seconds without a byte that end a stream: a controller sends a keep-alive every half second.
SILENCE = 1.75
CONNECT = 1.5  # seconds to reach a controller
MAX_LINE = 16 * 2**20  # bytes of one table
# Seconds after which a controller that came back is trusted: its table starts empty, and fills with
# the workers' next heartbeats.
STEADY = 5.0
LOOK = 1.0  # seconds between two looks at which controllers are steady by now


class ControllerStream:
    """One controller's watch stream: its table, and since when it has been connected."""

    def __init__(
        self,
        controller: str,
        headers: dict[str, str],
        client: httpx.AsyncClient,
        on_change: Callable[[ControllerStream, Change | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change`: called with this stream and the change; None for a whole table, or its end."""
        self.url = controller.rstrip("/") + "/watch"
        self.copy = TableCopy()
        self.since: float | None = None  # of its first table; None while there is no connection
        self._headers = headers
        self._client = client
        self._on_change = on_change
        self._clock = clock

    async def run(self) -> None:
        """Follows the stream for ever, connecting again whenever it breaks."""
        last_complaint = ""
        while True:
            try:
                await self._follow()
                complaint = "the watch stream ended"
            except BadLine as error:
                complaint = str(error)
            except CALL_ERRORS as error:
                complaint = describe_call_error(error)
            if self.is_steady():
                last_complaint = ""
            self.since = None
            self._on_change(self, None)
            if complaint != last_complaint:  # one line for one cause, not two a second
                log.warning("controller %s: %s", self.url, complaint)
                last_complaint = complaint
            await asyncio.sleep(RECONNECT)

    def is_steady(self) -> bool:
        """Whether it has been connected for STEADY seconds."""
        return self.since is not None and self._clock() - self.since >= STEADY

    async def _follow(self) -> None:
        timeout = httpx.Timeout(None, connect=CONNECT, read=SILENCE)
        async with self._client.stream(
            "GET", self.url, headers=self._headers, timeout=timeout, follow_redirects=True
        ) as response:
            if response.status_code != 200:
                raise ValueError(f"the controller answered {response.status_code}")
            async with aclosing(lines_of(response.aiter_raw())) as lines:
                async for line in lines:
                    if line.strip():
                        self._take(line)

    def _take(self, line: bytes) -> None:
        """Takes one line. Raises BadLine for one that leads to no right table."""
        change = self.copy.take(line, first=self.since is None)
        if self.since is None:
            self.since = self._clock()
        self._on_change(self, change)


class Follower:
    """Keeps a table up to date from the best controller that answers, for as long as it runs."""

    def __init__(
        self,
        table: WorkerTable,
        controllers: str | Sequence[str],
        token: str | None,
        client: httpx.AsyncClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`controllers`: URLs, the primary's first; a text has commas between them."""
        urls = controllers.split(",") if isinstance(controllers, str) else controllers
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._table = table
        self._streams = [
            ControllerStream(url.strip(), headers, client, self._line_came, clock)
            for url in urls
            if url.strip()
        ]
        self._chosen: ControllerStream | None = None
        self._applied: tuple[ControllerStream, float] | None = None  # the stream, and its `since`

    @property
    def connected(self) -> int:
        """How many controllers are heard now."""
        return sum(stream.since is not None for stream in self._streams)

    async def run(self) -> None:
        """Follows all controllers for ever, and takes over the table of the best one."""
        async with asyncio.TaskGroup() as tasks:
            for stream in self._streams:
                tasks.create_task(stream.run())
            while True:  # a better controller becomes steady without sending anything
                await asyncio.sleep(LOOK)
                self._update()

    def _line_came(self, stream: ControllerStream, change: Change | None) -> None:
        self._choose()
        if stream is not self._chosen:
            self._apply_other_stream()
        elif change is not None and self._is_applied(stream):
            self._table.apply_change(change)
        elif stream.since is not None:
            self._apply(stream, stream.since)

    def _update(self) -> None:
        self._choose()
        self._apply_other_stream()

    def _choose(self) -> None:
        """The first that answers; from a living one back to a better one once that is steady."""
        chosen = self._chosen
        alive = chosen is not None and chosen.since is not None
        for stream in self._streams:
            if stream is chosen and alive:
                return
            if stream.is_steady() or (stream.since is not None and not alive):
                if chosen is not None and stream is not chosen:
                    log.warning("the table is taken from controller %s now", stream.url)
                self._chosen = stream
                return

    def _apply_other_stream(self) -> None:
        """Applies the chosen stream's whole table, if that has not been done yet."""
        stream = self._chosen
        if stream is not None and stream.since is not None and not self._is_applied(stream):
            self._apply(stream, stream.since)

    def _is_applied(self, stream: ControllerStream) -> bool:
        """Whether the table is this stream's, of this very connection."""
        return self._applied == (stream, stream.since)

    def _apply(self, stream: ControllerStream, since: float) -> None:
        self._applied = (stream, since)
        self._table.apply(stream.copy.snapshot())


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The lines of a byte stream, split at b"\\n" alone: JSON may hold U+2028, at which text splits.

    Raises ValueError for a line of more than MAX_LINE bytes.
    """
    parts: list[bytes] = []  # of a line that is not whole yet
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end])
            parts.clear()
        parts.append(rest)
        if sum(map(len, parts)) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
    if last := b"".join(parts):
        yield last
