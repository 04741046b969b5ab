"""Server-sent events as this API writes them: `data: {...}`, a blank line, `[DONE]` at the end.

How engines write them is another matter: see `kodolly.protocol.event_stream`.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

EVENT_END = b"\n\n"
DATA = b"data: "
LAST = b"data: [DONE]\n\n"
# A comment, which clients skip: it keeps a silent connection open.
PING = b": ping\n\n"
# Numbers, perhaps in lists of their own. Inside a JSON string its quotes would be escaped.
TOKEN_IDS = re.compile(rb'token_ids"\s*:\s*\[[\[\]\d\s,nul-]*\]')
NO_TOKEN_IDS = b'token_ids":null'
LOST = "The worker was lost in the middle of its answer."


def without_token_ids(events: bytes) -> bytes:
    """Events as the engine would have sent them without `return_token_ids`."""
    return TOKEN_IDS.sub(NO_TOKEN_IDS, events)


def data_of(events: bytes) -> list[bytes]:
    """The data of whole events in this API's own form, comments and `[DONE]` left out."""
    data = [each[len(DATA) :] for each in events.split(EVENT_END) if each.startswith(DATA)]
    return [each for each in data if each != b"[DONE]"]


def event(body: dict[str, Any]) -> bytes:
    """One event with a JSON object."""
    return DATA + orjson.dumps(body) + EVENT_END


def event_of_data(data: bytes) -> bytes:
    """One event with the given data, which may have several lines."""
    return DATA + data.replace(b"\n", b"\n" + DATA) + EVENT_END


def error_event(message: str, code: str, kind: str = "server_error") -> bytes:
    """An error in OpenAI's shape, which client libraries raise; `kind` is its `type`."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return event({"error": error})
