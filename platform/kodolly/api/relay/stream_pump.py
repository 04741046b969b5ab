"""The one hop of every token: engine -> API -> client.

Bytes are passed on in the callback in which they arrive. A task runs only at the end, or when the
client is slower than the engine, which then has to wait.
"""

from __future__ import annotations

import asyncio

from kodolly.api.client_output import Output, PendingSend
from kodolly.api.engine_io.calls import EngineResponse
from kodolly.api.errors import WorkerFailed
from kodolly.api.relay.engine_events import EngineEvents
from kodolly.http.upstream import Broken
from kodolly.log_safe import describe_error
from kodolly.protocol.event_stream import EventTooLarge


class StreamPump:
    """Passes one engine's events on to one client. `has_sent`: the client has some of them."""

    def __init__(self, response: EngineResponse, output: Output, events: EngineEvents) -> None:
        self.has_sent = False
        self._response = response
        self._output = output
        self._events = events
        self._pending: PendingSend | None = None  # what the client has no room for now
        self._backlog: list[bytes] = []  # chunks that came meanwhile
        self._has_ended = False  # the engine's body, with `_error` if it broke off
        self._error: Broken | None = None
        self._is_over = False  # this pump has nothing more to read
        self._failure: Exception | None = None
        self._wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when the answer is complete. Raises WorkerFailed, ApiError, ClientStalled."""
        connection, call = self._response.connection, self._response.call
        connection.pour(self)
        try:
            while not (self._is_over and self._pending is None):
                await call.wait_for(self._wake_up)
                self._wake_up = asyncio.get_running_loop().create_future()
                while self._pending is not None:
                    await self._output.finish(self._pending)
                    self._pending = None
                    self._catch_up()
                connection.resume()
        finally:
            if self._pending is not None:
                self._pending.close()
        if self._failure is not None:
            raise self._failure

    def data(self, chunk: bytes) -> None:
        """The next bytes from the engine."""
        if self._pending is not None:
            self._backlog.append(chunk)
        elif not self._is_over:
            try:
                events = self._events.feed(chunk)
                if events:
                    self._response.call.note_data()  # comments are no sign of life
                    self._send(events)
                if self._events.is_over:
                    self._end(self._events.failure)
            except EventTooLarge as error:
                self._end(WorkerFailed(f"sent {error}"))
            except Exception as error:  # noqa: BLE001 - the task in `run` raises it
                self._end(error)

    def end(self, error: Broken | None) -> None:
        """The engine's response has ended, as it should (None) or not."""
        self._has_ended, self._error = True, error
        if self._pending is None:
            self._finish()

    def _catch_up(self) -> None:
        chunks, self._backlog = self._backlog, []
        for chunk in chunks:
            self.data(chunk)
        if self._has_ended and self._pending is None:
            self._finish()

    def _finish(self) -> None:
        """Closes the last event, and says whether the answer was complete by then."""
        if self._is_over:
            return
        if self._error is not None:
            why = f"broke off its answer: {describe_error(self._error)}"
            self._end(WorkerFailed(why, engine_crashed=True))
            return
        try:
            if events := self._events.finish():
                self._send(events)
            self._end(self._events.failure)
        except Exception as error:  # noqa: BLE001 - the task in `run` raises it
            self._end(error)

    def _send(self, events: bytes) -> None:
        self.has_sent = True
        self._pending = self._output.push(events)
        if self._pending is not None:
            self._response.connection.pause()
            self._wake()

    def _end(self, failure: Exception | None) -> None:
        if not self._is_over:
            self._is_over, self._failure = True, failure
            self._wake()

    def _wake(self) -> None:
        if not self._wake_up.done():
            self._wake_up.set_result(None)
