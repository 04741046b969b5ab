"""The door to the engines: a request opened on one, watched while it is open, closed at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson

from kodolly.api.call import Call, WorkerGone
from kodolly.api.engine_errors import from_engine
from kodolly.api.sse import data_of, end_of_events
from kodolly.api.table import Worker
from kodolly.api.watch import Flight, Watch
from kodolly.errors import EngineFailed
from kodolly.reason import reason

T = TypeVar("T")

MAX_ANSWER = 64 * 2**20
DECODE_TIMEOUT = 10.0
# Refusals that another worker may not share; 401 and 403 mean our own key, 500 a broken engine.
RETRIED = (401, 403, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """Seconds: to connect, for a stream's next bytes, for a whole answer."""

    connect: float
    read: float
    answer: float


class EngineDoor:
    """Asks engines for one process of the API."""

    def __init__(self, session: aiohttp.ClientSession, watch: Watch, patience: Patience) -> None:
        self._session = session
        self._watch = watch
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect, sock_read=patience.read
        )
        # An engine sends nothing of a whole answer before its end.
        self._answer_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect, sock_read=patience.answer
        )

    @asynccontextmanager
    async def opened(
        self, call: Call, worker: Worker, path: str, data: bytes, *, stream: bool
    ) -> AsyncIterator[Flight]:
        """A worker's 200 response, closed at the end so that an unfinished answer is aborted.

        Raises WorkerGone where another worker may do better, ApiError where it would not.
        """
        url, headers = _address(worker)
        headers |= {"Content-Type": "application/json", "X-Request-Id": call.request_id}
        timeout = self._stream_timeout if stream else self._answer_timeout
        with self._watch.following(worker, stream=stream) as flight:
            asking = self._session.post(
                url + path, data=data, headers=headers, timeout=timeout, allow_redirects=False
            )
            response = await self._guarded(flight, asking, timeout, "does not answer")
            try:
                flight.response = response
                if response.status != 200:
                    body = await self.whole(flight)
                    refusal = from_engine(response.status, body)
                    if response.status not in RETRIED:
                        raise refusal
                    told = refusal if isinstance(refusal, EngineFailed) else None
                    raise WorkerGone(f"answered {response.status}", told)
                yield flight
            finally:
                response.close()

    async def chunk(self, flight: Flight) -> bytes:
        """The next bytes, b"" at the end. Raises WorkerGone."""
        try:
            return await flight.read()
        except TimeoutError:
            raise WorkerGone(f"sent nothing for {self._stream_timeout.sock_read:g} s") from None
        except aiohttp.ClientError as error:
            raise WorkerGone(f"broke off its answer: {reason(error)}") from error

    async def whole(self, flight: Flight) -> bytes:
        """A whole body of at most MAX_ANSWER bytes. Raises WorkerGone or EngineFailed."""
        body = bytearray()
        while chunk := await self._guarded(
            flight, flight.read(), self._answer_timeout, "broke off its answer"
        ):
            body += chunk
            if len(body) > MAX_ANSWER:
                raise EngineFailed("the engine's answer is beyond all bounds")
        return bytes(body)

    async def events(
        self, call: Call, worker: Worker, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The decoded events of a stream, up to its [DONE]. Raises WorkerGone or ApiError."""
        async with self.opened(call, worker, path, orjson.dumps(body), stream=True) as flight:
            rest = b""
            while chunk := await self.chunk(flight):
                rest += chunk
                end = end_of_events(rest)
                for data in data_of(rest[:end]):
                    yield orjson.loads(data)
                rest = rest[end:]

    async def decoded(self, call: Call, worker: Worker, ids: list[int]) -> str:
        """The text of tokens, by the engine's own tokenizer. Raises WorkerGone."""
        url, headers = _address(worker)
        body = {"model": call.model, "tokens": ids}
        timeout = aiohttp.ClientTimeout(total=DECODE_TIMEOUT)
        try:
            async with self._session.post(
                url + "/detokenize", json=body, headers=headers, timeout=timeout
            ) as answer:
                told = orjson.loads(await answer.read())
                return str(told["prompt"])
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            worked = not isinstance(error, aiohttp.ClientConnectorError)
            raise WorkerGone(f"decodes no tokens: {reason(error)}", worked=worked) from error

    async def _guarded(
        self, flight: Flight, work: Awaitable[T], timeout: aiohttp.ClientTimeout, what: str
    ) -> T:
        """`work`, with the engine's failures told apart."""
        try:
            return await flight.waiting(work)
        except aiohttp.ConnectionTimeoutError as error:
            raise WorkerGone(f"{what}: {reason(error)}", worked=False) from error
        except TimeoutError as error:
            # It took the request: it may be at work, and another would take as long.
            raise EngineFailed(f"the engine sent nothing within {timeout.sock_read:g} s") from error
        except aiohttp.ClientError as error:
            worked = not isinstance(error, aiohttp.ClientConnectorError)
            raise WorkerGone(f"{what}: {reason(error)}", worked=worked) from error


def _address(worker: Worker) -> tuple[str, dict[str, str]]:
    """An engine's URL and the headers that open it. Raises WorkerGone if it has none."""
    extension = worker.extension
    if extension is None or extension.engine_url is None:
        raise WorkerGone("has no engine URL", worked=False)
    key = extension.engine_key
    return extension.engine_url, {"Authorization": f"Bearer {key}"} if key else {}
