"""The one hop of every token: engine -> API -> client, whole events unparsed.

Bytes are passed on in the callback in which they arrive; a task runs only at the end, or when the
client is slower than the engine, which is then held back.
"""

from __future__ import annotations

import asyncio

from kodolly.api.engine_io.calls import Opened, broke_off
from kodolly.api.request import WorkerGone
from kodolly.api.resume.journal import Journal
from kodolly.api.sse import (
    ERROR,
    LAST,
    Output,
    Sending,
    data_of,
    end_of_events,
    end_of_good,
    without_token_ids,
)
from kodolly.errors import ApiError
from kodolly.http.log_safe import describe_error
from kodolly.http.upstream import Broken

MAX_EVENT = 16 * 2**20


class Pipe:
    """Passes one engine's events on to one client. `begun`: the client has some of them.

    `journal`: where they are noted for another engine to go on from; `hide`: token ids, which the
    client did not ask for, are taken out.
    """

    def __init__(
        self, opened: Opened, output: Output, journal: Journal | None, *, hide: bool
    ) -> None:
        self.begun = False
        self._opened = opened
        self._output = output
        self._journal = journal
        self._hide = hide
        self._rest = b""  # of an event that is not whole yet
        self._held: Sending | None = None  # what the client has no room for now
        self._backlog: list[bytes] = []  # came while something was held
        self._over = False
        self._failure: Exception | None = None
        self._stirred: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when the engine has said that it is done. Raises WorkerGone, ClientStalled."""
        connection, flight = self._opened.connection, self._opened.flight
        connection.pour(self)
        try:
            while not (self._over and self._held is None):
                await flight.waiting(self._stirred)
                self._stirred = asyncio.get_running_loop().create_future()
                while self._held is not None:
                    await self._output.sent(self._held)
                    self._held = None
                    self._catch_up()
                connection.resume()
        finally:
            if self._held is not None:
                self._held.close()
        if self._failure is not None:
            raise self._failure

    def data(self, chunk: bytes) -> None:
        """The next bytes from the engine."""
        self._opened.flight.heard()
        if self._held is not None:
            self._backlog.append(chunk)
        elif not self._over:
            try:
                self._pass_on(chunk)
            except Exception as error:  # noqa: BLE001 - the task that runs the pipe raises it
                self._end(error)

    def end(self, error: Broken | None) -> None:
        """The engine's response has ended; only `[DONE]` says that its answer has."""
        why = (
            f"broke off its answer: {describe_error(error)}"
            if error
            else "ended its answer too early"
        )
        self._end(WorkerGone(why, died=error is not None))

    def _catch_up(self) -> None:
        chunks, self._backlog = self._backlog, []
        failure, over, self._over = self._failure, self._over, False
        for chunk in chunks:
            self.data(chunk)
        if over and not self._over:
            self._over, self._failure = True, failure

    def _pass_on(self, chunk: bytes) -> None:
        if self._rest:
            chunk, self._rest = self._rest + chunk, b""
        end = end_of_events(chunk)
        if end != len(chunk):
            chunk, self._rest = chunk[:end], chunk[end:]
            if not chunk:
                if len(self._rest) > MAX_EVENT:
                    raise WorkerGone("sent an event beyond all bounds")
                return
        good = end_of_good(chunk)
        if good is not None:
            if good:  # an engine's failure is not the client's, but what stands before it is
                self._send(chunk[:good])
            raise _broken(chunk[good:])
        self._send(chunk)
        if chunk.endswith(LAST):
            self._end(None)

    def _send(self, events: bytes) -> None:
        self.begun = True
        self._held = self._output.push(without_token_ids(events) if self._hide else events)
        if self._journal is not None and not events.endswith(LAST):
            self._journal.add(events)
        if self._held is not None:
            self._opened.connection.pause()
            self._stir()

    def _end(self, failure: Exception | None) -> None:
        if not self._over:
            self._over, self._failure = True, failure
            self._stir()

    def _stir(self) -> None:
        if not self._stirred.done():
            self._stirred.set_result(None)


def _broken(events: bytes) -> WorkerGone | ApiError:
    """What an engine's own failure in its stream means."""
    if ERROR not in events:
        return WorkerGone("aborted its answer")
    return broke_off(data_of(events)[0])
