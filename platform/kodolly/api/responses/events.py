"""From deltas to the typed events of a response: a state machine without clock, network or store.

The same deltas make the same events with the same sequence numbers and ids, on every process and
after every restart. So only deltas are stored, and the events around them are made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from kodolly.api.responses.deltas import Delta
from kodolly.api.responses.ids import item_id
from kodolly.api.responses.result import INCOMPLETE, outcome

Json = dict[str, Any]
# Pieces of these fields may be joined, those of one event after the other of the same kind and place.
JOINED = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.function_call_arguments.delta",
    }
)
PLACE = ("type", "item_id", "content_index")
# Status at the end -> the last event's type. OpenAI has no event for a cancelled response.
LAST_EVENT = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}
# Kind of a content part -> the field that holds its text, and how its events are called.
PARTS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}


class _Item:
    """An output item that grows. `pieces`: of its current content part, or of its arguments."""

    def __init__(self, index: int, body: Json) -> None:
        self.index = index
        self.body = body
        self.pieces: list[str] = []
        self.logprobs: list[Json] = []
        self.part: str | None = None  # kind of the content part that is open
        self.is_open = True


class EventMachine:
    """The events of one response. `sequence_number`: of the next event.

    `base`: the response object as it is at the start. `status`: in_progress until the end.
    """

    def __init__(self, base: Json) -> None:
        self.sequence_number = 0
        self.status = "in_progress"
        self._base = base
        self._items: list[_Item] = []
        self._current: _Item | None = None  # the message or reasoning that is open
        self._text: _Item | None = None  # the same, if its open part is plain text
        self._calls: dict[int, _Item] = {}  # calls by the engine's own number
        self._finish: str | None = None

    def begin(self) -> list[Json]:
        """The events before any delta."""
        types = ["response.created", "response.in_progress"]
        if self._base["background"]:
            types.insert(1, "response.queued")
        events = []
        for each in types:
            status = "queued" if self._base["background"] and each != types[-1] else "in_progress"
            events.append(self._event(each, response=self._base | {"status": status}))
        return events

    def feed(self, delta: Delta) -> list[Json]:
        """The events that a delta adds. Nothing follows the end."""
        if self.status != "in_progress":
            return []
        if isinstance(delta, str):
            if self._text is not None and delta:
                return [self._text_delta(self._text, delta, [])]
            return self._grow("message", "output_text", delta, []) if delta else []
        events: list[Json] = []
        if delta.get("reasoning"):
            events += self._grow("reasoning", "reasoning_text", delta["reasoning"], [])
        if delta.get("content"):
            logprobs = _logprobs(delta.get("logprobs") or [])
            events += self._grow("message", "output_text", delta["content"], logprobs)
        if delta.get("refusal"):
            events += self._grow("message", "refusal", delta["refusal"], [])
        for piece in delta.get("tools", ()):
            events += self._call_piece(piece)
        if delta.get("finish"):
            self._finish = delta["finish"]
        if "end" in delta:
            events += self._end(delta)
        return events

    def mark_unstored(self) -> None:
        """From now on the response says that it is not stored."""
        self._base = self._base | {"store": False}

    def response(self) -> Json:
        """The response object as of now. `last_sequence_number`: of the last event that it includes."""
        last = {"last_sequence_number": self.sequence_number - 1}
        if self.status != "in_progress":
            return self._base | last
        return self._base | {"output": [_grown(item) for item in self._items]} | last

    def _event(self, kind: str, **fields: Any) -> Json:
        number = self.sequence_number
        self.sequence_number = number + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _text_delta(self, item: _Item, text: str, logprobs: list[Json]) -> Json:
        item.pieces.append(text)
        number = self.sequence_number
        self.sequence_number = number + 1
        return {
            "type": "response.output_text.delta",
            "sequence_number": number,
            "item_id": item.body["id"],
            "output_index": item.index,
            "content_index": len(item.body["content"]),
            "delta": text,
            "logprobs": logprobs,
        }

    def _grow(self, kind: str, part: str, text: str, logprobs: list[Json]) -> list[Json]:
        """Adds a text to the open content part of that kind, which is opened if need be."""
        events: list[Json] = []
        item = self._current
        if item is None or item.body["type"] != kind:
            events += self._close_current("completed") + self._close_whole_calls()
            item = self._add(
                kind, {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            )
            item.body["content"] = []
            self._current = item
            events.append(
                self._event(
                    "response.output_item.added",
                    output_index=item.index,
                    item=dict(item.body, content=[]),
                )
            )
        if item.part != part:
            events += self._close_part(item)
            item.part = part
            where = {
                "item_id": item.body["id"],
                "output_index": item.index,
                "content_index": len(item.body["content"]),
            }
            events.append(
                self._event("response.content_part.added", **where, part=_part(part, "", []))
            )
        self._text = item if part == "output_text" else None
        if part == "output_text":
            item.logprobs += logprobs
            events.append(self._text_delta(item, text, [_without_bytes(each) for each in logprobs]))
            return events
        item.pieces.append(text)
        where = {
            "item_id": item.body["id"],
            "output_index": item.index,
            "content_index": len(item.body["content"]),
        }
        events.append(self._event(f"{PARTS[part][1]}.delta", **where, delta=text))
        return events

    def _add(self, kind: str, fields: Json) -> _Item:
        index = len(self._items)
        body = {"id": item_id(self._base["id"], kind, index), "type": kind, "status": "in_progress"}
        item = _Item(index, body | fields)
        self._items.append(item)
        return item

    def _call_piece(self, piece: Json) -> list[Json]:
        """A piece of a function call. A new call closes those whose arguments are whole."""
        events: list[Json] = []
        item = self._calls.get(piece["index"])
        if item is None:
            events += self._close_current("completed")
            events += self._close_whole_calls()
            item = self._add("function_call", {"call_id": "", "name": "", "arguments": ""})
            item.body["call_id"] = piece.get("id") or f"call_{item.body['id'].partition('_')[2]}"
            item.body["name"] = piece.get("name", "")
            self._calls[piece["index"]] = item
            events.append(
                self._event(
                    "response.output_item.added", output_index=item.index, item=dict(item.body)
                )
            )
        elif piece.get("name") and not item.body["name"]:
            item.body["name"] = piece["name"]
        if (text := piece.get("arguments")) and item.is_open:
            item.pieces.append(text)
            where = {"item_id": item.body["id"], "output_index": item.index}
            events.append(
                self._event("response.function_call_arguments.delta", **where, delta=text)
            )
        return events

    def _close_part(self, item: _Item) -> list[Json]:
        if item.part is None:
            return []
        field, name = PARTS[item.part]
        text = "".join(item.pieces)
        where = {
            "item_id": item.body["id"],
            "output_index": item.index,
            "content_index": len(item.body["content"]),
        }
        part = _part(item.part, text, item.logprobs)
        more = {}
        if item.part == "output_text":
            more["logprobs"] = [_without_bytes(each) for each in item.logprobs]
        item.body["content"].append(part)
        item.part, item.pieces, item.logprobs = None, [], []
        return [
            self._event(f"{name}.done", **where, **{field: text}, **more),
            self._event("response.content_part.done", **where, part=part),
        ]

    def _close_current(self, status: str) -> list[Json]:
        item, self._current, self._text = self._current, None, None
        if item is None:
            return []
        events = self._close_part(item)
        return [*events, self._item_done(item, status)]

    def _close_whole_calls(self) -> list[Json]:
        """Closes the calls to which nothing can be added: their arguments are a JSON object."""
        events: list[Json] = []
        for item in self._calls.values():
            if item.is_open and _is_object("".join(item.pieces)):
                events += self._close_call(item, "completed")
        return events

    def _close_call(self, item: _Item, status: str) -> list[Json]:
        item.body["arguments"] = "".join(item.pieces)
        where = {"item_id": item.body["id"], "output_index": item.index}
        done = self._event(
            "response.function_call_arguments.done",
            **where,
            name=item.body["name"],
            arguments=item.body["arguments"],
        )
        return [done, self._item_done(item, status)]

    def _item_done(self, item: _Item, status: str) -> Json:
        item.is_open = False
        item.body["status"] = status
        return self._event("response.output_item.done", output_index=item.index, item=item.body)

    def _close_all(self, status: str) -> list[Json]:
        events = self._close_current(status)
        for item in self._calls.values():
            if item.is_open:
                events += self._close_call(item, status)
        return events

    def _end(self, end: Json) -> list[Json]:
        status, fields = outcome(end, self._finish)
        events = []
        if status == "completed" and not self._items:  # an answer without a token is a message too
            events += self._grow("message", "output_text", "", [])
        is_cut = status != "completed" or self._finish in INCOMPLETE
        events += self._close_all("incomplete" if is_cut else "completed")
        self.status = status
        output = [item.body for item in self._items]
        self._base = self._base | {"status": status, "output": output} | fields
        return [*events, self._event(LAST_EVENT[status], response=self._base)]


def replay(machine: EventMachine, deltas: Iterable[Delta], after: int) -> list[Json]:
    """The events that stored deltas add, without those up to number `after`, as few as can be.

    Neighbouring deltas of one text become one event, which has the last one's sequence number.
    """
    joined: list[Json] = []
    pieces: list[str] = []
    for delta in deltas:
        for event in machine.feed(delta):
            if event["sequence_number"] <= after:
                continue
            last = joined[-1] if joined else None
            if last is None or event["type"] not in JOINED or not _same_place(last, event):
                if last is not None and pieces:
                    last["delta"] = "".join(pieces)
                joined.append(event)
                pieces = [event["delta"]] if event["type"] in JOINED else []
                continue
            pieces.append(event["delta"])
            last["sequence_number"] = event["sequence_number"]
            if event.get("logprobs"):
                last["logprobs"] = last["logprobs"] + event["logprobs"]
    if pieces:
        joined[-1]["delta"] = "".join(pieces)
    return joined


def encode(events: Iterable[Json]) -> bytes:
    """Server-sent events, each named by its type."""
    return b"".join(
        b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
        for event in events
    )


def _same_place(one: Json, other: Json) -> bool:
    return all(one.get(name) == other.get(name) for name in PLACE)


def _part(kind: str, text: str, logprobs: list[Json]) -> Json:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": kind, PARTS[kind][0]: text}


def _grown(item: _Item) -> Json:
    """An item as far as it has come."""
    if not item.is_open:
        return item.body
    if item.body["type"] == "function_call":
        return item.body | {"arguments": "".join(item.pieces)}
    content = list(item.body["content"])
    if item.part is not None:
        content.append(_part(item.part, "".join(item.pieces), item.logprobs))
    return item.body | {"content": content}


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def _logprobs(entries: list[Json]) -> list[Json]:
    names = ("token", "bytes", "logprob")
    return [
        {name: entry.get(name) for name in names}
        | {
            "top_logprobs": [
                {n: top.get(n) for n in names} for top in entry.get("top_logprobs") or ()
            ]
        }
        for entry in entries
    ]


def _without_bytes(entry: Json) -> Json:
    """A log probability as events have it."""
    names = ("token", "logprob")
    top = [{name: each[name] for name in names} for each in entry["top_logprobs"]]
    return {name: entry[name] for name in names} | {"top_logprobs": top}
