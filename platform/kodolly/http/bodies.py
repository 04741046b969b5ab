"""Bodies of requests: declared as JSON, read up to a bound, large ones in turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from kodolly.errors import BadRequest, NotJson, TooLarge
from kodolly.http.bounds import load_json

Body = TypeVar("Body", bytes, bytearray)

JSON = b"application/json"
LARGE_BODY = 128 * 1024  # bytes of a request that come before it has to wait for its turn


class BodyTurns:
    """Lets few large bodies be read at a time, so that megabytes from many clients do not pile up in memory.

    A client that is slow keeps its turn for a moment only, and goes on without one.
    """

    def __init__(self, at_once: int = 2, seconds: float = 0.5) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, in order of arrival; it ends with the block, or after its seconds."""
        await self._places.acquire()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._places.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, end)
        try:
            yield
        finally:
            timer.cancel()
            end()


async def read_body(
    request: Request, limit: int, turns: BodyTurns | None = None
) -> bytes | bytearray:
    """The request's body; TooLarge beyond `limit` bytes, before the rest is read.

    `turns`: what a body of more than LARGE_BODY bytes has to wait for.
    """
    declared = dict(request.scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        size = declared.decode()
        raise TooLarge(f"the request body has {size} bytes; at most {limit} are accepted")
    body, more = await _next_part(request)
    if not more:
        return _bounded(body, limit)
    whole = bytearray(body)
    async with contextlib.AsyncExitStack() as stack:
        while more:
            if turns is not None and len(whole) > LARGE_BODY:
                await stack.enter_async_context(turns.turn())
                turns = None
            body, more = await _next_part(request)
            whole += body
            _bounded(whole, limit)
    return whole


async def _next_part(request: Request) -> tuple[bytes, bool]:
    """The next bytes of a body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _bounded(body: Body, limit: int) -> Body:
    if len(body) > limit:
        raise TooLarge(f"the request body has more than {limit} bytes")
    return body


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object. Raises NotJson, BadRequest or TooLarge."""
    data, _ = await read_sized_object(request, limit)
    return data


async def read_sized_object(
    request: Request, limit: int, turns: BodyTurns | None = None
) -> tuple[dict[str, Any], int]:
    """As `read_object`, with the number of bytes of the body. `turns`: see `read_body`."""
    require_json(request.scope["headers"])
    body = await read_body(request, limit, turns)
    return decode_object(body), len(body)


def decode_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a request's body. Raises BadRequest for anything else."""
    data = load_json(body)
    if not isinstance(data, dict):
        raise BadRequest("the request body must be a JSON object")
    return data


def require_json(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises NotJson for a body that is not declared as JSON.

    A page of any site may send a form or plain text anywhere; JSON only after a preflight.
    """
    kind = b""
    for name, value in headers:
        if name == b"content-type":
            if value == JSON:  # nearly every request
                return
            kind = value
            break
    kind = kind.partition(b";")[0].strip().lower()
    if kind != JSON and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        given = ascii(kind.decode("latin-1")[:100])[1:-1]
        raise NotJson(
            f"The body is declared as {given or 'nothing'}: send it with the header `Content-Type:"
            " application/json` (with curl: -H 'Content-Type: application/json', or --json in place"
            " of -d)."
        )
