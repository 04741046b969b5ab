"""Responses in OpenAI's form with vLLM's additions: one body, or the events of a stream."""

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
class ResponseMeta:
    """The fields of a response that are the same in each of its events."""

    id: str
    model: str
    chat: bool
    token_ids: bool  # the response also has the token ids of prompt and answer
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[Json], *, chunk: bool) -> Json:
        """A response or an event (`chunk`) with these choices."""
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
        """One choice. `delta`: its newest part, from which the finish reason is taken."""
        finished = delta is not None and delta.finish_reason is not None
        choice = {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": delta.finish_reason if delta and finished else None,
        }
        if delta and finished:
            choice["stop_reason"] = delta.stop_reason
        return choice


def response_meta(
    request_id: str, model: str, body: ChatRequest | CompletionRequest
) -> ResponseMeta:
    """The fixed fields of the response to `body`."""
    chat = isinstance(body, ChatRequest)
    prefix = "chatcmpl-" if chat else "cmpl-"
    return ResponseMeta(prefix + request_id, model, chat, bool(body.return_token_ids))


async def whole(answers: Answers, meta: ResponseMeta) -> Json:
    """The response body once every choice is finished.

    Raises RequestFault if the request's own values made it fail, ApiError if the engine failed.
    """
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
        choice = meta.choice(index, message if meta.chat else {"text": text}, last[index])
        if meta.token_ids:
            choice["token_ids"] = ids[index]
            if not meta.chat:
                choice["prompt_token_ids"] = answers.prompts[index]
        choices.append(choice)
    body = meta.envelope(choices, chunk=False)
    if meta.token_ids and meta.chat:
        body["prompt_token_ids"] = answers.prompts[0]
    return body | {"usage": usage(answers, sum(map(len, ids)))}


async def stream(
    answers: Answers, meta: ResponseMeta, options: StreamOptions | None
) -> AsyncIterator[bytes]:
    """The same response as server-sent events; the last one is `[DONE]`."""
    options = options or StreamOptions()
    completion_tokens = 0

    def event(choices: list[Json], **more: Any) -> bytes:
        body = meta.envelope(choices, chunk=True) | more
        if options.continuous_usage_stats:
            body["usage"] = usage(answers, completion_tokens)
        return frame(body)

    if meta.chat:
        for first in _first_chunks(answers, meta, event):
            yield first
    indices_sent: set[int] = set()
    async for index, delta in answers:
        completion_tokens += len(delta.token_ids)
        if (error := _error(delta)) is not None:
            yield frame(engine_envelope(error))
            break
        if delta.text or delta.finish_reason or meta.token_ids:
            yield event([_chunk(answers, meta, index, delta, first=index not in indices_sent)])
            indices_sent.add(index)
    else:
        if options.include_usage:
            yield frame(
                meta.envelope([], chunk=True) | {"usage": usage(answers, completion_tokens)}
            )
    yield DONE


def _first_chunks(answers: Answers, meta: ResponseMeta, event: Any) -> Iterable[bytes]:
    for index in range(len(answers.prompts)):
        choice = meta.choice(index, {"delta": {"role": "assistant", "content": ""}}, None)
        if meta.token_ids and index == 0:
            yield event([choice], prompt_token_ids=answers.prompts[0])
        else:
            yield event([choice])


def _chunk(answers: Answers, meta: ResponseMeta, index: int, delta: Delta, *, first: bool) -> Json:
    content: Json = {"delta": {"content": delta.text}} if meta.chat else {"text": delta.text}
    choice = meta.choice(index, content, delta)
    if meta.token_ids:
        choice["token_ids"] = list(delta.token_ids)
        if first and not meta.chat:
            choice["prompt_token_ids"] = answers.prompts[index]
    return choice


def usage(answers: Answers, completion_tokens: int) -> Json:
    """OpenAI's `usage`. A prompt with n answers counts once."""
    unique = {id(prompt): len(prompt) for prompt in answers.prompts}
    prompt_tokens = sum(unique.values())
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def frame(body: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def engine_envelope(error: ApiError) -> Json:
    """OpenAI's error body in vLLM's form, where `code` is the HTTP status."""
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
