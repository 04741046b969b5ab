"""What a client was sent of a stream: raw until it matters, then tokens and text by choice.

As long as all goes well, bytes are appended. They are parsed when a worker fails, or by the block
when an answer grows long, so that a token costs the same at any length and memory holds tokens,
not their JSON.
"""

from __future__ import annotations

import logging
from array import array
from dataclasses import dataclass, field
from typing import Any

import orjson

from kodolly.api.request import ApiRequest
from kodolly.api.resume.delta_fields import Fields, add_to, entries_of, fields_of
from kodolly.api.sse import data_of
from kodolly.log_safe import describe_error

log = logging.getLogger(__name__)

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
    # Tokens of half a character, removed from `ids` again. The next engine makes them once more,
    # and the client, which has them already, does not get them twice.
    repeats: int = 0
    parts: list[str] = field(default_factory=list)
    # What was sent beside plain text, such as thoughts and the arguments of tool calls.
    others: Fields = field(default_factory=dict)
    logprobs: int = 0  # entries that were sent
    role_sent: bool = False
    is_finished: bool = False
    is_plain_text: bool = True
    has_token_ids: bool = True  # of every event with text

    @property
    def text(self) -> str:
        """All text that was sent."""
        self.parts = ["".join(self.parts)]
        return self.parts[0]


class Journal:
    """The record of one stream.

    `is_readable`: the events so far were understood. Once one was not, nothing more is kept, and no
    other worker can continue the stream.
    """

    def __init__(self, request: ApiRequest) -> None:
        self.is_readable = True
        self._request_id = request.request_id
        self.choices = {index: Choice(index) for index in range(request.choices)}
        self.head: dict[str, Any] = {}  # id, object, created and model of every event
        self.usage_sent = False
        self.chat = request.chat
        self._raw: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> None:
        """Keeps whole events that were sent."""
        if not self.is_readable:
            return
        self._raw.append(events)
        self._size += len(events)
        if self._size > BLOCK:
            self.fold()

    def fold(self) -> None:
        """Turns the raw events kept so far into tokens and text, or gives up on all of them."""
        try:
            self._fold()
        except Exception as error:  # noqa: BLE001 - whatever an engine sends must not end the stream
            log.warning(
                "%s: an event cannot be read, so no other worker could go on: %s",
                self._request_id,
                describe_error(error),
            )
            self.give_up()

    def give_up(self) -> None:
        """An event cannot be read: what follows it is not kept."""
        self.is_readable = False
        self._raw.clear()

    def _fold(self) -> None:
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
                    choice.prompt = _checked(ids)
            for part in body["choices"]:
                self._fold_choice(part, texts)
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
        """The answers that are not complete; call `fold` first."""
        return [choice for choice in self.choices.values() if not choice.is_finished]

    def _fold_choice(self, part: dict[str, Any], texts: dict[int, list[str]]) -> None:
        choice = self.choices[part["index"]]
        choice.prompt = _checked(part.get("prompt_token_ids")) or choice.prompt
        delta = part.get("delta") or {}
        text = (delta.get("content") if self.chat else part.get("text")) or ""
        ids = part.get("token_ids")
        if ids:
            choice.ids.extend(ids)
        elif text:
            choice.has_token_ids = False
        if text:
            texts.setdefault(choice.index, []).append(text)
        if any(value for key, value in delta.items() if key not in PLAIN):
            choice.is_plain_text = False
            choice.has_token_ids = choice.has_token_ids and bool(ids)
            rest = {key: value for key, value in delta.items() if key not in PLAIN}
            for path, value in fields_of(rest):
                add_to(choice.others, path, value)
        if logprobs := part.get("logprobs"):
            choice.logprobs += entries_of(logprobs)
        choice.role_sent = True
        choice.is_finished = choice.is_finished or part.get("finish_reason") is not None


def _checked(ids: list[int] | None) -> list[int] | None:
    """Token ids as they are. Raises TypeError or OverflowError if they are something else."""
    if ids:
        array("q", ids)
    return ids
