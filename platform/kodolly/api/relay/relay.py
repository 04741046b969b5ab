"""One attempt at a request: by one worker, from the start or from where another worker stopped.

A journal keeps what a client was sent. When a worker fails in the middle, another one goes on from
the tokens the client has (`resume/`); only what no engine can go on with ends in an error event.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from kodolly.api.engine_io.calls import EngineCalls
from kodolly.api.errors import WorkerFailed, error_of_event
from kodolly.api.prepare import prepared
from kodolly.api.relay.client_stream import ClientStream, WayOn
from kodolly.api.relay.engine_events import EngineEvents
from kodolly.api.relay.stream_pump import StreamPump
from kodolly.api.request import TEXTLESS, TOKENIZE, ApiRequest
from kodolly.api.resume.continuation import Continuation
from kodolly.api.resume.replay import Replay
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST
from kodolly.errors import ApiError, BadRequest, ContextOverflow, RequestFault
from kodolly.protocol.event_stream import is_aborted, is_failure
from kodolly.protocol.wire import Extension

PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d{1,9})')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d{1,9})')


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
        if (fault := fault_of(body, request.answer_field)) is not None:
            raise fault
        request.measurement.tokens_in, request.measurement.tokens_out = usage_of(body)
        return body

    async def stream(self, request: ApiRequest, worker: Worker, stream: ClientStream) -> None:
        """Starts a stream or continues it. Raises WorkerFailed, or ApiError if no worker can."""
        if stream.journal.empty:
            await self._start(request, worker, stream)
        elif not stream.journal.unfinished and not request.wants_usage:
            await stream.output.write(LAST)
        else:
            kind = Continuation if stream.way_on() is WayOn.CONTINUE else Replay
            request.measurement.resumes += kind is Continuation
            request.measurement.replays += kind is Replay
            attempt = kind(
                request,
                worker,
                stream.journal,
                self._engines,
                stream.output,
                shows_ids=stream.shows_ids,
            )
            await attempt.run()
            stream.journal.fold()
            # Of an engine that sends no ids, what it had sent before stays the count.
            if tokens := sum(len(choice.ids) for choice in stream.journal.choices.values()):
                request.measurement.tokens_out = tokens

    async def _start(self, request: ApiRequest, worker: Worker, stream: ClientStream) -> None:
        """Starts a stream, with token ids where it can be resumed and the engine gives them.

        Many engines refuse a field that they do not know. One that refuses `return_token_ids` is
        sent the request once more without it, and no other request with it.
        """
        stream.record(worker)
        ids = stream.is_recorded and worker.takes_token_ids is not False
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
            if stream.is_recorded:
                worker.takes_token_ids = token_ids
            journal = stream.journal if stream.is_recorded else None
            events = EngineEvents(request.choices, journal, hide_ids=not stream.shows_ids)
            pump = StreamPump(response, stream.output, events)
            try:
                await pump.run()
            finally:
                stream.has_answer = stream.has_answer or pump.has_sent
                _note_tokens(request, events)


def _note_tokens(request: ApiRequest, events: EngineEvents) -> None:
    """Sets the token counts of a stream's measurement: the engine's own, else one for each event."""
    measurement, usage = request.measurement, events.usage
    heads = request.choices if request.chat else 0  # events with a role and no token
    tokens_in: Any = events.prompt_tokens
    tokens_out: Any = max(0, events.count - heads)
    if usage is not None:
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    measurement.tokens_in = tokens_in if isinstance(tokens_in, int) else None
    measurement.tokens_out = tokens_out if isinstance(tokens_out, int) else None
    if measurement.first is None:
        measurement.first = events.first_time


def usage_of(body: bytes) -> tuple[int | None, int | None]:
    """The tokens of prompt and answer that a whole answer states; None where it does not."""
    begin = body.rfind(b'"usage"')  # within a text the quotes would be escaped
    if begin < 0:
        return None, None
    prompt = PROMPT_TOKENS.search(body, begin)
    answer = COMPLETION_TOKENS.search(body, begin)
    return int(prompt[1]) if prompt else None, int(answer[1]) if answer else None


def fault_of(body: bytes, field: str = "choices") -> WorkerFailed | ApiError | None:
    """What it means that the body of an engine's 200 is no answer; None if it is one.

    `field`: what an answer has.
    """
    if field != "choices":
        return _fault_of_textless(body, field)
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


def _fault_of_textless(body: bytes, field: str) -> WorkerFailed | None:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return WorkerFailed("answered 200 with what is no JSON")
    if isinstance(answer, dict) and field in answer:
        return None
    return WorkerFailed(f"answered 200 without {field}")


def check_served(request: ApiRequest, extension: Extension) -> None:
    """Raises BadRequest for text from a model that makes embeddings, or embeddings from another."""
    # A server that somebody else runs may have models of both kinds: it says itself what it does not do.
    if request.embeds and not extension.pooling and extension.capabilities is not None:
        raise BadRequest(
            f"model: {request.model} makes text and no embeddings: name a model of /v1/models that"
            " has the capability embeddings",
            param="model",
        )
    if extension.pooling and request.path not in TEXTLESS:
        raise BadRequest(
            f"model: {request.model} makes embeddings and no text: use /v1/embeddings",
            param="model",
        )


async def _encode(
    request: ApiRequest, extension: Extension | None, *, token_ids: bool = False
) -> bytes:
    """The engine's body."""
    if extension is None:
        raise WorkerFailed("has no engine URL", did_work=False)
    if extension.pooling or request.path in TEXTLESS:
        check_served(request, extension)
    try:
        body = await prepared(
            request.body,
            extension,
            chat=request.chat,
            token_ids=token_ids,
            size=request.size,
        )
        if request.path == TOKENIZE:  # nothing is made that a string could stop
            body = {name: value for name, value in body.items() if name != "stop"}
        return orjson.dumps(body)
    except TypeError as error:  # orjson reads deeper nesting than it writes
        raise BadRequest(f"the request body cannot be passed on: {error}") from error
