"""Server-sent events as engines write them: whole events out of chunks, and events of our own.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from typing import Any

import orjson

EVENT_END = b"\n\n"
CRLF_END = b"\r\n\r\n"
DATA = b"data: "
DONE = b"data: [DONE]"
LAST = DONE + EVENT_END
# Inside a JSON string the quote would be escaped: this can only begin an event.
ERROR = b'data: {"error"'
# How an engine that is being stopped ends an answer: an end that no client should see.
ABORT = b'"finish_reason":"abort"'
# Inside a JSON string its quotes would be escaped, too.
TOKEN_IDS = re.compile(rb'token_ids":\[[^\]]*\]')
NO_TOKEN_IDS = b'token_ids":null'
LOST = "The worker was lost in the middle of its answer."


def end_of_events(chunk: bytes) -> int:
    """Where the last whole event of a chunk ends; 0 if none does."""
    at = chunk.rfind(EVENT_END) + 2
    if at > 1:
        return at
    at = chunk.rfind(CRLF_END) + 4
    return at if at > 3 else 0


def without_token_ids(events: bytes) -> bytes:
    """Events as the engine would have sent them without `return_token_ids`."""
    return TOKEN_IDS.sub(NO_TOKEN_IDS, events)


def start_of_failure(events: bytes) -> int | None:
    """Where an engine's own failure begins in whole events; None if there is none."""
    if ERROR in events:
        return events.index(ERROR)
    if ABORT in events:
        return events.rindex(DATA, 0, events.index(ABORT))
    return None


def data_of(events: bytes) -> list[bytes]:
    """The data of whole events, comments and `[DONE]` left out."""
    lines = events.replace(b"\r\n", b"\n").split(EVENT_END)
    data = [line[len(DATA) :] for line in lines if line.startswith(DATA)]
    return [part for part in data if part != b"[DONE]"]


def event(body: dict[str, Any]) -> bytes:
    """One event with a JSON object."""
    return DATA + orjson.dumps(body) + EVENT_END


def error_event(message: str, code: str, kind: str = "server_error") -> bytes:
    """An error in OpenAI's shape, which client libraries raise; `kind` is its `type`."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return event({"error": error})
