"""Metrics of several processes behind one port: each sends its own to their parent, which adds them up.

Every process sends its whole state over a socket of its own every INTERVAL seconds, one line of JSON. When
it is scraped, it sends its newest state and asks for the sum. What a process that has ended had counted
stays in the sum; what it counted after its last line is lost with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

import orjson

from kodolly.observe.families import Family, merged, of_rows

log = logging.getLogger(__name__)

INTERVAL = 2.0  # seconds between two states
ANSWER_TIMEOUT = 2.0  # seconds for the parent's sum
MAX_LINE = 64 * 2**20  # bytes of a state
# How a process finds its end of the socket.
VARIABLE = "_KODOLLY_METRICS"


class Hub:
    """The parent's side. `own`: the parent's own families, asked for at each scrape."""

    def __init__(self, own: Callable[[], list[Family]] = list) -> None:
        self._own = own
        self._ended: list[Family] = []  # counters of processes that have ended
        self._states: dict[int, list[Family]] = {}  # of those that run, by an id of the connection
        self._tasks: set[asyncio.Task[None]] = set()

    def families(self) -> list[Family]:
        """The sum of all processes."""
        return merged([self._own(), *self._states.values(), self._ended])

    def connect(self) -> socket.socket:
        """A new process's end of its socket: to be inherited by it, and closed here after that."""
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(self._serve(ours))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return theirs

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE)
        number = sock.fileno()
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                message = orjson.loads(line)
                self._states[number] = of_rows(message["families"])
                if question := message["question"]:
                    rows = [each.as_row() for each in self.families()]
                    writer.write(orjson.dumps({"answers": question, "families": rows}) + b"\n")
                    await writer.drain()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("metrics of an API process cannot be read any more: %s", error)
        finally:
            state = self._states.pop(number, [])
            counters = [each for each in state if each.kind != "gauge"]
            self._ended = merged([self._ended, counters])
            writer.close()


class Link:
    """One process's side. Without a parent its own families are all there are."""

    def __init__(self, own: Callable[[], list[Family]]) -> None:
        self._own = own
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asking = asyncio.Lock()
        self._questions = 0

    async def run(self) -> None:
        """Sends the state until cancelled, and a last time then; returns at once without a parent."""
        if not (number := os.environ.get(VARIABLE)):
            return
        sock = socket.socket(fileno=int(number))
        self._reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE)
        try:
            while True:
                self._send()
                await self._writer.drain()
                await asyncio.sleep(INTERVAL)
        except OSError:  # the parent is gone, and this process will end
            return
        finally:
            with contextlib.suppress(OSError):
                self._send()
                self._writer.close()
            self._reader = self._writer = None

    async def families(self) -> list[Family]:
        """The sum of all processes; this one's own where their parent does not answer."""
        async with self._asking:
            if self._reader is not None:
                with contextlib.suppress(OSError, TimeoutError, ValueError):
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        return await self._sum(self._reader)
        return self._own()

    async def _sum(self, reader: asyncio.StreamReader) -> list[Family]:
        self._questions += 1
        self._send(self._questions)
        while line := await reader.readline():
            answer = orjson.loads(line)
            if answer["answers"] == self._questions:  # not that of one that was given up
                return of_rows(answer["families"])
        raise ConnectionError("the parent is gone")

    def _send(self, question: int = 0) -> None:
        """The state; with a question, to which the sum is the answer."""
        assert self._writer is not None
        rows = [each.as_row() for each in self._own()]
        self._writer.write(orjson.dumps({"families": rows, "question": question}) + b"\n")
