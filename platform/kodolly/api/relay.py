"""The one hop of every token: engine -> API -> client, bytes unparsed.

A request that has sent nothing yet is tried on another worker. Once bytes have gone out, a broken
engine ends the stream with an error event in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from starlette.types import Send

from kodolly.api.engine_errors import RETRY_AFTER, from_engine
from kodolly.api.prepare import for_engine, is_long
from kodolly.api.table import Worker, WorkerTable
from kodolly.errors import ApiError, BadRequest, EngineFailed, ModelNotFound, NoWorker
from kodolly.protocol.wire import Extension
from kodolly.reason import reason

log = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_ANSWER = 64 * 2**20
DONE = b"data: [DONE]"
LOST = "The worker was lost in the middle of its answer."
EVENT_END = b"\n\n"
# Refusals that another worker may not share; 401 and 403 mean our own key, 500 a broken engine.
RETRIED = (401, 403, 500, 502, 503, 504)
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True)
class Call:
    """One client's request, checked. `path` is the engine's own, such as /v1/chat/completions."""

    path: str
    body: dict[str, Any]
    request_id: str
    chat: bool

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body["model"])


class WorkerGone(Exception):
    """The worker failed before its answer began; another may be tried.

    `told` is what the client hears when no other is left, if it is more than "come again".
    """

    def __init__(self, message: str, told: ApiError | None = None) -> None:
        super().__init__(message)
        self.told = told


class Relay:
    """Sends calls to workers and their answers back."""

    def __init__(
        self,
        table: WorkerTable,
        session: aiohttp.ClientSession,
        *,
        connect_timeout: float,
        read_timeout: float,
        answer_timeout: float,
    ) -> None:
        self._table = table
        self._session = session
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=read_timeout
        )
        # An engine sends nothing of a whole answer before its end.
        self._answer_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=answer_timeout
        )

    def candidates(self, model: str) -> list[Worker]:
        """Workers to try, best first. Raises ModelNotFound or NoWorker."""
        if workers := self._table.ready(model):
            return workers[:MAX_TRIES]
        if not self._table.models() or self._table.knows(model):
            raise NoWorker(
                f"No worker of model '{model}' can take a request now. Try again in a moment.",
                headers=RETRY_AFTER,
            )
        raise ModelNotFound(
            f"The model '{model}' does not exist. Available: {', '.join(self._table.models())}.",
            param="model",
        )

    async def answer(self, call: Call, worker: Worker) -> bytes:
        """The whole answer of one worker. Raises WorkerGone or ApiError."""
        async with self.opened(call, worker) as response:
            return await self._read(call, response)

    async def stream(self, call: Call, worker: Worker, send: Send) -> None:
        """One worker's event stream to the client. Raises WorkerGone only while nothing was sent."""
        async with self.opened(call, worker) as response:
            await send(stream_start(call.request_id))
            tail = b""
            try:
                async for chunk in response.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    tail = chunk if len(chunk) > 64 else (tail + chunk)[-64:]
                if DONE not in tail:
                    raise EngineFailed("the engine ended its answer too early")
            except (aiohttp.ClientError, TimeoutError, EngineFailed) as error:
                log.warning(
                    "%s: %s broke off mid-answer: %s",
                    call.request_id,
                    worker.row.name,
                    reason(error),
                )
                self._table.suspect(worker)
                await send(_broken(tail))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @asynccontextmanager
    async def opened(self, call: Call, worker: Worker) -> AsyncIterator[aiohttp.ClientResponse]:
        """A worker's 200 response, closed at the end so that an unfinished answer is aborted."""
        extension = worker.extension
        if extension is None or extension.engine_url is None:
            raise WorkerGone("has no engine URL")
        body = await _encoded(call, extension)
        headers = {"Content-Type": "application/json", "X-Request-Id": call.request_id}
        if extension.engine_key:
            headers["Authorization"] = f"Bearer {extension.engine_key}"
        try:
            response = await self._session.post(
                extension.engine_url + call.path,
                data=body,
                headers=headers,
                timeout=self._timeout(call),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(call, "does not answer", error) from error
        try:
            if response.status != 200:
                refusal = from_engine(response.status, await self._read(call, response))
                if response.status not in RETRIED:
                    raise refusal
                told = refusal if isinstance(refusal, EngineFailed) else None
                raise WorkerGone(f"answered {response.status}", told)
            yield response
        finally:
            response.close()

    def _timeout(self, call: Call) -> aiohttp.ClientTimeout:
        return self._stream_timeout if call.body.get("stream") else self._answer_timeout

    async def _read(self, call: Call, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await _read_bounded(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(call, "broke off its answer", error) from error

    def _failure(self, call: Call, what: str, error: Exception) -> WorkerGone | EngineFailed:
        """A silent engine took the request: it may be at work, and another would take as long."""
        connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
        if isinstance(error, TimeoutError) and connected:
            seconds = self._timeout(call).sock_read
            return EngineFailed(f"the engine sent nothing within {seconds:g} s")
        return WorkerGone(f"{what}: {reason(error)}")

    @contextmanager
    def booking(self, worker: Worker) -> Iterator[None]:
        """Counts a request against its worker for as long as it is open."""
        worker.inflight += 1
        try:
            yield
        finally:
            worker.inflight -= 1

    def passed_over(self, call: Call, worker: Worker, error: WorkerGone) -> None:
        """Notes a worker that could not take a call."""
        log.warning("%s: %s %s", call.request_id, worker.row.name, error)
        self._table.suspect(worker)


def stream_start(request_id: str) -> dict[str, Any]:
    """The ASGI message that opens an event stream."""
    headers = [*SSE_HEADERS, (b"x-request-id", request_id.encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def error_event(message: str, code: str) -> bytes:
    """A server-sent event with an error in OpenAI's shape, which client libraries raise."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + orjson.dumps({"error": error}) + EVENT_END


def _broken(tail: bytes) -> dict[str, Any]:
    event = error_event(LOST, "worker_lost")
    # Half an event may have gone out: its end keeps ours apart from it.
    lead = b"" if not tail or tail.endswith(EVENT_END) else EVENT_END
    return {"type": "http.response.body", "body": lead + event, "more_body": True}


async def _encoded(call: Call, extension: Extension) -> bytes:
    """The engine's body; long texts are guarded in a thread, for the loop serves others."""
    if is_long(call.body):
        return await asyncio.to_thread(_encode, call, extension)
    return _encode(call, extension)


def _encode(call: Call, extension: Extension) -> bytes:
    try:
        return orjson.dumps(for_engine(call.body, extension, chat=call.chat))
    except TypeError as error:  # orjson reads deeper nesting than it writes
        raise BadRequest(f"the request body cannot be passed on: {error}") from error


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise EngineFailed("the engine's answer is beyond all bounds")
    return bytes(body)
