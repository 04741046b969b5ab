"""What went wrong between the page and the API, as a sentence for the person who waits."""

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
REASON_LIMIT = 300  # characters of an API's own sentence


class Interrupted(Exception):
    """An answer's stream ended before the answer did."""


def explain(error: Exception, language: Language, *, model: str, begun: bool) -> Message:
    """The notice for `error`; `begun`: part of the answer is already on the page."""
    key = failure_key(error, begun)
    reason = str(getattr(error, "message", error))[:REASON_LIMIT]
    return notice(language, key, model=model, reason=reason)


def failure_key(error: Exception, begun: bool) -> str:
    """Which sentence of texts.py tells `error`."""
    if _is_overflow(error):
        return "too_long"
    if isinstance(error, openai.APIStatusError):
        default = "refused" if error.status_code < 500 else "failed"
        return BY_STATUS.get(error.status_code, default)
    if begun or isinstance(error, Interrupted):
        return "lost"
    if isinstance(error, openai.APIConnectionError):
        return "api_down"
    # An error event inside a stream has no status, only a code.
    return "no_worker" if getattr(error, "code", None) == "no_worker" else "failed"


def _is_overflow(error: Exception) -> bool:
    # vLLM tells an overflow only in words, OpenAI and our API by a code.
    if getattr(error, "code", None) == "context_length_exceeded":
        return True
    return isinstance(error, openai.BadRequestError) and "context length" in error.message
