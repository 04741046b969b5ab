"""From the events of a streamed chat to those of a streamed message: a state machine without I/O.

A chat's event has pieces of one kind after another; a message opens a block for each, and closes it
when the next one begins.
"""

from __future__ import annotations

from typing import Any

import orjson

from kodolly.api.messages.errors import error_body
from kodolly.api.messages.result import head, stop_reason, usage
from kodolly.api.sse import LAST, data_of

Json = dict[str, Any]

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
# The types of errors within a chat's stream -> Anthropic's.
ERROR_TYPES = {"invalid_request_error": "invalid_request_error", "requests": "rate_limit_error"}


class MessageEvents:
    """One message. `stop_sequences`: the client's, one of which may have ended the answer."""

    def __init__(self, stop_sequences: list[str]) -> None:
        self._stop_sequences = stop_sequences
        self._has_started = False
        self._count = 0  # blocks that were opened
        self._open: tuple[str, int] | None = None  # kind of the open block, a tool call's index
        self._tools: dict[int, int] = {}  # a tool call's index -> the index of its block
        self._reason: tuple[str, str | None] = ("end_turn", None)
        self._usage: Json | None = None

    def feed(self, events: bytes) -> bytes:
        """The message's events for whole events of the chat, the last of them `[DONE]`."""
        made = [part for data in data_of(events) for part in self._read(orjson.loads(data))]
        if events.endswith(LAST):
            made += self._finish()
        return b"".join(made)

    def _read(self, body: Json) -> list[bytes]:
        if (error := body.get("error")) is not None:
            kind = ERROR_TYPES.get(error.get("type"), "api_error")
            if error.get("code") in ("no_worker", "overloaded"):
                kind = "overloaded_error"
            return [_event(error_body(kind, str(error.get("message"))))]
        if "choices" not in body:  # such as a place in the queue
            return []
        self._usage = body.get("usage") or self._usage
        made = []
        if not self._has_started:
            self._has_started = True
            start = head(body) | {"usage": usage(self._usage)}
            made += [_event({"type": "message_start", "message": start}), PING]
        for choice in body["choices"]:
            made += self._delta(choice.get("delta") or {})
            if choice.get("finish_reason"):
                called = bool(self._tools)
                self._reason = stop_reason(choice, self._stop_sequences, called=called)
        return made

    def _delta(self, delta: Json) -> list[bytes]:
        made = []
        if thought := delta.get("reasoning") or delta.get("reasoning_content"):
            made += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            made.append(self._piece({"type": "thinking_delta", "thinking": thought}))
        if text := delta.get("content"):
            made += self._enter("text", {"type": "text", "text": ""})
            made.append(self._piece({"type": "text_delta", "text": text}))
        for call in delta.get("tool_calls") or ():
            made += self._call(call)
        return made

    def _call(self, call: Json) -> list[bytes]:
        index, function = call.get("index") or 0, call.get("function") or {}
        made = []
        if index not in self._tools:
            name = function.get("name") or ""
            block = {"type": "tool_use", "id": call.get("id") or f"toolu_{index}"}
            made += self._enter("tool_use", block | {"name": name, "input": {}}, index)
            self._tools[index] = self._count - 1
        if arguments := function.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": arguments}
            made.append(self._piece(delta, self._tools[index]))
        return made

    def _enter(self, kind: str, block: Json, tool: int = 0) -> list[bytes]:
        """Opens a block, unless that kind of block is open."""
        if self._open == (kind, tool):
            return []
        made = self._close()
        self._open = (kind, tool)
        start = {"type": "content_block_start", "index": self._count, "content_block": block}
        self._count += 1
        return [*made, _event(start)]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [_event({"type": "content_block_stop", "index": self._count - 1})]

    def _piece(self, delta: Json, index: int | None = None) -> bytes:
        at = self._count - 1 if index is None else index
        return _event({"type": "content_block_delta", "index": at, "delta": delta})

    def _finish(self) -> list[bytes]:
        reason, sequence = self._reason
        end = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            *self._close(),
            _event({"type": "message_delta", "delta": end, "usage": usage(self._usage)}),
            _event({"type": "message_stop"}),
        ]


def _event(body: Json) -> bytes:
    kind: str = body["type"]
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"
