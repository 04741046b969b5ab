"""Events of a continued answer, in the shape of those that came before it."""

from __future__ import annotations

from typing import Any

from kodolly.api.request import Call
from kodolly.api.resume.journal import Choice, Journal

Json = dict[str, Any]


def role(journal: Journal, choice: Choice) -> Json:
    """The event that opens a choice of a chat."""
    told = {"index": choice.index, "delta": {"role": "assistant", "content": ""}}
    return _event(journal, [told | {"logprobs": None, "finish_reason": None}])


def piece(
    call: Call,
    journal: Journal,
    choice: Choice,
    text: str,
    ids: list[int] | None,
    logprobs: Json | None,
    finish: tuple[str, Any] | None,
) -> Json:
    """An event with text, tokens and, at the end, (finish reason, stop reason)."""
    said: Json = {"delta": {"content": text}} if call.chat else {"text": text}
    told = {"index": choice.index, **said, "logprobs": logprobs}
    told["finish_reason"] = finish[0] if finish else None
    if finish:
        told["stop_reason"] = finish[1]
    told["token_ids"] = ids
    body = _event(journal, [told])
    if (call.body.get("stream_options") or {}).get("continuous_usage_stats"):
        body["usage"] = usage(call, journal)
    return body


def usage_event(call: Call, journal: Journal) -> Json:
    """The event without choices that `include_usage` asks for."""
    return _event(journal, []) | {"usage": usage(call, journal)}


def usage(call: Call, journal: Journal) -> Json:
    """Token counts: every prompt once, every answer."""
    n = call.body.get("n") or 1
    prompts = [c.prompt or () for c in journal.choices.values() if c.index % n == 0]
    read = sum(map(len, prompts[:1] if call.chat else prompts))
    made = sum(len(choice.ids) for choice in journal.choices.values())
    return {"prompt_tokens": read, "total_tokens": read + made, "completion_tokens": made}


def chat_logprobs(told: Json, top: int) -> Json:
    """Logprobs of /v1/completions in the form of a chat's; `top` alternatives a token."""
    tokens, values = told["tokens"], told["token_logprobs"]
    best = told.get("top_logprobs") or [None] * len(tokens)
    return {
        "content": [
            _entry(token, value)
            | {"top_logprobs": [_entry(*pair) for pair in list((most or {}).items())[:top]]}
            for token, value, most in zip(tokens, values, best, strict=True)
        ]
    }


def without_first(told: Json | None, count: int) -> Json | None:
    """Logprobs of /v1/completions without those of the first `count` tokens."""
    if told is None or not count:
        return told
    return {key: value[count:] if isinstance(value, list) else value for key, value in told.items()}


def shifted(told: Json, offset: int) -> Json:
    """Logprobs of /v1/completions whose text begins `offset` characters into the answer."""
    return told | {"text_offset": [at + offset for at in told.get("text_offset") or ()]}


def _entry(token: str, logprob: float) -> Json:
    # -9999 is what engines write for minus infinity, which JSON has not.
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _event(journal: Journal, choices: list[Json]) -> Json:
    return {**journal.head, "choices": choices}
