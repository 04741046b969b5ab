"""An engine's refusal, as OpenAI would have put it."""

from __future__ import annotations

from typing import Any

import orjson

from kodolly.errors import ApiError, BadRequest, ContextOverflow, EngineFailed, NoWorker, TooLarge

RETRY_AFTER = {"Retry-After": "2"}
OVERFLOW_WORDS = ("maximum context length", "context_length_exceeded", "longer than the maximum")


def from_engine(status: int, body: bytes) -> ApiError:
    """The error a client should see for an engine's answer of `status` with `body`."""
    error = _error_object(body)
    message = str(error.get("message") or body[:500].decode("utf-8", "replace") or f"HTTP {status}")
    named = error.get("param")
    # vLLM names fields as body.messages, or body.1 for a place in the text.
    param = named.removeprefix("body.") if isinstance(named, str) else None
    if status in (429, 503):
        return NoWorker(message, headers=RETRY_AFTER, code="overloaded")
    if status == 413:
        return TooLarge(message)
    if status in (400, 404, 422):
        overflow = any(words in message for words in OVERFLOW_WORDS)
        if overflow or error.get("code") == ContextOverflow.code:
            return ContextOverflow(message, param=param or "messages")
        return BadRequest(message, param=param)
    # 401 and 403 mean that our own key was refused: nothing a client could mend.
    return EngineFailed(f"the engine answered {status}: {message}")


def status_of(body: bytes) -> int:
    """The HTTP status that an error object names in its `code`; 500 where it names none."""
    code = _error_object(body).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    inner = data.get("error", data) if isinstance(data, dict) else {}
    return inner if isinstance(inner, dict) else {"message": inner}
