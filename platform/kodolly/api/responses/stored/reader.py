"""One client that follows a response of this process: bytes go to it in no task while it keeps up."""

from __future__ import annotations

import asyncio

from kodolly.api.client_output import ClientOutput, PendingSend


class Moved(Exception):
    """Another process makes the response from here on: what follows is read from the store."""


class Reader:
    """Where a run writes its events for one client.

    `opening`: what goes out with the first events, and not before: until then the request may still
    be answered by an error.
    """

    def __init__(self, output: ClientOutput, opening: bytes = b"") -> None:
        self._output = output
        self._opening = opening
        self._backlog: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None
        self._is_over = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def push(self, data: bytes) -> None:
        """Sends events now, or after those that the client has not taken yet."""
        if self._opening:
            data, self._opening = self._opening + data, b""
        if self._sending is not None:
            self._backlog.append(data)
        elif pending := self._output.push(data):
            self._sending = asyncio.create_task(self._catch_up(pending))

    def end(self, error: Exception | None = None) -> None:
        """No more events will come. `error`: what `wait` raises then."""
        if error is not None:
            self._fail(error)
        self._is_over = True
        if self._sending is None:
            self._succeed()

    async def wait(self) -> None:
        """Returns once the client has everything. Raises ClientStalled, Moved, or what `end` got."""
        try:
            await self._done
            if self._sending is not None:
                await self._sending
        finally:
            if self._sending is not None:
                self._sending.cancel()

    async def _catch_up(self, pending: PendingSend | None) -> None:
        try:
            while pending is not None:
                await self._output.finish(pending)
                data, pending = b"".join(self._backlog), None
                self._backlog.clear()
                if data:
                    pending = self._output.push(data)
        except Exception as error:  # noqa: BLE001 - `wait` raises it
            self._fail(error)
        self._sending = None
        if self._is_over:
            self._succeed()

    def _succeed(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
