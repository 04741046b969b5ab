"""A stock FastChat worker behind the API: prompts by its own template, frames turned into events.

Such a worker has no OpenAI engine to relay from, so its cumulative frames are parsed here. It costs
more a token than the byte relay; KoDolly's own workers never go this way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from kodolly.api.engine_io.calls import no_descriptor
from kodolly.api.errors import RETRY_AFTER
from kodolly.api.prepare import appended
from kodolly.api.relay.relay import Streamed
from kodolly.api.request import Call, WorkerGone
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST, LOST, error_event, event
from kodolly.errors import ApiError, BadRequest, ContextOverflow, EngineFailed, NoWorker
from kodolly.http import descriptors, server
from kodolly.http.log_safe import describe_error
from kodolly.protocol.wire import frames
from kodolly_templates import neutralise
from kodolly_templates.guard import is_key

if TYPE_CHECKING:
    from fastchat.conversation import Conversation

log = logging.getLogger(__name__)

# The character a worker sends for a syllable whose last bytes it has not decoded yet.
UNFINISHED = "\ufffd"
CALL_TIMEOUT = 10.0
# Seconds for which a worker's template and context length are not asked again: another model may come to
# serve under the same name and address.
FACTS_HOLD = 60.0
COUNTS = ("prompt_tokens", "completion_tokens")
# A string of a template with one of these and a letter is no everyday text, as "USER:" is.
KEY_MARKS = frozenset("#<>[]{}|")


class StockRelay:
    """Sends calls to stock workers; the same two verbs as the byte relay."""

    def __init__(
        self, session: aiohttp.ClientSession, token: str | None, read_timeout: float
    ) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=3, sock_read=read_timeout
        )
        # Until when they hold; conversation template and context length.
        self._facts: dict[tuple[str, str], tuple[float, dict[str, Any], int]] = {}

    async def answer(self, call: Call, worker: Worker) -> bytes:
        """The whole answer, as an OpenAI body. Raises WorkerGone or ApiError."""
        params = await self._params(call, worker)
        answers = [
            asyncio.create_task(self._last_frame(params, worker))
            for _ in range(call.body.get("n") or 1)
        ]
        try:
            ends = await asyncio.gather(*answers)
        finally:  # one that failed leaves the others nothing to answer for
            await server.cancel_and_wait(*answers)
        choices = [
            _choice(call.chat, i, _finished(end), end.get("finish_reason") or "stop")
            for i, end in enumerate(ends)
        ]
        usage = _total_usage([end["usage"] for end in ends])
        return orjson.dumps(_body(call, choices, chunk=False) | {"usage": usage})

    async def stream(self, call: Call, worker: Worker, answer: Streamed) -> None:
        """The answer as OpenAI events. Raises WorkerGone or ApiError while nothing was sent."""
        if answer.answered:
            raise WorkerGone("cannot go on with another worker's answer", worked=False)
        params = await self._params(call, worker)
        async with aclosing(self._interleaved(call, params, worker)) as events:
            first = await anext(events)
            write, answer.answered = answer.output.write, True
            await write(event(first))
            try:
                async for chunk in events:
                    await write(event(chunk))
                await write(LAST)
            except WorkerGone as error:
                log.warning("%s: %s %s", call.request_id, worker.row.name, error)
                await write(error_event(LOST, "worker_lost"))
            except ApiError as error:
                await write(event(error.envelope()))

    async def _interleaved(
        self, call: Call, params: dict[str, Any], worker: Worker
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of all `n` choices as they come, then the usage if it was asked for."""
        count = call.body.get("n") or 1
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue(maxsize=64)
        usages: list[dict[str, Any]] = [{} for _ in range(count)]

        async def pump(index: int) -> None:
            try:
                with _understood("an odd frame"):
                    async for choice in self._choices(call.chat, index, params, worker, usages):
                        await queue.put(_body(call, [choice], chunk=True))
                await queue.put(None)
            except (WorkerGone, ApiError) as error:
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
            if (call.body.get("stream_options") or {}).get("include_usage"):
                yield _body(call, [], chunk=True) | {"usage": _total_usage(usages)}
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _choices(
        self,
        chat: bool,
        index: int,
        params: dict[str, Any],
        worker: Worker,
        usages: list[dict[str, Any]],
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One choice's chunks: cumulative texts turned into deltas, never half a syllable."""
        sent, ending, begun = 0, None, False
        async with aclosing(self._frames(params, worker)) as incoming:
            async for frame in incoming:
                # Only now: until its first good frame a worker can be refused or replaced.
                if chat and not begun:
                    yield _delta(index, {"role": "assistant", "content": ""}, None)
                begun, ending = True, frame.get("finish_reason") or ending
                usages[index] = frame["usage"] or usages[index]
                ready = _finished(frame)
                if len(ready) > sent:
                    yield _piece(chat, index, ready[sent:])
                    sent = len(ready)
        ending = ending or "stop"
        yield _delta(index, {}, ending) if chat else _text(index, "", ending)

    async def _last_frame(self, params: dict[str, Any], worker: Worker) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async with aclosing(self._frames(params, worker)) as incoming:
            async for frame in incoming:
                last = frame
        return last

    async def _frames(
        self, params: dict[str, Any], worker: Worker
    ) -> AsyncGenerator[dict[str, Any], None]:
        """A worker's good frames, at least one. Raises WorkerGone, or ApiError for an error frame."""
        begun = False
        try:
            async with self._session.post(
                f"{worker.row.name}/worker_generate_stream",
                json=params,
                headers=self._headers,
                timeout=self._stream_timeout,
            ) as response:
                if response.status != 200:
                    raise WorkerGone(f"answered {response.status}")
                async for raw in frames(response.content.iter_any()):
                    with _understood("an odd frame"):
                        frame = _checked(raw)
                    begun = True
                    yield frame
                if not begun:
                    raise WorkerGone("ended its answer before it began")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _failed("broke off", error) from error

    async def _params(self, call: Call, worker: Worker) -> dict[str, Any]:
        body = call.body
        conv, context = await self._worker_facts(call.model, worker)
        with _understood("an odd conversation template"):
            prompt = chat_prompt(conv, body["messages"]) if call.chat else _plain_prompt(body)
            stops = [*_listed(body.get("stop")), *_listed(conv.get("stop_str"))]
        # Counted whatever the client's bound: FastChat's worker cuts a long prompt in silence.
        room = await self._room_left(call.model, prompt, context, worker)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or room
        return {
            "model": call.model,
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
        counted = await self._ask(worker, "count_token", {"model": model, "prompt": prompt})
        with _understood("an odd count of tokens"):
            room = context - int(counted.get("count", 0))
        if room <= 0:
            raise ContextOverflow(
                f"This model's maximum context length is {context} tokens; your messages have"
                f" {counted['count']}. Shorten them.",
                param="messages",
            )
        return room

    async def _worker_facts(self, model: str, worker: Worker) -> tuple[dict[str, Any], int]:
        key, now = (worker.row.name, model), time.monotonic()
        self._facts = {k: known for k, known in self._facts.items() if known[0] > now}
        if key not in self._facts:
            conv, details = await asyncio.gather(
                self._ask(worker, "worker_get_conv_template", {"model": model}),
                self._ask(worker, "model_details", {"model": model}),
            )
            with _understood("odd facts"):
                _conversation(conv["conv"])  # what cannot be used is not kept
                context = int(details.get("context_length") or 2048)
                self._facts[key] = now + FACTS_HOLD, conv["conv"], context
        _, template, longest = self._facts[key]
        return template, longest

    async def _ask(self, worker: Worker, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._session.post(
                f"{worker.row.name}/{path}",
                json=payload,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT),
            ) as response:
                response.raise_for_status()
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _failed(f"gave no /{path}", error) from error
        if not isinstance(answer, dict):
            raise WorkerGone(f"gave no object for /{path}")
        return answer


def _failed(what: str, error: Exception) -> WorkerGone:
    """A call that failed, as the worker's fault, or as ours where we had no file descriptor for it."""
    unasked = isinstance(error, aiohttp.ClientConnectorError)
    if unasked and descriptors.are_exhausted(error):
        return no_descriptor()
    broke_down = isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientOSError)
    return WorkerGone(f"{what}: {describe_error(error)}", died=broke_down and not unasked)


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """WorkerGone for anything in a worker's answer that our code trips over."""
    try:
        yield
    except (WorkerGone, ApiError):
        raise
    except Exception as error:
        raise WorkerGone(f"sent {what}: {describe_error(error)}") from error


def _conversation(conv: dict[str, Any]) -> Conversation:
    """A worker's template as fschat's own object."""
    from fastchat.conversation import Conversation, SeparatorStyle

    names = ("name", "system_template", "system_message", "roles", "offset", "sep", "sep2")
    return Conversation(
        **{name: conv[name] for name in names if name in conv},
        messages=[list(m) for m in conv.get("messages") or ()],
        sep_style=SeparatorStyle(conv["sep_style"]),
    )


def chat_prompt(conv: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """The prompt fschat's own Conversation makes of OpenAI messages, with the keys in them broken."""
    conversation, keys = _conversation(conv), template_keys(conv)
    user, assistant = conversation.roles
    for index, message in enumerate(messages):
        text = neutralise(_message_text(appended(message), index), keys)
        if message["role"] in ("system", "developer"):
            conversation.set_system_message(text)
        elif message["role"] in ("user", "assistant"):
            conversation.append_message(user if message["role"] == "user" else assistant, text)
        else:
            raise BadRequest(
                f"messages[{index}].role: this model knows no {message['role']!r}",
                param=f"messages[{index}].role",
            )
    conversation.append_message(assistant, None)
    return str(conversation.get_prompt())


def template_keys(conv: dict[str, Any]) -> list[str]:
    """Strings of a template by which a text could forge a turn, if they are no everyday text.

    "### Human:", "<|im_end|>" and "</s>" are; "USER:" is not, and stays as the user wrote it.
    """
    separators = [conv.get("sep") or "", conv.get("sep2") or ""]
    named = [*separators, *_listed(conv.get("stop_str"))]
    for role in conv["roles"]:
        named += [role, *(f"{separator}{role}:" for separator in separators)]
    stripped = [name.strip() for name in named]
    return list(dict.fromkeys(name for name in stripped if is_key(name) and _is_special(name)))


def _is_special(name: str) -> bool:
    return not KEY_MARKS.isdisjoint(name) and any(map(str.isalnum, name))


def _message_text(message: dict[str, Any], index: int) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        field = f"messages[{index}].content"
        raise BadRequest(f"{field}: this model reads text only", param=field)
    return "\n".join(str(part.get("text", "")) for part in content)


def _plain_prompt(body: dict[str, Any]) -> str:
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise BadRequest("prompt: this model takes one text as its prompt", param="prompt")
    return prompt


def _checked(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame with a text and a `usage` of counts, if any. Raises ApiError for an error frame."""
    if frame.get("error_code"):
        raise _error_of(frame)
    told = frame.get("usage") or {}
    usage = {name: int(told[name]) for name in COUNTS if told.get(name) is not None}
    return {**frame, "text": str(frame["text"]), "usage": usage}


def _error_of(frame: dict[str, Any]) -> ApiError:
    """FastChat's error codes: 400xx the request, 40303 its length, 429xx load, 5xxxx the worker."""
    code, text = int(frame["error_code"]), str(frame.get("text", ""))
    if code == 40303:
        return ContextOverflow(text, param="messages")
    if code // 100 == 429:
        return NoWorker(text, headers=RETRY_AFTER, code="overloaded")
    return BadRequest(text) if code < 42900 else EngineFailed(text)


def _body(call: Call, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
    prefix, kind = ("chatcmpl", "chat.completion") if call.chat else ("cmpl", "text_completion")
    return {
        "id": f"{prefix}-{call.request_id}",
        "object": f"{kind}.chunk" if chunk and call.chat else kind,
        "created": int(time.time()),
        "model": call.model,
        "choices": choices,
    }


def _choice(chat: bool, index: int, text: str, reason: str) -> dict[str, Any]:
    if not chat:
        return _text(index, text, reason)
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _piece(chat: bool, index: int, text: str) -> dict[str, Any]:
    return _delta(index, {"content": text}, None) if chat else _text(index, text, None)


def _delta(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _text(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _finished(frame: dict[str, Any]) -> str:
    """A frame's text without the part of a character at its end; a bound may leave one for good."""
    return str(frame["text"]).rstrip(UNFINISHED)


def _total_usage(usages: list[dict[str, Any]]) -> dict[str, int]:
    """One prompt, all answers."""
    prompt = max((u.get("prompt_tokens", 0) for u in usages), default=0)
    answer = sum(u.get("completion_tokens", 0) for u in usages)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _listed(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
