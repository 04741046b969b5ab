"""The one hop of every token: engine -> API -> client, whole events unparsed.

What was sent is kept in a journal. When a worker fails in the middle, another one goes on from the
tokens the client has (`resume`); only what no engine can continue ends in an error event.
"""

from __future__ import annotations

import asyncio

import orjson

from kodolly.api.call import Call, WorkerGone
from kodolly.api.engine import EngineDoor
from kodolly.api.engine_errors import from_engine
from kodolly.api.prepare import for_engine, is_long
from kodolly.api.resume.going_on import GoingOn
from kodolly.api.resume.journal import Journal
from kodolly.api.resume.request import can_go_on, resumable
from kodolly.api.sse import (
    ERROR,
    LAST,
    LOST,
    Output,
    data_of,
    end_of_events,
    end_of_good,
    without_token_ids,
)
from kodolly.api.table import Worker
from kodolly.api.watch import Flight
from kodolly.errors import BadRequest, EngineFailed
from kodolly.protocol.wire import Extension

MAX_EVENT = 16 * 2**20


class Relay:
    """Sends calls to workers and their answers back."""

    def __init__(self, door: EngineDoor) -> None:
        self._door = door

    async def answer(self, call: Call, worker: Worker) -> bytes:
        """The whole answer of one worker. Raises WorkerGone or ApiError."""
        data = await _encoded(call, worker.extension)
        async with self._door.opened(call, worker, call.path, data, stream=False) as flight:
            return await self._door.whole(flight)

    async def stream(self, call: Call, worker: Worker, answer: Streamed) -> None:
        """Begins or goes on with a stream. Raises WorkerGone, or ApiError if nobody can do it."""
        if answer.journal.empty:
            await self._begin(call, worker, answer)
        elif not answer.journal.unfinished and not call.wants_usage:
            await answer.output.write(LAST)
        else:
            await GoingOn(call, worker, answer.journal, self._door, answer.output).run()

    async def _begin(self, call: Call, worker: Worker, answer: Streamed) -> None:
        data = await _encoded(call, worker.extension, token_ids=answer.resumable)
        async with self._door.opened(call, worker, call.path, data, stream=True) as flight:
            await self._pass_on(call, flight, answer)

    async def _pass_on(self, call: Call, flight: Flight, answer: Streamed) -> None:
        """Whole events as they come, until the engine says that it is done."""
        output, journal, door = answer.output, answer.journal, self._door
        hide = answer.resumable and not call.wants_token_ids
        rest = b""
        while chunk := await door.chunk(flight):
            chunk = rest + chunk if rest else chunk
            end = end_of_events(chunk)
            events, rest = (chunk, b"") if end == len(chunk) else (chunk[:end], chunk[end:])
            if not events:
                if len(rest) > MAX_EVENT:
                    raise WorkerGone("sent an event beyond all bounds")
                continue
            if (good := end_of_good(events)) is not None:
                raise await self._broken(events, good, answer)
            answer.answered = True
            await output.write(without_token_ids(events) if hide else events)
            if events.endswith(LAST):
                return
            if answer.resumable:
                journal.add(events)
        raise WorkerGone("ended its answer too early")

    async def _broken(self, events: bytes, at: int, answer: Streamed) -> WorkerGone:
        """An engine's failure is not the client's, but what stands before it is."""
        if at:
            hide = not answer.call.wants_token_ids
            await answer.output.write(without_token_ids(events[:at]) if hide else events[:at])
            answer.journal.add(events[:at])
        if ERROR not in events:
            return WorkerGone("aborted its answer")
        told = from_engine(500, data_of(events[at:])[0])
        return WorkerGone(f"broke off: {told.message}", told)


class Streamed:
    """One client's stream: what it was sent, and whether another worker can go on with it.

    A journal is kept only of what can be continued.
    """

    def __init__(self, call: Call, output: Output) -> None:
        self.call = call
        self.output = output
        self.journal = Journal(call)
        self.resumable = resumable(call.body)
        self.answered = False  # something of an answer was sent

    def sort_out(self) -> int:
        """After a failure: tokens and characters the client has.

        Raises EngineFailed if it has something that no engine can continue.
        """
        self.journal.fold()
        if not self.resumable and self.answered:
            raise EngineFailed(LOST, code="worker_lost")
        if self.journal.empty:
            return 0
        if not can_go_on(self.journal):
            raise EngineFailed(LOST, code="worker_lost")
        choices = self.journal.choices.values()
        return sum(len(choice.ids) + choice.finished for choice in choices)


async def _encoded(call: Call, extension: Extension | None, *, token_ids: bool = False) -> bytes:
    """The engine's body; long texts are guarded in a thread, for the loop serves others."""
    if extension is None:
        raise WorkerGone("has no engine URL", worked=False)
    if is_long(call.body):
        return await asyncio.to_thread(_encode, call, extension, token_ids)
    return _encode(call, extension, token_ids)


def _encode(call: Call, extension: Extension, token_ids: bool) -> bytes:
    body = for_engine(call.body, extension, chat=call.chat)
    if token_ids:
        body = body | {"return_token_ids": True}
    try:
        return orjson.dumps(body)
    except TypeError as error:  # orjson reads deeper nesting than it writes
        raise BadRequest(f"the request body cannot be passed on: {error}") from error
