"""One attempt at a request: by one worker, from the start or from where another worker stopped.

A journal keeps what a client was sent. When a worker fails in the middle, another one continues
from the tokens the client has (`resume/`); only what no engine can continue ends in an error event.
"""

from __future__ import annotations

import asyncio

import orjson

from kodolly.api.client_output import ClientOutput
from kodolly.api.engine_io.calls import EngineCalls
from kodolly.api.errors import WorkerFailed, error_of_event
from kodolly.api.prepare import for_engine, is_long
from kodolly.api.relay.engine_events import EngineEvents
from kodolly.api.relay.stream_pump import StreamPump
from kodolly.api.request import ApiRequest
from kodolly.api.resume.continuation import Continuation
from kodolly.api.resume.continuation_request import can_continue, is_resumable
from kodolly.api.resume.journal import Journal
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST
from kodolly.errors import ApiError, BadRequest, ContextOverflow, RequestFault
from kodolly.protocol.event_stream import is_aborted, is_failure
from kodolly.protocol.wire import Extension


class ClientStream:
    """One client's stream: what it was sent, and whether another worker can continue it.

    A journal is kept only of what can be continued. `has_answer`: a part of an answer was sent.
    """

    def __init__(self, request: ApiRequest, output: ClientOutput) -> None:
        self.output = output
        self.journal = Journal(request)
        self.is_resumable = is_resumable(request.body)
        self.has_answer = False

    def delivered(self) -> int | None:
        """After a failure: the tokens that the client has, a finished answer counted as one more.

        None if the client has something that no other worker can continue.
        """
        self.journal.fold()
        can_resume = self.is_resumable and self.journal.is_readable
        if not can_resume and self.has_answer:
            return None
        if self.journal.empty:
            return 0
        if not can_continue(self.journal):
            return None
        choices = self.journal.choices.values()
        return sum(len(choice.ids) + choice.is_finished for choice in choices)

    def tokens(self) -> int:
        """Tokens of the longest prompt and the answer to it that the client has, as far as known."""
        choices = self.journal.choices.values()
        return max((len(c.prompt or ()) + len(c.ids) for c in choices), default=0)


class Relay:
    """Sends requests to KoDolly workers' engines, and their answers back."""

    def __init__(self, engines: EngineCalls) -> None:
        self._engines = engines

    async def answer(self, request: ApiRequest, worker: Worker) -> bytes:
        """The whole answer of one worker. Raises WorkerFailed or ApiError."""
        data = await _encode(request, worker.extension)
        async with self._engines.open(
            request, worker, request.path, data, stream=False
        ) as response:
            body = await self._engines.read_all(response)
        if (fault := fault_of(body)) is not None:
            raise fault
        return body

    async def stream(self, request: ApiRequest, worker: Worker, stream: ClientStream) -> None:
        """Starts a stream or continues it. Raises WorkerFailed, or ApiError if no worker can."""
        if stream.journal.empty:
            await self._start(request, worker, stream)
        elif not stream.journal.unfinished and not request.wants_usage:
            await stream.output.write(LAST)
        else:
            continuation = Continuation(
                request, worker, stream.journal, self._engines, stream.output
            )
            await continuation.run()

    async def _start(self, request: ApiRequest, worker: Worker, stream: ClientStream) -> None:
        """Starts a stream, with token ids where it can be resumed and the engine gives them.

        Many engines refuse a field that they do not know. One that refuses `return_token_ids` is
        sent the request once more without it, and no other request with it.
        """
        ids = stream.is_resumable and worker.takes_token_ids is not False
        try:
            await self._pump(request, worker, stream, token_ids=ids)
        except BadRequest as error:
            is_ours = ids and worker.takes_token_ids is None and not request.wants_token_ids
            if (
                not is_ours
                or stream.has_answer
                or isinstance(error, ContextOverflow | RequestFault)
            ):
                raise
            await self._pump(request, worker, stream, token_ids=False)

    async def _pump(
        self, request: ApiRequest, worker: Worker, stream: ClientStream, *, token_ids: bool
    ) -> None:
        data = await _encode(request, worker.extension, token_ids=token_ids)
        async with self._engines.open(request, worker, request.path, data, stream=True) as response:
            if stream.is_resumable:
                worker.takes_token_ids = token_ids
            journal = stream.journal if stream.is_resumable else None
            events = EngineEvents(request.choices, journal, hide_ids=not request.wants_token_ids)
            pump = StreamPump(response, stream.output, events)
            try:
                await pump.run()
            finally:
                stream.has_answer = stream.has_answer or pump.has_sent


def fault_of(body: bytes) -> WorkerFailed | ApiError | None:
    """What it means that the body of an engine's 200 is no answer; None if it is one."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return WorkerFailed("answered 200 with what is no JSON")
    has_choices = isinstance(answer, dict) and answer.get("choices")
    if has_choices and b'"error"' not in body and b'"abort"' not in body:
        return None  # nearly every answer
    if isinstance(answer, dict) and is_failure(answer):
        return error_of_event(body)
    if not has_choices:
        return WorkerFailed("answered 200 without an answer")
    return WorkerFailed("aborted its answer") if is_aborted(answer) else None


async def _encode(
    request: ApiRequest, extension: Extension | None, *, token_ids: bool = False
) -> bytes:
    """The engine's body. A long text is prepared in a thread, since the loop serves others."""
    if extension is None:
        raise WorkerFailed("has no engine URL", did_work=False)
    if is_long(request.body):
        return await asyncio.to_thread(_encode_now, request, extension, token_ids)
    return _encode_now(request, extension, token_ids)


def _encode_now(request: ApiRequest, extension: Extension, token_ids: bool) -> bytes:
    body = for_engine(request.body, extension, chat=request.chat)
    if token_ids:
        body = body | {"return_token_ids": True}
    try:
        return orjson.dumps(body)
    except TypeError as error:  # orjson reads deeper nesting than it writes
        raise BadRequest(f"the request body cannot be passed on: {error}") from error
