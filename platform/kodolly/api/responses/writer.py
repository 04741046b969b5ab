"""A response that is not stored: chat events in, its own events out, in the same callback."""

from __future__ import annotations

import time
from collections.abc import Awaitable

from kodolly.api.client_output import ClientOutput, PendingSend
from kodolly.api.responses.deltas import Batch, Delta, DeltaReader, Json
from kodolly.api.responses.events import EventMachine, encode


def end_delta(usage: Json | None = None, **outcome: object) -> Json:
    """The last delta of a response that ends now. `outcome`: `error` or `cancelled`."""
    end: Json = {"end": int(time.time()), **outcome}
    return end | {"usage": usage} if usage else end


def with_end(batch: Batch, usage: Json | None) -> list[Delta]:
    """A batch's deltas; the last of a stream is the response's last one too."""
    if not batch.is_done:
        return batch.deltas
    last = batch.deltas[-1] if batch.deltas else ""
    if isinstance(last, dict) and "error" in last:
        return [*batch.deltas[:-1], end_delta(usage, **last)]
    return [*batch.deltas, end_delta(usage)]


class ResponseWriter:
    """The output of a chat's stream that makes a response of it. See `client_output.Output`.

    `client`: gets the response's events; None where only the whole response is wanted. Then nothing
    counts as started, so a failure is the request's error.
    """

    def __init__(self, machine: EventMachine, request_id: str, client: ClientOutput | None) -> None:
        self.machine = machine
        self.request_id = request_id
        self.has_started = False
        self.quiet_ticks = 0
        self._client = client
        self._reader = DeltaReader()
        self._has_begun = False

    def push(self, data: bytes) -> PendingSend | None:
        """Takes whole events of the chat, and sends those of the response."""
        self.quiet_ticks = 0
        batch = self._reader.read(data)
        events = [] if self._has_begun else self.machine.begin()
        self._has_begun = True
        for delta in with_end(batch, self._reader.usage):
            events += self.machine.feed(delta)
        if self._client is None or not events:
            return None
        self.has_started = True
        return self._client.push(encode(events))

    def ping(self) -> None:
        """Sends a comment, which opens the response."""
        if self._client is not None:
            self.has_started = True
            self._client.ping()
            self.quiet_ticks = 0

    async def finish(self, work: Awaitable[None]) -> None:
        """Awaits what `push` returned. Raises ClientStalled."""
        if self._client is not None:
            await self._client.finish(work)

    async def write(self, data: bytes) -> None:
        """As `push`, and waits for a slow client. Raises ClientStalled."""
        if pending := self.push(data):
            await self.finish(pending)

    async def close(self) -> None:
        """Ends the client's stream. Raises ClientStalled."""
        if self._client is not None:
            await self._client.close()
