"""Events of a continued answer, in the shape of those that came before it."""

from __future__ import annotations

from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import Choice, Journal

Json = dict[str, Any]


def role_event(journal: Journal, choice: Choice) -> Json:
    """The event that opens a choice of a chat."""
    delta = {"role": "assistant", "content": ""}
    part = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
    return _event(journal, [part])


def text_event(
    request: ApiRequest,
    journal: Journal,
    choice: Choice,
    text: str,
    ids: list[int] | None,
    logprobs: Json | None,
    finish: tuple[str, Any] | None,
) -> Json:
    """An event with text, tokens and, at the end, (finish reason, stop reason)."""
    part: Json = {"index": choice.index}
    part |= {"delta": {"content": text}} if request.chat else {"text": text}
    part["logprobs"] = logprobs
    part["finish_reason"] = finish[0] if finish else None
    if finish:
        part["stop_reason"] = finish[1]
    part["token_ids"] = ids
    body = _event(journal, [part])
    if (request.body.get("stream_options") or {}).get("continuous_usage_stats"):
        body["usage"] = usage(request, journal)
    return body


def replayed_event(journal: Journal, choice: Json, usage: Json | None) -> Json:
    """An event of a replayed answer; `usage`: the counts so far, for a client that wants them."""
    return _event(journal, [choice]) | ({"usage": usage} if usage else {})


def usage_event(journal: Journal, usage: Json) -> Json:
    """The event without choices that `include_usage` adds."""
    return _event(journal, []) | {"usage": usage}


def usage(request: ApiRequest, journal: Journal) -> Json:
    """Token counts: every prompt once, every answer."""
    n = request.body.get("n") or 1
    prompts = [c.prompt or () for c in journal.choices.values() if c.index % n == 0]
    prompt = sum(map(len, prompts[:1] if request.chat else prompts))
    answer = sum(len(choice.ids) for choice in journal.choices.values())
    return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}


def chat_logprobs(logprobs: Json, top: int) -> Json:
    """Logprobs of /v1/completions in the form of a chat's; `top` alternatives a token."""
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    best = logprobs.get("top_logprobs") or [None] * len(tokens)
    return {
        "content": [
            _entry(token, value)
            | {"top_logprobs": [_entry(*pair) for pair in list((most or {}).items())[:top]]}
            for token, value, most in zip(tokens, values, best, strict=True)
        ]
    }


def without_first(logprobs: Json | None, count: int) -> Json | None:
    """Logprobs of /v1/completions without those of the first `count` tokens."""
    if logprobs is None or not count:
        return logprobs
    return {k: value[count:] if isinstance(value, list) else value for k, value in logprobs.items()}


def shift_offsets(logprobs: Json, offset: int) -> Json:
    """Logprobs of /v1/completions whose text begins `offset` characters into the answer."""
    return logprobs | {"text_offset": [at + offset for at in logprobs.get("text_offset") or ()]}


def _entry(token: str, logprob: float) -> Json:
    # -9999 is what engines write for minus infinity, which JSON has not.
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _event(journal: Journal, choices: list[Json]) -> Json:
    return {**journal.head, "choices": choices}
