"""FastChat's own workers behind the API: prompts by their template, frames turned into events.

Such a worker has no OpenAI engine to relay from, so its frames, each with the whole text so far, are
parsed here. That costs more a token than the byte relay; KoDolly's own workers never go this way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import httpx
import orjson

from kodolly.api.errors import WorkerFailed, out_of_descriptors
from kodolly.api.fastchat_worker.answers import (
    answer_body,
    check_frame,
    complete_text,
    last_choice,
    role_choice,
    text_choice,
    total_usage,
    whole_choice,
)
from kodolly.api.fastchat_worker.prompt import (
    as_list,
    chat_prompt,
    completion_prompt,
    conversation_of,
)
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.request import TEXTLESS, ApiRequest
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST, LOST, error_event, event
from kodolly.errors import ApiError, BadRequest, ContextOverflow
from kodolly.http import descriptors, server
from kodolly.http.client import CALL_ERRORS, describe_call_error, request_bounded
from kodolly.http.upstream import Broken, Connection, NoDescriptor, Pool, Unreachable
from kodolly.log_safe import describe_error
from kodolly.observe.requests import BROKEN
from kodolly.protocol.wire import frames

log = logging.getLogger(__name__)

CALL_TIMEOUT = 10.0  # seconds for a call that answers whole
# Seconds for which a worker's template and context length are kept: another model may come to serve
# under the same name and address.
FACTS_LIFETIME_S = 60.0


class FastChatRelay:
    """Sends requests to FastChat workers; it has the methods of `Relay`."""

    def __init__(
        self, client: httpx.AsyncClient, pool: Pool, token: str | None, read_timeout: float
    ) -> None:
        """`read_timeout`: seconds to wait for a stream's next bytes."""
        self._client = client
        self._pool = pool
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._read_timeout = read_timeout
        # By worker and model: time of expiry, conversation template, context length.
        self._facts: dict[tuple[str, str], tuple[float, dict[str, Any], int]] = {}

    async def answer(self, request: ApiRequest, worker: Worker) -> bytes:
        """The whole answer, as an OpenAI body. Raises WorkerFailed or ApiError."""
        if request.path in TEXTLESS:
            raise BadRequest(
                f"model: {request.model} is served by a FastChat worker, which has no {request.path}",
                param="model",
            )
        params = await self._params(request, worker)
        answers = [
            asyncio.create_task(self._last_frame(params, worker))
            for _ in range(request.body.get("n") or 1)
        ]
        try:
            last_frames = await asyncio.gather(*answers)
        finally:  # when one fails nobody needs the others
            await server.cancel_and_wait(*answers)
        choices = [
            whole_choice(
                request.chat, i, complete_text(frame), frame.get("finish_reason") or "stop"
            )
            for i, frame in enumerate(last_frames)
        ]
        usage = total_usage([frame["usage"] for frame in last_frames])
        return orjson.dumps(answer_body(request, choices, chunk=False) | {"usage": usage})

    async def stream(self, request: ApiRequest, worker: Worker, stream: ClientStream) -> None:
        """The answer as OpenAI events. Raises WorkerFailed or ApiError while nothing was sent."""
        if stream.has_answer:
            raise WorkerFailed("cannot go on with another worker's answer", did_work=False)
        params = await self._params(request, worker)
        async with aclosing(self._chunks(request, params, worker)) as chunks:
            first = await anext(chunks)
            write, stream.has_answer = stream.output.write, True
            request.measurement.first = time.perf_counter()
            await write(event(first))
            try:
                async for chunk in chunks:
                    await write(event(chunk))
                await write(LAST)
            except WorkerFailed as error:
                log.warning("%s: %s %s", request.request_id, worker.row.name, error)
                request.measurement.outcome = BROKEN
                await write(error_event(LOST, "worker_lost"))
            except ApiError as error:
                request.measurement.outcome = BROKEN
                await write(event(error.envelope()))

    async def _chunks(
        self, request: ApiRequest, params: dict[str, Any], worker: Worker
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of all `n` choices as they come, then the usage if the client wants it."""
        count = request.body.get("n") or 1
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue(maxsize=64)
        usages: list[dict[str, Any]] = [{} for _ in range(count)]

        async def pump(index: int) -> None:
            try:
                with _as_worker_failure("an odd frame"):
                    async for choice in self._deltas(request.chat, index, params, worker, usages):
                        await queue.put(answer_body(request, [choice], chunk=True))
                await queue.put(None)
            except (WorkerFailed, ApiError) as error:
                await queue.put(error)

        pumps = [asyncio.create_task(pump(i)) for i in range(count)]
        try:
            while count:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    count -= 1
                else:
                    yield item
            if request.wants_usage:
                yield answer_body(request, [], chunk=True) | {"usage": total_usage(usages)}
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _deltas(
        self,
        chat: bool,
        index: int,
        params: dict[str, Any],
        worker: Worker,
        usages: list[dict[str, Any]],
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One choice's pieces: whole texts turned into what is new, never half a syllable."""
        sent, reason, is_first = 0, None, True
        async with aclosing(self._frames(params, worker)) as incoming:
            async for frame in incoming:
                # Not earlier: until its first good frame a worker can refuse or be replaced.
                if chat and is_first:
                    yield role_choice(index)
                is_first, reason = False, frame.get("finish_reason") or reason
                usages[index] = frame["usage"] or usages[index]
                text = complete_text(frame)
                if len(text) > sent:
                    yield text_choice(chat, index, text[sent:])
                    sent = len(text)
        reason = reason or "stop"
        yield last_choice(chat, index, reason)

    async def _last_frame(self, params: dict[str, Any], worker: Worker) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async with aclosing(self._frames(params, worker)) as incoming:
            async for frame in incoming:
                last = frame
        return last

    async def _frames(
        self, params: dict[str, Any], worker: Worker
    ) -> AsyncGenerator[dict[str, Any], None]:
        """A worker's good frames, at least one. Raises WorkerFailed; ApiError for an error frame."""
        is_first = True
        url = f"{worker.row.name}/worker_generate_stream"
        try:
            async with asyncio.timeout(self._read_timeout):
                connection = await self._pool.post(url, self._headers, _encode(params))
            try:
                if connection.status != 200:
                    raise WorkerFailed(f"answered {connection.status}")
                async for raw in frames(self._chunks_of(connection)):
                    with _as_worker_failure("an odd frame"):
                        frame = check_frame(raw)
                    is_first = False
                    yield frame
                if is_first:
                    raise WorkerFailed("ended its answer before it began")
            finally:
                connection.release()
        except (Broken, Unreachable, TimeoutError, ValueError) as error:
            raise _failure("broke off", error) from error

    async def _chunks_of(self, connection: Connection) -> AsyncIterator[bytes]:
        """The bytes of a response. Raises Broken; TimeoutError when none come for too long."""
        while True:
            async with asyncio.timeout(self._read_timeout):
                chunk = await connection.read()
            if not chunk:
                return
            yield chunk

    async def _params(self, request: ApiRequest, worker: Worker) -> dict[str, Any]:
        body = request.body
        conv, context = await self._facts_of(request.model, worker)
        with _as_worker_failure("an odd conversation template"):
            is_chat = request.chat
            prompt = chat_prompt(conv, body["messages"]) if is_chat else completion_prompt(body)
            stops = [*as_list(body.get("stop")), *as_list(conv.get("stop_str"))]
        # Counted whatever the client's bound: FastChat's worker cuts a long prompt in silence.
        room = await self._room_left(request.model, prompt, context, worker)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or room
        return {
            "model": request.model,
            "prompt": prompt,
            "temperature": _or(body.get("temperature"), 1.0),
            "top_p": _or(body.get("top_p"), 1.0),
            "top_k": _or(body.get("top_k"), -1),
            "repetition_penalty": _or(body.get("repetition_penalty"), 1.0),
            "presence_penalty": _or(body.get("presence_penalty"), 0.0),
            "frequency_penalty": _or(body.get("frequency_penalty"), 0.0),
            "max_new_tokens": min(limit, room),
            "stop": list(dict.fromkeys(stops)) or None,
            "stop_token_ids": conv.get("stop_token_ids"),
            "echo": bool(body.get("echo")),
        }

    async def _room_left(self, model: str, prompt: str, context: int, worker: Worker) -> int:
        """Tokens that an answer may have. Raises ContextOverflow if there is room for none."""
        answer = await self._post(worker, "count_token", {"model": model, "prompt": prompt})
        with _as_worker_failure("an odd count of tokens"):
            room = context - int(answer.get("count", 0))
        if room <= 0:
            raise ContextOverflow(
                f"This model's maximum context length is {context} tokens; your messages have"
                f" {answer['count']}. Shorten them.",
                param="messages",
            )
        return room

    async def _facts_of(self, model: str, worker: Worker) -> tuple[dict[str, Any], int]:
        """A worker's conversation template, and its context length in tokens."""
        key, now = (worker.row.name, model), time.monotonic()
        self._facts = {k: facts for k, facts in self._facts.items() if facts[0] > now}
        if key not in self._facts:
            conv, details = await asyncio.gather(
                self._post(worker, "worker_get_conv_template", {"model": model}),
                self._post(worker, "model_details", {"model": model}),
            )
            with _as_worker_failure("odd facts"):
                conversation_of(conv["conv"])  # what cannot be used is not kept
                context = int(details.get("context_length") or 2048)
                self._facts[key] = now + FACTS_LIFETIME_S, conv["conv"], context
        _, template, context_length = self._facts[key]
        return template, context_length

    async def _post(self, worker: Worker, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """A call that answers whole, with a JSON object. Raises WorkerFailed."""
        headers = {**self._headers, "Content-Type": "application/json"}
        url, data = f"{worker.row.name}/{path}", _encode(payload)
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                status, raw = await request_bounded(
                    self._client, "POST", url, content=data, headers=headers
                )
            if status != 200:
                raise ValueError(f"it answered {status}")
            answer = orjson.loads(raw)
        except CALL_ERRORS as error:
            raise _failure(f"gave no /{path}", error) from error
        if not isinstance(answer, dict):
            raise WorkerFailed(f"gave no object for /{path}")
        return answer


def _failure(what: str, error: Exception) -> WorkerFailed:
    """A failed call, as the worker's fault, or as ours where we had no file descriptor for it."""
    if isinstance(error, NoDescriptor):
        return out_of_descriptors()
    if isinstance(error, httpx.ConnectError) and descriptors.are_exhausted(error):
        return out_of_descriptors()
    broke = isinstance(error, Broken | httpx.NetworkError | httpx.RemoteProtocolError)
    crashed = broke and not isinstance(error, httpx.ConnectError)
    return WorkerFailed(f"{what}: {describe_call_error(error)}", engine_crashed=crashed)


def _encode(params: dict[str, Any]) -> bytes:
    """JSON for a worker. Raises BadRequest for a field of the client's that is nested too deeply."""
    try:
        return orjson.dumps(params)
    except TypeError as error:  # orjson reads deeper nesting than it writes
        raise BadRequest(f"the request body cannot be passed on: {error}") from error


@contextmanager
def _as_worker_failure(what: str) -> Iterator[None]:
    """WorkerFailed for anything in a worker's answer that makes our code raise."""
    try:
        yield
    except (WorkerFailed, ApiError):
        raise
    except Exception as error:
        raise WorkerFailed(f"sent {what}: {describe_error(error)}") from error


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
