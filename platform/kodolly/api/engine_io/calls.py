"""The door to the engines: a request opened on one, watched while it is open, closed at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import orjson

from kodolly.api.engine_io.stall_watch import Flight, Watch
from kodolly.api.errors import from_engine, status_of
from kodolly.api.request import Call, WorkerGone
from kodolly.api.routing.table import Worker
from kodolly.api.sse import data_of, end_of_events
from kodolly.errors import ApiError, EngineFailed, OutOfDescriptors
from kodolly.http import descriptors
from kodolly.http.log_safe import describe_error
from kodolly.http.upstream import Broken, Connection, NoDescriptor, Pool, Unreachable

MAX_ANSWER = 64 * 2**20
DECODE_TIMEOUT = 10.0
# Refusals that another worker may not share; 401 and 403 mean our own key, 500 a broken engine.
RETRIED = (401, 403, 408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """Seconds: to connect, for a stream's next bytes, for a whole answer."""

    connect: float
    read: float
    answer: float


@dataclass(frozen=True)
class Opened:
    """An engine's 200 response: what comes over `connection`, watched as `flight`."""

    connection: Connection
    flight: Flight


class EngineDoor:
    """Asks engines for one process of the API."""

    def __init__(self, pool: Pool, watch: Watch, patience: Patience) -> None:
        self._pool = pool
        self._watch = watch
        self._patience = patience

    @asynccontextmanager
    async def opened(
        self, call: Call, worker: Worker, path: str, data: bytes, *, stream: bool
    ) -> AsyncIterator[Opened]:
        """A worker's 200 response, closed at the end so that an unfinished answer is aborted.

        Raises WorkerGone where another worker may do better, ApiError where it would not.
        """
        url, headers = _address(worker)
        headers["X-Request-Id"] = call.request_id
        # An engine sends nothing of a whole answer before its end.
        bound = self._patience.read if stream else self._patience.answer
        with self._watch.following(worker) as flight:
            # It took the request: it may be at work, and another would take as long.
            flight.bound = bound, EngineFailed(f"the engine sent nothing within {bound:g} s")
            with _Failures("does not answer"):
                connection = await flight.waiting(self._pool.post(url + path, headers, data))
            said_all = False
            try:
                opened = Opened(connection, flight)
                if connection.status != 200:
                    raise refused(connection.status, await self.whole(opened))
                if stream:
                    flight.bound = bound, WorkerGone(f"sent nothing for {bound:g} s")
                yield opened
                said_all = True
            finally:
                connection.release(said_all=said_all)

    async def whole(self, opened: Opened) -> bytes:
        """A whole body of at most MAX_ANSWER bytes. Raises WorkerGone or EngineFailed."""
        body = bytearray()
        with _Failures("broke off its answer"):
            while chunk := await opened.flight.waiting(opened.connection.read()):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise EngineFailed("the engine's answer is beyond all bounds")
        return bytes(body)

    async def events(
        self, call: Call, worker: Worker, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The decoded events of a stream, up to its [DONE]. Raises WorkerGone or ApiError."""
        async with self.opened(call, worker, path, orjson.dumps(body), stream=True) as opened:
            rest = b""
            while True:
                with _Failures("broke off its answer"):
                    chunk = await opened.flight.waiting(opened.connection.read())
                if not chunk:
                    return
                rest += chunk
                end = end_of_events(rest)
                for data in data_of(rest[:end]):
                    yield orjson.loads(data)
                rest = rest[end:]

    async def decoded(self, call: Call, worker: Worker, ids: list[int]) -> str:
        """The text of tokens, by the engine's own tokenizer. Raises WorkerGone."""
        url, headers = _address(worker)
        asked = orjson.dumps({"model": call.model, "tokens": ids})
        try:
            async with asyncio.timeout(DECODE_TIMEOUT):
                with self._watch.following(worker) as flight:
                    asking = self._pool.post(url + "/detokenize", headers, asked)
                    connection = await flight.waiting(asking)
                try:
                    body = b""
                    while chunk := await connection.read():
                        body += chunk
                finally:
                    connection.release()
            return str(orjson.loads(body)["prompt"])
        except NoDescriptor as error:
            raise no_descriptor() from error
        except (ConnectionError, TimeoutError, ValueError, KeyError, TypeError) as error:
            worked = not isinstance(error, Unreachable)
            raise WorkerGone(
                f"decodes no tokens: {describe_error(error)}", worked=worked
            ) from error


def refused(status: int, body: bytes) -> WorkerGone | ApiError:
    """What an engine's refusal means: another worker's chance, or the client's own fault."""
    refusal = from_engine(status, body)
    if status not in RETRIED:
        return refusal
    told = refusal if isinstance(refusal, EngineFailed) else None
    return WorkerGone(f"answered {status}", told, died=status == 500)


def no_descriptor() -> WorkerGone:
    """The worker was not asked, since this process has too many open files."""
    why = f"was not asked: {descriptors.limit()} open files are all that this process may have"
    return WorkerGone(why, OutOfDescriptors(), worked=False, our_fault=True)


def broke_off(data: bytes) -> WorkerGone | ApiError:
    """What an error event within an engine's stream means, by the status in its `code`."""
    return refused(status_of(data), data)


class _Failures:
    """The connection's failures as a worker's."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, NoDescriptor):
            raise no_descriptor() from error
        if isinstance(error, Unreachable | Broken):
            broken = isinstance(error, Broken)
            what = f"{self._what}: {describe_error(error)}"
            raise WorkerGone(what, worked=broken, died=broken) from error


def _address(worker: Worker) -> tuple[str, dict[str, str]]:
    """An engine's URL and the headers that open it. Raises WorkerGone if it has none."""
    extension = worker.extension
    if extension is None or extension.engine_url is None:
        raise WorkerGone("has no engine URL", worked=False)
    key = extension.engine_key
    return extension.engine_url, {"Authorization": f"Bearer {key}"} if key else {}
