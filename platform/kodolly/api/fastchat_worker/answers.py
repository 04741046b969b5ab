"""Frames of FastChat's own workers as OpenAI's answers, events and errors."""

from __future__ import annotations

import time
from typing import Any

from kodolly.api.errors import RETRY_AFTER
from kodolly.api.request import ApiRequest
from kodolly.errors import ApiError, BadRequest, ContextOverflow, EngineFailed, NoWorker

# The character a worker sends for a syllable whose last bytes it has not decoded yet.
UNFINISHED = "\ufffd"
COUNTS = ("prompt_tokens", "completion_tokens")


def check_frame(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame with a text and a `usage` of counts, if any. Raises ApiError for an error frame."""
    if frame.get("error_code"):
        raise _error_of(frame)
    counts = frame.get("usage") or {}
    usage = {name: int(counts[name]) for name in COUNTS if counts.get(name) is not None}
    return {**frame, "text": str(frame["text"]), "usage": usage}


def _error_of(frame: dict[str, Any]) -> ApiError:
    """FastChat's error codes: 400xx the request, 40303 its length, 429xx load, 5xxxx the worker."""
    code, text = int(frame["error_code"]), str(frame.get("text", ""))
    if code == 40303:
        return ContextOverflow(text, param="messages")
    if code // 100 == 429:
        return NoWorker(text, headers=RETRY_AFTER, code="overloaded")
    return BadRequest(text) if code < 42900 else EngineFailed(text)


def answer_body(
    request: ApiRequest, choices: list[dict[str, Any]], *, chunk: bool
) -> dict[str, Any]:
    """OpenAI's object around some choices: a whole answer, or with `chunk` an event's."""
    chat = request.chat
    prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
    return {
        "id": f"{prefix}-{request.request_id}",
        "object": f"{kind}.chunk" if chunk and chat else kind,
        "created": int(time.time()),
        "model": request.model,
        "choices": choices,
    }


def whole_choice(chat: bool, index: int, text: str, reason: str) -> dict[str, Any]:
    """One whole answer; `reason` is its finish reason."""
    if not chat:
        return _choice(index, {"text": text}, reason)
    return _choice(index, {"message": {"role": "assistant", "content": text}}, reason)


def role_choice(index: int) -> dict[str, Any]:
    """The first piece of a chat's answer."""
    return _choice(index, {"delta": {"role": "assistant", "content": ""}}, None)


def text_choice(chat: bool, index: int, text: str) -> dict[str, Any]:
    """A piece with new text."""
    return _choice(index, {"delta": {"content": text}} if chat else {"text": text}, None)


def last_choice(chat: bool, index: int, reason: str) -> dict[str, Any]:
    """The last piece, with the finish reason."""
    return _choice(index, {"delta": {}} if chat else {"text": ""}, reason)


def _choice(index: int, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def complete_text(frame: dict[str, Any]) -> str:
    """A frame's text without a part of a character at its end; a length limit may leave one there."""
    return str(frame["text"]).rstrip(UNFINISHED)


def total_usage(usages: list[dict[str, Any]]) -> dict[str, int]:
    """OpenAI's usage: the tokens of one prompt and of all answers to it."""
    prompt = max((u.get("prompt_tokens", 0) for u in usages), default=0)
    answer = sum(u.get("completion_tokens", 0) for u in usages)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
