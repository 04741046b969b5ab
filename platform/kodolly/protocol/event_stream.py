"""Server-sent events as engines send them: any line end, comments, other fields, cut anywhere.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

LINE_END = re.compile(rb"\r\n|\n|\r")
BOM = b"\xef\xbb\xbf"
MAX_EVENT = 16 * 2**20  # bytes
# With one of these an engine says that it gave an answer up.
BROKEN_OFF = ("abort", "error", "cancelled")
# Where there is no `choices` beside them, they tell of a failure (FastAPI, llama.cpp, FastChat).
FAILURE_FIELDS = ("detail", "message", "error_code")


class EventTooLarge(ValueError):
    """An event has more than MAX_EVENT bytes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `is_error`: its `event:` field says "error", or it is a field called `error`."""

    data: bytes
    is_error: bool = False

    @property
    def is_done(self) -> bool:
        """Whether it is OpenAI's mark of a stream's end."""
        return self.data.strip() == b"[DONE]"

    def body(self) -> dict[str, Any] | None:
        """The JSON object in its data; None if there is none."""
        try:
            body = orjson.loads(self.data)
        except ValueError:
            return None
        return body if isinstance(body, dict) else None


class EventParser:
    """Finds the events in a stream of bytes, whose chunks may end anywhere.

    Comments are skipped, and fields other than `data`, `event` and `error`. `between_events`: no
    field of the next event has been read; `is_idle`: nor has the beginning of a line.
    """

    def __init__(self) -> None:
        self.between_events = self.is_idle = True
        self._line: list[bytes] = []  # the parts of a line whose end has not come yet
        self._size = 0  # bytes of this event
        self._data: list[bytes] = []
        self._is_error = False
        self._after_cr = False
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes. Raises EventTooLarge."""
        if self.is_idle and (plain := _plain_events(chunk)) is not None and not self._after_cr:
            self._is_first_line = False
            return plain
        if self._after_cr:  # the chunk before may have ended inside a CRLF
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        first, *others = LINE_END.split(chunk)
        events = []
        for line in others:  # each one's beginning is the end of the line before it
            if (event := self._end_line(first)) is not None:
                events.append(event)
            first = line
        if first:
            self._add_to_line(first)
        self.is_idle = self.between_events and not first
        return events

    def take_partial_line(self) -> bytes:
        """The beginning of a line whose end has not come yet, taken out of the parser."""
        line = b"".join(self._line)
        self._line.clear()
        self._size -= len(line)
        self.is_idle = self.between_events
        return line

    def finish(self) -> list[Event]:
        """The last event, which the end of the body closes where its blank line is missing."""
        events = [self._end_line(b"") if self._line else None, self._end_event()]
        return [event for event in events if event is not None]

    def _add_to_line(self, part: bytes) -> None:
        self._line.append(part)
        self._count(part)

    def _count(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_EVENT:
            raise EventTooLarge("an event beyond all bounds")

    def _end_line(self, part: bytes) -> Event | None:
        """Reads the line that ends with `part`. Returns the event that a blank line completes."""
        if self._line:
            self._add_to_line(part)
            line = b"".join(self._line)
            self._line.clear()
        else:
            line = part
            self._count(part)
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(BOM)
        if not line:
            return self._end_event()
        self._read_field(line)
        return None

    def _read_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._is_error = value.strip() == b"error"
        elif name in (b"data", b"error"):  # llama.cpp writes its failures as `error: {...}`
            self._is_error = self._is_error or name == b"error"
            self._data.append(value)
        else:
            return
        self.between_events = False

    def _end_event(self) -> Event | None:
        data, is_error = b"\n".join(self._data), self._is_error
        self._data.clear()
        self._size, self._is_error, self.between_events = 0, False, True
        return Event(data, is_error) if data or is_error else None


def _plain_events(chunk: bytes) -> list[Event] | None:
    """The events of a chunk that holds whole ones, each of one `data: ` line; None of any other."""
    if not chunk.endswith(b"\n\n") or b"\r" in chunk or len(chunk) > MAX_EVENT:
        return None
    lines = chunk[:-2].split(b"\n\n")
    if any(not line.startswith(b"data: ") or b"\n" in line for line in lines):
        return None
    return [Event(line[6:]) for line in lines if len(line) > 6]


class FinishedChoices:
    """Which of a stream's answers have told a finish reason."""

    def __init__(self, expected: int) -> None:
        """`expected`: how many answers the request asked for."""
        self._expected = expected
        self._finished: set[object] = set()  # by index

    def note(self, body: dict[str, Any]) -> None:
        """Notes the finish reasons in one event."""
        for choice in choices_of(body):
            if choice.get("finish_reason"):
                self._finished.add(str(choice.get("index")))

    @property
    def are_all(self) -> bool:
        """Whether every answer has ended, so that the stream may end without `[DONE]`."""
        return len(self._finished) >= self._expected


def choices_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an event or of a whole answer, as far as they are objects."""
    choices = body.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def is_failure(body: dict[str, Any]) -> bool:
    """Whether an engine says by this body that it failed, in any of the forms that engines have."""
    if body.get("object") == "error":
        return True
    error, has_choices = body.get("error"), bool(body.get("choices"))
    if error or has_choices:
        return bool(error)
    return error is not None or any(body.get(name) for name in FAILURE_FIELDS)


def is_aborted(body: dict[str, Any]) -> bool:
    """Whether an answer was broken off: vLLM says "abort" when it is stopped."""
    return any(choice.get("finish_reason") in BROKEN_OFF for choice in choices_of(body))
