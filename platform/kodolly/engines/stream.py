"""Streams of tokens from a running engine, over our own connections (`kodolly.http.upstream`).

Every failure is an EngineCallError with the engine's HTTP status, or None if it did not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from kodolly.engines.client import MAX_BODY, status_error
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import upstream
from kodolly.protocol.engine_errors import error_message
from kodolly.protocol.event_stream import (
    Event,
    EventParser,
    EventTooLarge,
    FinishedChoices,
    is_aborted,
    is_failure,
)

PAUSE = 600.0  # seconds without any byte after which an engine counts as hung


class StreamClient:
    """Streams completions from one engine. `url` is its root, without `/v1`."""

    def __init__(self, url: str, api_key: str | None, pool: upstream.Pool) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = pool

    async def events(
        self,
        body: Mapping[str, Any],
        *,
        path: str = "/v1/completions",
        request_id: str | None = None,
        pause: float = PAUSE,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed completion, one decoded JSON object each.

        `pause`: seconds without any byte after which the engine counts as hung. Closing the
        iterator closes the connection, on which the engine aborts the request. Raises
        EngineCallError, also for an error event and for a stream that ends before its answer.
        """
        headers = self._headers | ({"X-Request-Id": request_id} if request_id else {})
        content = orjson.dumps({**body, "stream": True})
        connection: upstream.Connection | None = None
        finished = False
        try:
            async with asyncio.timeout(pause):
                connection = await self._pool.post(self.url + path, headers, content)
            if connection.status != 200:
                raise status_error(path, connection.status, await _read_whole(connection, pause))
            parser, choices = EventParser(), FinishedChoices(body.get("n") or 1)
            while True:
                chunk = await _read(connection, pause)
                for event in parser.feed(chunk) if chunk else parser.finish():
                    if event.is_done:
                        finished = True
                        return
                    decoded = decode_event(event)
                    choices.note(decoded)
                    yield decoded
                if not chunk:
                    break
            if choices.are_all:
                return
        except EventTooLarge as error:
            raise EngineCallError(f"the engine sent {error}", 200) from error
        except TimeoutError:
            raise EngineSilent(f"the engine's {path} did not answer in time") from None
        except upstream.NoDescriptor as error:
            raise NoDescriptor(f"the engine's {path} was not asked: {error}") from error
        except (upstream.Unreachable, upstream.Broken) as error:
            raise EngineCallError(f"the engine's {path} failed: {error}") from error
        finally:
            if connection is not None:
                connection.release(said_all=finished)
        raise EngineCallError(f"the engine ended its stream of {path} before it was done")


async def _read(connection: upstream.Connection, pause: float) -> bytes:
    async with asyncio.timeout(pause):
        return await connection.read()


async def _read_whole(connection: upstream.Connection, pause: float) -> bytes:
    body = bytearray()
    while chunk := await _read(connection, pause):
        body += chunk
        if len(body) > MAX_BODY:
            raise EngineCallError("the engine's answer is beyond all bounds", connection.status)
    return bytes(body)


def decode_event(event: Event) -> dict[str, Any]:
    """The JSON object of one event. Raises EngineCallError for anything else, and for a failure."""
    body = event.body()
    if event.is_error or (body is not None and is_failure(body)):
        error = (body or {}).get("error") or body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) else 500
        raise EngineCallError(f"the engine broke off: {error_message(event.data)}", status)
    if body is None:
        raise EngineCallError("the engine sent an event that is no JSON object", 200)
    if is_aborted(body):
        raise EngineCallError("the engine aborted its answer", 500)
    return body
