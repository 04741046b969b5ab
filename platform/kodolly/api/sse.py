"""Server-sent events as engines write them: whole events out of chunks, and events of our own.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import orjson
from starlette.types import Send

EVENT_END = b"\n\n"
CRLF_END = b"\r\n\r\n"
DATA = b"data: "
DONE = b"data: [DONE]"
LAST = DONE + EVENT_END
# Inside a JSON string the quote would be escaped: this can only begin an event.
ERROR = b'data: {"error"'
# How an engine that is told to end leaves an answer: no end that a client should see.
ABORT = b'"finish_reason":"abort"'
# Inside a JSON string its quotes would be escaped, too.
TOKEN_IDS = re.compile(rb'token_ids":\[[^\]]*\]')
NO_TOKEN_IDS = b'token_ids":null'
LOST = "The worker was lost in the middle of its answer."
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def end_of_events(chunk: bytes) -> int:
    """Where the last whole event of a chunk ends; 0 if none does."""
    at = chunk.rfind(EVENT_END) + 2
    if at > 1:
        return at
    at = chunk.rfind(CRLF_END) + 4
    return at if at > 3 else 0


def without_token_ids(events: bytes) -> bytes:
    """Events as an engine that was not asked for token ids would have sent them."""
    return TOKEN_IDS.sub(NO_TOKEN_IDS, events)


def end_of_good(events: bytes) -> int | None:
    """Where an engine's own failure begins in whole events; None if there is none."""
    if ERROR in events:
        return events.index(ERROR)
    if ABORT in events:
        return events.rindex(DATA, 0, events.index(ABORT))
    return None


def data_of(events: bytes) -> list[bytes]:
    """The data of whole events, comments and `[DONE]` left out."""
    lines = events.replace(b"\r\n", b"\n").split(EVENT_END)
    found = [line[len(DATA) :] for line in lines if line.startswith(DATA)]
    return [data for data in found if data != b"[DONE]"]


def event(body: dict[str, Any]) -> bytes:
    """One event with a JSON object."""
    return DATA + orjson.dumps(body) + EVENT_END


def error_event(message: str, code: str, kind: str = "server_error") -> bytes:
    """An error in OpenAI's shape, which client libraries raise; `kind` is its `type`."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return event({"error": error})


def stream_start(request_id: str) -> dict[str, Any]:
    """The ASGI message that opens an event stream."""
    headers = [*HEADERS, (b"x-request-id", request_id.encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}


class ClientStalled(Exception):
    """The client has left what it was sent unread for too long: it is given up."""


class Sending:
    """A coroutine that was run outside a task until it had to wait; awaited, it goes on in one.

    `waits_for`: the future it yielded, which is handed to the task as if the task had begun it.
    """

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, None]:
        with contextlib.suppress(StopIteration):
            while True:
                try:
                    yield self._waits_for
                except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                    self._waits_for = self._work.throw(error)
                else:
                    self._waits_for = self._work.send(None)

    def close(self) -> None:
        """Gives up what is left."""
        self._work.close()


class Output:
    """The client's side of a stream; it begins with the first bytes, so until then all may fail.

    `patience`: seconds that a client may keep us from sending, its buffers full. `chunk`: sends
    without a coroutine what can go at once, and tells whether it did.
    """

    def __init__(
        self, send: Send, request_id: str, patience: float, chunk: Callable[[bytes], bool]
    ) -> None:
        self.begun = False
        self.request_id = request_id
        self.patience = patience
        self._send = send
        self._chunk = chunk

    def push(self, data: bytes) -> Sending | None:
        """Sends at once, in no task; gives what is left to await if the client is slow.

        Called for every token, by a callback of the event loop.
        """
        if self.begun and self._chunk(data):
            return None
        body = {"type": "http.response.body", "body": data, "more_body": True}
        return _begun(self._send(body) if self.begun else self._begin(data))  # type: ignore[arg-type]

    async def sent(self, work: Awaitable[None]) -> None:
        """Waits for a sending while the client is slow. Raises ClientStalled."""
        try:
            async with asyncio.timeout(self.patience):
                await work
        except TimeoutError:
            raise ClientStalled(f"the client took too little for {self.patience:g} s") from None

    async def write(self, data: bytes) -> None:
        """Sends bytes; waits while the client is slow. Raises ClientStalled."""
        if sending := self.push(data):
            await self.sent(sending)

    async def _begin(self, data: bytes) -> None:
        self.begun = True
        await self._send(stream_start(self.request_id))
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close(self) -> None:
        """Ends the response. Raises ClientStalled."""
        end = {"type": "http.response.body", "body": b"", "more_body": False}
        if sending := _begun(self._send(end)):  # type: ignore[arg-type]
            await self.sent(sending)


def _begun(work: Coroutine[Any, Any, None]) -> Sending | None:
    """Runs `work` as far as it goes without waiting; gives what is left of it."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return Sending(work, waits_for)
