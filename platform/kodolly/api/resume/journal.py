"""What a client was sent of a stream: raw until it matters, then tokens and text by choice.

The happy path appends bytes. They are parsed when a worker fails, or by the block when an answer
grows long, so that a token costs the same at any length and memory holds tokens, not their JSON.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import orjson

from kodolly.api.request import Call
from kodolly.api.sse import data_of

# Bytes of raw events that are kept before they are folded into tokens and text.
BLOCK = 64 * 1024
# What a delta may hold that text can continue; a tool call or a thought needs its parser's state.
PLAIN = frozenset({"role", "content", "refusal"})


@dataclass
class Choice:
    """One answer as far as the client has it."""

    index: int
    prompt: list[int] | None = None  # token ids
    ids: array[int] = field(default_factory=lambda: array("q"))  # tokens of the answer
    again: int = 0  # tokens of half a character, taken off `ids`: the client gets no second time
    parts: list[str] = field(default_factory=list)
    opened: bool = False  # its role was told
    finished: bool = False
    plain: bool = True
    told: bool = True  # every event with text told its tokens

    @property
    def text(self) -> str:
        """All text that was sent."""
        self.parts = ["".join(self.parts)]
        return self.parts[0]


class Journal:
    """The record of one stream."""

    def __init__(self, call: Call) -> None:
        self.choices = {index: Choice(index) for index in range(call.choices)}
        self.head: dict[str, Any] = {}  # id, object, created and model of every event
        self.usage_sent = False
        self.chat = call.chat
        self._raw: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> None:
        """Notes whole events that were sent."""
        self._raw.append(events)
        self._size += len(events)
        if self._size > BLOCK:
            self.fold()

    def fold(self) -> None:
        """Turns the raw events kept so far into tokens and text."""
        texts: dict[int, list[str]] = {}
        for data in data_of(b"".join(self._raw)):
            body = orjson.loads(data)
            if not self.head:
                self.head = {k: body.get(k) for k in ("id", "object", "created", "model")}
            if not body.get("choices"):
                self.usage_sent = self.usage_sent or bool(body.get("usage"))
                continue
            if ids := body.get("prompt_token_ids"):  # a chat has one prompt
                for choice in self.choices.values():
                    choice.prompt = ids
            for told in body["choices"]:
                self._fold_choice(told, texts)
        for index, pieces in texts.items():
            self.choices[index].parts.append("".join(pieces))
        self._raw.clear()
        self._size = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was sent."""
        return not self._raw and not self.head

    @property
    def unfinished(self) -> list[Choice]:
        """The answers still owed; call `fold` first."""
        return [choice for choice in self.choices.values() if not choice.finished]

    def _fold_choice(self, told: dict[str, Any], texts: dict[int, list[str]]) -> None:
        choice = self.choices[told["index"]]
        choice.prompt = told.get("prompt_token_ids") or choice.prompt
        delta = told.get("delta") or {}
        text = (delta.get("content") if self.chat else told.get("text")) or ""
        ids = told.get("token_ids")
        if ids:
            choice.ids.extend(ids)
        elif text:
            choice.told = False
        if text:
            texts.setdefault(choice.index, []).append(text)
        if any(value for key, value in delta.items() if key not in PLAIN):
            choice.plain = False
        choice.opened = True
        choice.finished = choice.finished or told.get("finish_reason") is not None
