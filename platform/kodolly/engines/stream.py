"""Streams of tokens from a running engine, over our own connections (`kodolly.http.upstream`).

Every failure is an EngineCallError with the engine's HTTP status, or None if it did not answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from kodolly.engines.client import MAX_BODY, status_error
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import upstream
from kodolly.protocol.engine_errors import error_message

PAUSE = 600.0  # seconds without any byte after which an engine counts as hung
LINE_END = re.compile(rb"\r\n|\n|\r")


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
        EngineCallError, also for an error event and for a stream that ends before `[DONE]`.
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
            parser = EventParser()
            while chunk := await _read(connection, pause):
                for data in parser.feed(chunk):
                    if data == b"[DONE]":
                        finished = True
                        return
                    yield decode_event(data)
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


class EventParser:
    """Finds the server-sent events in a stream, whose chunks may end anywhere.

    Lines may end in LF, CRLF or CR. Comments and fields other than `data` are skipped.
    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes."""
        text = chunk
        if self._after_cr:  # the chunk before may have ended inside a CRLF
            text = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *lines, self._rest = LINE_END.split(self._rest + text)
        if len(self._rest) > MAX_BODY:
            raise EngineCallError("the engine sent an event beyond all bounds", 200)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data.clear()
            return event
        return None


def decode_event(data: bytes) -> dict[str, Any]:
    """The JSON object of one event. Raises EngineCallError for anything else, and for an error."""
    try:
        event = orjson.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise EngineCallError("the engine sent an event that is no JSON object", 200)
    if event.get("error"):
        error = event["error"]
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) else 500
        raise EngineCallError(f"the engine broke off: {error_message(data)}", status)
    return event
