"""The one hop of every token: engine -> API -> client, bytes unparsed.

A request that has sent nothing yet is tried on another worker. Once bytes have gone out, a broken
engine ends the stream with an error event in OpenAI's shape.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from starlette.types import Send

from kodolly.api.engine_errors import RETRY_AFTER, from_engine
from kodolly.api.prepare import for_engine
from kodolly.api.table import Worker, WorkerTable
from kodolly.errors import EngineFailed, ModelNotFound, NoWorker

log = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_ANSWER = 64 * 2**20
DONE = b"data: [DONE]"
LOST = "The worker was lost in the middle of its answer."
EVENT_END = b"\n\n"
RETRIED = (502, 503, 504)  # refusals that another worker may not share
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
    """The worker failed before its answer began; another may be tried."""


class Relay:
    """Sends calls to workers and their answers back."""

    def __init__(
        self,
        table: WorkerTable,
        session: aiohttp.ClientSession,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self._table = table
        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=read_timeout
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
            try:
                return await _read_bounded(response)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise WorkerGone(f"broke off its answer: {error!r}") from error

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
                    "%s: %s broke off mid-answer: %r", call.request_id, worker.row.name, error
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
        body = orjson.dumps(for_engine(call.body, extension, chat=call.chat))
        headers = {"Content-Type": "application/json", "X-Request-Id": call.request_id}
        if extension.engine_key:
            headers["Authorization"] = f"Bearer {extension.engine_key}"
        try:
            response = await self._session.post(
                extension.engine_url + call.path,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise WorkerGone(f"does not answer: {error!r}") from error
        try:
            if response.status in RETRIED:
                raise WorkerGone(f"answered {response.status}")
            if response.status != 200:
                raise from_engine(response.status, await _read_bounded(response))
            yield response
        finally:
            response.close()

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


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise EngineFailed("the engine's answer is beyond all bounds")
    return bytes(body)
