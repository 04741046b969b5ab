"""Reads calls of tools from the text of an answer, piece by piece."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from kodolly.engines.transformers.tools.choice import BEGIN, END
from kodolly.stop_strings import overlap

Json = dict[str, Any]

# The beginning of a call whose arguments can be passed on as they come: its name stands first.
HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class CallParser:
    """Divides the text of one answer into content and calls.

    `push` and `flush` return deltas of a chat message: `content`, or `tool_calls` with an id and a name
    first and pieces of the arguments after them. What stands between the tags and is no call is content,
    so nothing that the model wrote is lost but white space between calls.
    """

    def __init__(self, *, parallel: bool = True) -> None:
        """`parallel`: whether there may be several calls; else what follows the first is left out."""
        self.calls = 0
        self._parallel = parallel
        self._text = ""  # not read yet
        self._read: Callable[[list[Json]], bool] = self._read_content
        self._braces: _Braces | None = None

    def push(self, text: str) -> list[Json]:
        """Adds a piece of text; returns what it adds to the message."""
        self._text += text
        deltas: list[Json] = []
        while self._read(deltas):
            pass
        return deltas

    def flush(self) -> list[Json]:
        """The text has ended: the rest of it."""
        deltas: list[Json] = []
        if self._read == self._read_content:
            self._add_content(deltas, self._text)
        elif self._read == self._read_head:
            self._add_call_or_content(deltas, self._text, "")
        self._text = ""
        return deltas

    def _read_content(self, deltas: list[Json]) -> bool:
        before, tag, after = self._text.partition(BEGIN)
        if tag:
            self._add_content(deltas, before)
            self._text, self._read = after, self._read_head
            return True
        end = len(self._text) - overlap(self._text, BEGIN)
        self._add_content(deltas, self._text[:end])
        self._text = self._text[end:]
        return False

    def _read_head(self, deltas: list[Json]) -> bool:
        if (head := HEAD.match(self._text)) and (name := _string(head[1])):
            self._add_call(deltas, name, "")
            self._text, self._braces = self._text[head.end() :], _Braces()
            self._read = self._read_arguments
            return True
        body, tag, after = self._text.partition(END)
        if not tag:
            return False
        self._add_call_or_content(deltas, body, tag)
        self._after_call(after)
        return True

    def _read_arguments(self, deltas: list[Json]) -> bool:
        assert self._braces is not None
        end = self._braces.end_in(self._text)
        piece = self._text if end is None else self._text[:end]
        if piece:
            function = {"arguments": piece}
            deltas.append({"tool_calls": [{"index": self.calls - 1, "function": function}]})
        self._text = self._text[len(piece) :]
        if end is None:
            return False
        self._read = self._read_tail
        return True

    def _read_tail(self, _: list[Json]) -> bool:
        _before, tag, after = self._text.partition(END)
        if not tag:
            return False
        self._after_call(after)
        return True

    def _read_nothing(self, _: list[Json]) -> bool:
        self._text = ""
        return False

    def _after_call(self, text: str) -> None:
        self._text = text
        is_last = self.calls > 0 and not self._parallel
        self._read = self._read_nothing if is_last else self._read_content

    def _add_content(self, deltas: list[Json], text: str) -> None:
        if text and not (self.calls and text.isspace()):
            deltas.append({"content": text})

    def _add_call(self, deltas: list[Json], name: str, arguments: str) -> None:
        call = {
            "index": self.calls,
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        deltas.append({"tool_calls": [call]})
        self.calls += 1

    def _add_call_or_content(self, deltas: list[Json], body: str, tag: str) -> None:
        """A call whose parts come in another order, or text between tags that is none."""
        try:
            call = json.loads(body)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = arguments = None
        if isinstance(name, str) and isinstance(arguments, dict):
            self._add_call(deltas, name, json.dumps(arguments, ensure_ascii=False))
        else:
            self._add_content(deltas, BEGIN + body + tag)


class _Braces:
    """Finds the end of a JSON object in its pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end_in(self, piece: str) -> int | None:
        """The length of the part of `piece` that ends the object; None if it goes on."""
        for index, character in enumerate(piece):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character == "{":
                self._depth += 1
            elif character == "}":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None


def _string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def joined(deltas: list[Json]) -> Json:
    """Deltas as one message: its content, None if there is none, and its calls if there are any."""
    content = "".join(delta["content"] for delta in deltas if "content" in delta)
    calls: list[Json] = []
    for part in (part for delta in deltas for part in delta.get("tool_calls", ())):
        if "id" in part:
            call = {name: value for name, value in part.items() if name != "index"}
            calls.append(call | {"function": dict(part["function"])})
        else:
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    message: Json = {"content": content if content or not calls else None}
    return message | ({"tool_calls": calls} if calls else {})


def merged(deltas: list[Json]) -> Json:
    """Deltas of one step as one delta."""
    content = "".join(delta["content"] for delta in deltas if "content" in delta)
    calls = [part for delta in deltas for part in delta.get("tool_calls", ())]
    return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})
