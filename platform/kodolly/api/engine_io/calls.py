"""Calls to the engines: opened on one, watched while they are open, closed at their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import orjson

from kodolly.api.engine_io.stall_watch import StallWatch, WatchedCall
from kodolly.api.errors import (
    WorkerFailed,
    error_of_event,
    error_of_status,
    named,
    out_of_descriptors,
)
from kodolly.api.request import ApiRequest
from kodolly.api.routing.table import Worker
from kodolly.errors import EngineFailed
from kodolly.http.upstream import Broken, Connection, NoDescriptor, Pool, Unreachable
from kodolly.log_safe import describe_error
from kodolly.protocol.event_stream import (
    Event,
    EventParser,
    EventTooLarge,
    is_aborted,
    is_failure,
)

# Bytes of an answer: a good one, and one that says what is wrong or how token ids read.
MAX_ANSWER, MAX_SHORT_ANSWER = 64 * 2**20, 4 * 2**20
DETOKENIZE_TIMEOUT = 10.0


@dataclass(frozen=True)
class EngineTimeouts:
    """Seconds: for the next bytes of a stream, for a whole answer."""

    read: float
    answer: float


@dataclass(frozen=True)
class EngineResponse:
    """An engine's 200 response: its body comes over `connection`; `call` is watched meanwhile."""

    connection: Connection
    call: WatchedCall


class EngineCalls:
    """The calls to engines of one API process."""

    def __init__(self, pool: Pool, watch: StallWatch, timeouts: EngineTimeouts) -> None:
        self.pool = pool
        self._watch = watch
        self.timeouts = timeouts

    def open(
        self, request: ApiRequest, worker: Worker, path: str, data: bytes, *, stream: bool
    ) -> _OpenCall:
        """`async with`: a worker's 200 response, closed at the end so that the engine stops.

        Raises WorkerFailed where another worker may do better, ApiError where it would not.
        """
        call = self._watch.watch(worker)
        return _OpenCall(self, request, call, path, data, stream=stream)

    async def read_all(self, response: EngineResponse, limit: int = MAX_ANSWER) -> bytes:
        """A whole body of at most `limit` bytes. Raises WorkerFailed or EngineFailed."""
        body = bytearray()
        with _Failures("broke off its answer"):
            while chunk := await response.call.wait_for(response.connection.read()):
                body += chunk
                if len(body) > limit:
                    raise EngineFailed("the engine's answer is beyond all bounds")
        return bytes(body)

    async def events(
        self, request: ApiRequest, worker: Worker, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The decoded events of a stream, up to its end. Raises WorkerFailed or ApiError.

        What an engine says of its own failure is raised; everything else is the caller's to judge.
        """
        data = orjson.dumps(body)
        async with self.open(request, worker, path, data, stream=True) as response:
            parser = EventParser()
            while True:
                with _Failures("broke off its answer"):
                    chunk = await response.call.wait_for(response.connection.read())
                for event in _parse(parser, chunk):
                    if event.is_done:
                        return
                    yield _decode(event)
                if not chunk:
                    return

    async def detokenize(self, request: ApiRequest, worker: Worker, ids: list[int]) -> str:
        """The text of token ids, by the engine's own tokenizer. Raises WorkerFailed."""
        url, headers = _address(worker)
        data = orjson.dumps({"model": request.model, "tokens": ids})
        try:
            async with asyncio.timeout(DETOKENIZE_TIMEOUT):
                with self._watch.watch(worker) as call:
                    post = self.pool.post(url + "/detokenize", headers, data)
                    connection = await call.wait_for(post)
                try:
                    body = b""
                    while chunk := await connection.read():
                        body += chunk
                        if len(body) > MAX_SHORT_ANSWER:
                            raise ValueError(f"a text of more than {MAX_SHORT_ANSWER} bytes")
                finally:
                    connection.release()
            return str(orjson.loads(body)["prompt"])
        except NoDescriptor as error:
            raise out_of_descriptors() from error
        except (ConnectionError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise WorkerFailed(
                f"decodes no tokens: {describe_error(error)}",
                did_work=not isinstance(error, Unreachable),
            ) from error


class _OpenCall:
    """See `EngineCalls.open`: a plain class, since a generator would cost each request its steps."""

    __slots__ = ("_call", "_calls", "_connection", "_data", "_path", "_request", "_stream")

    def __init__(
        self,
        calls: EngineCalls,
        request: ApiRequest,
        call: WatchedCall,
        path: str,
        data: bytes,
        *,
        stream: bool,
    ) -> None:
        self._calls, self._request, self._call = calls, request, call
        self._path, self._data, self._stream = path, data, stream
        self._connection: Connection | None = None

    async def __aenter__(self) -> EngineResponse:
        self._call.__enter__()
        try:
            return await self._begin()
        except BaseException:
            self._close(is_complete=False)
            raise

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(is_complete=kind is None)

    async def _begin(self) -> EngineResponse:
        call, calls, request = self._call, self._calls, self._request
        url, headers = _address(call.worker)
        headers["X-Request-Id"] = request.request_id
        # An engine sends nothing of a whole answer before its end.
        limit = calls.timeouts.read if self._stream else calls.timeouts.answer
        # The engine has the request and may be at work: another one would take as long.
        call.limit = limit, EngineFailed(f"the engine sent nothing within {limit:g} s")
        with _Failures("does not answer"):
            post = calls.pool.post(url + self._path, headers, self._data)
            connection = self._connection = await call.wait_for(post)
        response = EngineResponse(connection, call)
        if connection.status != 200:
            body = await calls.read_all(response, MAX_SHORT_ANSWER)
            error = error_of_status(connection.status, body, connection.retry_after)
            raise named(error, request.body, request.prompt_field)
        if self._stream:
            call.limit = limit, WorkerFailed(f"sent nothing for {limit:g} s")
        return response

    def _close(self, *, is_complete: bool) -> None:
        self._call.__exit__(None, None, None)
        if self._connection is not None:
            self._connection.release(said_all=is_complete)


def _parse(parser: EventParser, chunk: bytes) -> list[Event]:
    """The events that a chunk completes; an empty chunk is the body's end. Raises WorkerFailed."""
    try:
        return parser.feed(chunk) if chunk else parser.finish()
    except EventTooLarge as error:
        raise WorkerFailed(f"sent {error}") from error


def _decode(event: Event) -> dict[str, Any]:
    """An event's JSON object. Raises WorkerFailed or ApiError for a failure, or if it has none."""
    body = event.body()
    if event.is_error or (body is not None and is_failure(body)):
        raise error_of_event(event.data)
    if body is None:
        raise WorkerFailed("sent an event that is no JSON object")
    if is_aborted(body):
        raise WorkerFailed("aborted its answer")
    return body


class _Failures:
    """Turns a connection's failures into a worker's, within the `with`."""

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
            raise out_of_descriptors() from error
        if isinstance(error, Unreachable | Broken):
            broken = isinstance(error, Broken)
            what = f"{self._what}: {describe_error(error)}"
            raise WorkerFailed(what, did_work=broken, engine_crashed=broken) from error


def _address(worker: Worker) -> tuple[str, dict[str, str]]:
    """An engine's URL and the headers that open it. Raises WorkerFailed if it has none."""
    extension = worker.extension
    if extension is None or extension.engine_url is None:
        raise WorkerFailed("has no engine URL", did_work=False)
    key = extension.engine_key
    return extension.engine_url, {"Authorization": f"Bearer {key}"} if key else {}
