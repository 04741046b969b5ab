"""The one hop of every token: engine -> API -> client, whole events unparsed.

Bytes are passed on in the callback in which they arrive. A task runs only at the end, or when the
client is slower than the engine, which then has to wait.
"""

from __future__ import annotations

import asyncio

from kodolly.api.client_output import ClientOutput, PendingSend
from kodolly.api.engine_io.calls import EngineResponse
from kodolly.api.errors import WorkerFailed, error_of_event
from kodolly.api.resume.journal import Journal
from kodolly.api.sse import (
    ERROR,
    LAST,
    data_of,
    end_of_events,
    start_of_failure,
    without_token_ids,
)
from kodolly.errors import ApiError
from kodolly.http.log_safe import describe_error
from kodolly.http.upstream import Broken

MAX_EVENT = 16 * 2**20


class StreamPump:
    """Passes one engine's events on to one client. `has_sent`: the client has some of them.

    `journal`: keeps them, so that another engine can continue; `hide_ids`: token ids, which the
    client did not ask for, are taken out.
    """

    def __init__(
        self,
        response: EngineResponse,
        output: ClientOutput,
        journal: Journal | None,
        *,
        hide_ids: bool,
    ) -> None:
        self.has_sent = False
        self._response = response
        self._output = output
        self._journal = journal
        self._hide_ids = hide_ids
        self._rest = b""  # of an event that is not whole yet
        self._pending: PendingSend | None = None  # what the client has no room for now
        self._backlog: list[bytes] = []  # chunks that came meanwhile
        self._is_over = False
        self._failure: Exception | None = None
        self._wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when the engine has said that it is done. Raises WorkerFailed, ClientStalled."""
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
        self._response.call.note_data()
        if self._pending is not None:
            self._backlog.append(chunk)
        elif not self._is_over:
            try:
                self._pass_on(chunk)
            except Exception as error:  # noqa: BLE001 - the task in `run` raises it
                self._end(error)

    def end(self, error: Broken | None) -> None:
        """The engine's response has ended; only `[DONE]` says that its answer has."""
        why = (
            f"broke off its answer: {describe_error(error)}"
            if error
            else "ended its answer too early"
        )
        self._end(WorkerFailed(why, engine_crashed=error is not None))

    def _catch_up(self) -> None:
        chunks, self._backlog = self._backlog, []
        failure, is_over, self._is_over = self._failure, self._is_over, False
        for chunk in chunks:
            self.data(chunk)
        if is_over and not self._is_over:
            self._is_over, self._failure = True, failure

    def _pass_on(self, chunk: bytes) -> None:
        if self._rest:
            chunk, self._rest = self._rest + chunk, b""
        end = end_of_events(chunk)
        if end != len(chunk):
            chunk, self._rest = chunk[:end], chunk[end:]
            if not chunk:
                if len(self._rest) > MAX_EVENT:
                    raise WorkerFailed("sent an event beyond all bounds")
                return
        failure = start_of_failure(chunk)
        if failure is not None:
            if failure:  # the client gets what stands before it, and not the failure itself
                self._send(chunk[:failure])
            raise _error_in(chunk[failure:])
        self._send(chunk)
        if chunk.endswith(LAST):
            self._end(None)

    def _send(self, events: bytes) -> None:
        self.has_sent = True
        self._pending = self._output.push(without_token_ids(events) if self._hide_ids else events)
        if self._journal is not None and not events.endswith(LAST):
            self._journal.add(events)
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


def _error_in(events: bytes) -> WorkerFailed | ApiError:
    """What an engine's own failure in its stream means."""
    if ERROR not in events:
        return WorkerFailed("aborted its answer")
    return error_of_event(data_of(events)[0])
