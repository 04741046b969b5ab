"""What each event of a chat's stream adds to an answer, in the small form that is stored.

A delta is a plain text, or for anything else an object with some of these fields: `content`,
`logprobs`, `refusal`, `reasoning` (`reasoning_fields`: as the engine named it), `tools` (pieces of tool calls), `prompt` (its token ids), `finish` (the reason), and last of
all `end` (Unix time) with `usage`, `error` or `cancelled`. The typed events of a response follow from
its deltas alone (`events`), so every process makes the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from kodolly.api.sse import DATA, EVENT_END, LAST

Json = dict[str, Any]
Delta = str | Json
REASONING = ["reasoning", "reasoning_content"]  # how engines call it; some send both


@dataclass
class Batch:
    """What some whole events add: deltas, and the ids of their tokens."""

    deltas: list[Delta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    is_done: bool = False  # the stream's last event was among them


class DeltaReader:
    """Reads one chat stream. `usage`: the token counts, once they came."""

    def __init__(self) -> None:
        self.usage: Json | None = None
        self._has_ended = False

    def read(self, events: bytes) -> Batch:
        """The deltas of whole events in this API's own form. What follows the end is not read."""
        batch = Batch()
        for data in events.split(EVENT_END):
            if self._has_ended or not data.startswith(DATA):
                continue
            if data == LAST[: -len(EVENT_END)]:
                self._has_ended = batch.is_done = True
                continue
            body = orjson.loads(data[len(DATA) :])
            if "error" in body and not body.get("choices"):
                self._has_ended = batch.is_done = True
                batch.deltas.append({"error": _error(body["error"])})
                continue
            self._add(batch, body)
        return batch

    def _add(self, batch: Batch, body: Json) -> None:
        if body.get("usage"):
            self.usage = body["usage"]
        if body.get("prompt_token_ids"):
            batch.deltas.append({"prompt": body["prompt_token_ids"]})
        for choice in body.get("choices") or ():
            ids = choice.get("token_ids")
            if ids:
                batch.token_ids.extend(ids)
            delta = delta_of(choice)
            if delta or ids:
                batch.deltas.append(delta)


def delta_of(choice: Json) -> Delta:
    """What one choice of a chunk adds; "" for nothing."""
    part = choice.get("delta") or {}
    content, reason = part.get("content"), choice.get("finish_reason")
    logprobs = choice.get("logprobs")
    if reason is None and not logprobs and len(part) == 1 and content is not None:
        return str(content)
    named = [name for name in REASONING if part.get(name)]
    delta: Json = {
        "content": content,
        "logprobs": (logprobs or {}).get("content"),
        "refusal": part.get("refusal"),
        "reasoning": part[named[0]] if named else None,
        "reasoning_fields": named if named and named != REASONING[:1] else None,
        "tools": [_tool_piece(piece) for piece in part.get("tool_calls") or ()],
        "finish": reason,
    }
    delta = {name: value for name, value in delta.items() if value}
    return delta["content"] if set(delta) == {"content"} else delta or ""


def _tool_piece(piece: Json) -> Json:
    function = piece.get("function") or {}
    fields = {
        "index": piece.get("index", 0),
        "id": piece.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _error(error: Any) -> Json:
    if not isinstance(error, dict):
        return {"code": "server_error", "message": str(error)}
    code = error.get("code") or error.get("type") or "server_error"
    return {"code": str(code), "message": str(error.get("message", ""))}


def chat_event(deltas: Iterable[Delta], token_ids: Iterable[int], head: Json) -> Json:
    """One chat event with all that stored `deltas` add: what a stream needs to go on from them.

    `head`: id, object, created and model of the event.
    """
    texts: dict[str, list[str]] = {}
    tools: list[Json] = []
    logprobs: list[Json] = []
    reason = prompt = None
    for delta in deltas:
        if isinstance(delta, str):
            texts.setdefault("content", []).append(delta)
            continue
        for name in ("content", "refusal"):
            if delta.get(name):
                texts.setdefault(name, []).append(delta[name])
        if delta.get("reasoning"):
            for name in delta.get("reasoning_fields", REASONING[:1]):
                texts.setdefault(name, []).append(delta["reasoning"])
        tools += [_chat_tool(piece) for piece in delta.get("tools", ())]
        logprobs += delta.get("logprobs", ())
        prompt = delta.get("prompt") or prompt
        reason = delta.get("finish") or reason
    part: Json = {name: "".join(pieces) for name, pieces in texts.items()}
    if tools:
        part["tool_calls"] = tools
    choice = {
        "index": 0,
        "delta": part,
        "logprobs": {"content": logprobs} if logprobs else None,
        "finish_reason": reason,
        "token_ids": list(token_ids),
    }
    return {**head, "prompt_token_ids": prompt, "choices": [choice]}


def _chat_tool(piece: Json) -> Json:
    """A piece of a tool call as engines write it."""
    function = {name: piece[name] for name in ("name", "arguments") if name in piece}
    first = {"id": piece["id"], "type": "function"} if "id" in piece else {}
    return {"index": piece["index"], **first, "function": function}
