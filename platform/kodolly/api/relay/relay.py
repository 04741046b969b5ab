"""From a call to its answer: by one worker, or by as many as it takes.

What a client was sent is kept in a journal. When a worker fails in the middle, another one goes on from the
tokens the client has (`resume`); only what no engine can continue ends in an error event.
"""

from __future__ import annotations

import asyncio

import orjson

from kodolly.api.engine_io.calls import EngineDoor
from kodolly.api.prepare import for_engine, is_long
from kodolly.api.relay.stream_pump import Pipe
from kodolly.api.request import Call, WorkerGone
from kodolly.api.resume.continuation import GoingOn
from kodolly.api.resume.continuation_request import can_go_on, resumable
from kodolly.api.resume.journal import Journal
from kodolly.api.routing.table import Worker
from kodolly.api.sse import ABORT, LAST, LOST, Output
from kodolly.errors import BadRequest, EngineFailed
from kodolly.protocol.wire import Extension


class Relay:
    """Sends calls to workers and their answers back."""

    def __init__(self, door: EngineDoor) -> None:
        self._door = door

    async def answer(self, call: Call, worker: Worker) -> bytes:
        """The whole answer of one worker. Raises WorkerGone or ApiError."""
        data = await _encoded(call, worker.extension)
        async with self._door.opened(call, worker, call.path, data, stream=False) as opened:
            body = await self._door.whole(opened)
        if (fault := fault_of(body)) is not None:
            raise WorkerGone(fault)
        return body

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
        async with self._door.opened(call, worker, call.path, data, stream=True) as opened:
            journal = answer.journal if answer.resumable else None
            hide = answer.resumable and not call.wants_token_ids
            pipe = Pipe(opened, answer.output, journal, hide=hide)
            try:
                await pipe.run()
            finally:
                answer.answered = answer.answered or pipe.begun


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


def fault_of(body: bytes) -> str | None:
    """What makes an engine's 200 no answer, whatever its status says."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "answered 200 with what is no JSON"
    if not isinstance(told, dict) or not told.get("choices"):
        return "answered 200 without an answer"
    return "aborted its answer" if ABORT in body else None


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
