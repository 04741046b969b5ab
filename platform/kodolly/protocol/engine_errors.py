"""What an engine's error response says, in whatever form its maker chose: bounded, clean, never empty."""

from __future__ import annotations

import re
from typing import Any

import orjson

MAX_MESSAGE = 500  # characters of an engine's own message that an error repeats
MAX_TEXT = 4096  # bytes of a body without JSON that are looked at
LONGEST_RETRY = 86400  # seconds; a later time is no help to a client
TITLE = re.compile(r"<title[^>]*>([^<]{1,400})", re.IGNORECASE)
HIDDEN = re.compile(r"<(script|style)\b.*?(</\1>|$)", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"<[^>]*>?")
NOT_TEXT = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]+")


def error_object(body: bytes) -> dict[str, Any]:
    """The error of a response, with at least a `message`.

    Known forms: OpenAI's envelope, `{"error": "text"}` (TGI), `{"detail": ...}` (FastAPI),
    `{"message": ...}` at the top (older vLLM), an HTML page, plain text.
    """
    try:
        data = orjson.loads(body)
    except ValueError:
        data = None
    error = data
    if isinstance(data, dict):
        error = next((data[key] for key in ("error", "detail") if data.get(key)), data)
    fields = error if isinstance(error, dict) else {}
    if isinstance(error, list) and error and isinstance(error[0], dict):
        fields = _of_fastapi(error[0])
    elif isinstance(error, str):
        fields = {"message": error}
    return {**fields, "message": _clean(str(fields.get("message") or "")) or _text_of(body)}


def error_message(body: bytes) -> str:
    """Only the message."""
    return str(error_object(body)["message"])


def retry_after(header: bytes) -> str | None:
    """The seconds of a Retry-After header; None for one that is missing, absurd or a date."""
    if not re.fullmatch(rb"[0-9]{1,9}", header):
        return None
    return str(min(int(header), LONGEST_RETRY))


def _of_fastapi(detail: dict[str, Any]) -> dict[str, Any]:
    """The first fault in a FastAPI 422: `{"loc": ["body", "n"], "msg": "...", ...}`."""
    place = detail.get("loc")
    parts = [str(part) for part in place if part != "body"] if isinstance(place, list) else []
    field = ".".join(parts)
    message = str(detail.get("msg") or "")
    return {"message": f"{field}: {message}" if field else message, "param": field or None}


def _text_of(body: bytes) -> str:
    """The words of a body that is no JSON error."""
    text = body[:MAX_TEXT].decode("utf-8", "replace")
    if text.lstrip()[:1] == "<":
        title = TITLE.search(text)
        text = title[1] if title else TAG.sub(" ", HIDDEN.sub(" ", text))
    return _clean(text) or "no reason given"


def _clean(text: str) -> str:
    return NOT_TEXT.sub(" ", text[: 4 * MAX_MESSAGE]).strip()[:MAX_MESSAGE]
