"""Answers in OpenAI's shapes, with vLLM's additions: whole, and as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from kodolly.engines.transformers.engine import Answers
from kodolly.engines.transformers.schema import ChatRequest, CompletionRequest, StreamOptions
from kodolly.engines.transformers.sequence import Delta
from kodolly.errors import ApiError, RequestFault

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What names an answer: the same in each of its events."""

    id: str
    model: str
    chat: bool
    token_ids: bool  # tell the ids of prompt and answer
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[Json], *, chunk: bool) -> Json:
        """The outer object around choices."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def choice(self, index: int, content: Json, delta: Delta | None) -> Json:
        """A choice with `content`, ended as `delta` says."""
        ended = delta is not None and delta.finish_reason is not None
        choice = {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": delta.finish_reason if delta and ended else None,
        }
        if delta and ended:
            choice["stop_reason"] = delta.stop_reason
        return choice


def shape(request_id: str, model: str, asked: ChatRequest | CompletionRequest) -> Shape:
    """The shape of the answer to `asked`."""
    chat = isinstance(asked, ChatRequest)
    prefix = "chatcmpl-" if chat else "cmpl-"
    return Shape(prefix + request_id, model, chat, bool(asked.return_token_ids))


async def whole(answers: Answers, shape: Shape) -> Json:
    """The finished answer. Raises RequestFault, or ApiError when the engine failed or gave up on it."""
    texts = ["" for _ in answers.prompts]
    ids: list[list[int]] = [[] for _ in answers.prompts]
    last: dict[int, Delta] = {}
    async for index, delta in answers:
        texts[index] += delta.text
        ids[index] += delta.token_ids
        last[index] = delta
    for delta in last.values():
        if (error := _error(delta)) is not None:
            raise error
    choices = []
    for index, text in enumerate(texts):
        message = {"message": {"role": "assistant", "content": text}}
        choice = shape.choice(index, message if shape.chat else {"text": text}, last[index])
        if shape.token_ids:
            choice["token_ids"] = ids[index]
            if not shape.chat:
                choice["prompt_token_ids"] = answers.prompts[index]
        choices.append(choice)
    body = shape.envelope(choices, chunk=False)
    if shape.token_ids and shape.chat:
        body["prompt_token_ids"] = answers.prompts[0]
    return body | {"usage": usage(answers, sum(map(len, ids)))}


async def stream(
    answers: Answers, shape: Shape, options: StreamOptions | None
) -> AsyncIterator[bytes]:
    """The same answer as server-sent events, closed by [DONE]."""
    options = options or StreamOptions()
    made = 0

    def event(choices: list[Json], **more: Any) -> bytes:
        body = shape.envelope(choices, chunk=True) | more
        if options.continuous_usage_stats:
            body["usage"] = usage(answers, made)
        return frame(body)

    if shape.chat:
        for first in _first_chunks(answers, shape, event):
            yield first
    told: set[int] = set()
    async for index, delta in answers:
        made += len(delta.token_ids)
        if (error := _error(delta)) is not None:
            yield frame(engine_envelope(error))
            break
        if delta.text or delta.finish_reason or shape.token_ids:
            yield event([_chunk(answers, shape, index, delta, first=index not in told)])
            told.add(index)
    else:
        if options.include_usage:
            yield frame(shape.envelope([], chunk=True) | {"usage": usage(answers, made)})
    yield DONE


def _first_chunks(answers: Answers, shape: Shape, event: Any) -> Iterable[bytes]:
    for index in range(len(answers.prompts)):
        choice = shape.choice(index, {"delta": {"role": "assistant", "content": ""}}, None)
        if shape.token_ids and index == 0:
            yield event([choice], prompt_token_ids=answers.prompts[0])
        else:
            yield event([choice])


def _chunk(answers: Answers, shape: Shape, index: int, delta: Delta, *, first: bool) -> Json:
    content: Json = {"delta": {"content": delta.text}} if shape.chat else {"text": delta.text}
    choice = shape.choice(index, content, delta)
    if shape.token_ids:
        choice["token_ids"] = list(delta.token_ids)
        if first and not shape.chat:
            choice["prompt_token_ids"] = answers.prompts[index]
    return choice


def usage(answers: Answers, made: int) -> Json:
    """Token counts; a prompt answered n times counts once."""
    unique = {id(prompt): len(prompt) for prompt in answers.prompts}
    read = sum(unique.values())
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def frame(body: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def engine_envelope(error: ApiError) -> Json:
    """vLLM's form of OpenAI's error body: `code` is the HTTP status."""
    body = error.envelope()
    body["error"]["code"] = error.status
    return body


def _error(delta: Delta) -> ApiError | None:
    if delta.finish_reason == "fault":
        return RequestFault(
            "The values of this request made drawing its next token fail. Other requests are not "
            "affected, and the same request would fail again: change its sampling parameters."
        )
    if delta.finish_reason in ("error", "abort"):
        return ApiError("the engine could not finish this answer")
    return None
