"""Errors between the page and the API, as sentences for the person at the page."""

from __future__ import annotations

import openai

from kodolly.web.history import Message, notice
from kodolly.web.texts import Language

BY_STATUS = {
    401: "no_access",
    403: "no_access",
    404: "model_gone",
    413: "too_long",
    429: "busy",
    503: "no_worker",
}
# An error event in a stream has no status: it is what its code says.
BY_CODE = {"no_worker": "no_worker", "rate_limit_exceeded": "busy", "overloaded": "busy"}
REASON_LIMIT = 300  # characters of the API's own message


class Interrupted(Exception):
    """A stream ended before its answer was complete."""


def explain(error: Exception, language: Language, *, model: str, begun: bool) -> Message:
    """The notice for `error`. `begun`: a part of the answer is on the page already."""
    key = failure_key(error, begun)
    reason = str(getattr(error, "message", error))[:REASON_LIMIT]
    return notice(language, key, model=model, reason=reason)


def failure_key(error: Exception, begun: bool) -> str:
    """The key in texts.py of the sentence for `error`."""
    if _is_overflow(error):
        return "too_long"
    if isinstance(error, openai.APIStatusError):
        default = "refused" if error.status_code < 500 else "failed"
        return BY_STATUS.get(error.status_code, default)
    if getattr(error, "type", None) == "invalid_request_error":
        return "refused"  # in the middle of a stream too: no worker was lost
    if begun or isinstance(error, Interrupted):
        return "lost"
    if isinstance(error, openai.APIConnectionError):
        return "api_down"
    return BY_CODE.get(str(getattr(error, "code", None)), "failed")


def _is_overflow(error: Exception) -> bool:
    # OpenAI and our API send a code for it. vLLM only sends a message.
    if getattr(error, "code", None) == "context_length_exceeded":
        return True
    return isinstance(error, openai.BadRequestError) and "context length" in error.message
