"""Responses in OpenAI's form with vLLM's additions: one body, or the events of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from kodolly.engines.transformers.choices import Choices
from kodolly.engines.transformers.engine import Answers
from kodolly.engines.transformers.requests.sampling import StreamOptions
from kodolly.engines.transformers.sequence import Delta
from kodolly.errors import ApiError, RequestFault

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


async def whole(choices: Choices) -> Json:
    """The response body once every choice is finished.

    Raises RequestFault if the request's own values made it fail, ApiError if the engine failed.
    """
    answers = choices.answers
    deltas: list[list[Delta]] = [[] for _ in answers.prompts]
    async for index, delta in answers:
        deltas[index].append(delta)
    for parts in deltas:
        if (error := _error(parts[-1])) is not None:
            raise error
    made = [choices.whole(index, parts) for index, parts in enumerate(deltas)]
    body = choices.meta.envelope(made, chunk=False)
    if choices.meta.chat:
        body |= choices.prompt_fields(0)
    completion_tokens = sum(len(delta.token_ids) for parts in deltas for delta in parts)
    return body | {"usage": usage(answers, completion_tokens)}


async def stream(choices: Choices, options: StreamOptions | None) -> AsyncIterator[bytes]:
    """The same response as server-sent events; the last one is `[DONE]`."""
    options = options or StreamOptions()
    answers, meta = choices.answers, choices.meta
    completion_tokens = 0

    def event(choice: Json, more: Json | None = None) -> bytes:
        body = meta.envelope([choice], chunk=True) | (more or {})
        if options.continuous_usage_stats:
            body["usage"] = usage(answers, completion_tokens)
        return frame(body)

    if meta.chat:
        for choice, more in choices.first_chunks():
            yield event(choice, more)
    async for index, delta in answers:
        completion_tokens += len(delta.token_ids)
        if (error := _error(delta)) is not None:
            yield frame(engine_envelope(error))
            break
        if (chunk := choices.chunk(index, delta)) is not None:
            yield event(chunk)
    else:
        if options.include_usage:
            yield frame(
                meta.envelope([], chunk=True) | {"usage": usage(answers, completion_tokens)}
            )
    yield DONE


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
