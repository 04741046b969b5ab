"""From an engine's bytes to a client's: unparsed where every event has vLLM's form, else parsed.

The first event's form chooses. Later ones that look otherwise, that end an answer or may tell of a
failure are parsed one by one, so a stream that mixes forms comes out right as well.
"""

from __future__ import annotations

import re
import time
from typing import Any

from kodolly.api.errors import WorkerFailed, error_of_event
from kodolly.api.resume.journal import Journal
from kodolly.api.sse import EVENT_END, LAST, event, event_of_data, without_token_ids
from kodolly.errors import ApiError
from kodolly.protocol.event_stream import (
    Event,
    EventParser,
    FinishedChoices,
    choices_of,
    is_aborted,
    is_failure,
)

# How an event of vLLM's begins. All events of a stream begin alike.
FAST_HEAD = re.compile(
    rb'data: \{"id":"[^"\\\r\n]*","object":"(?:chat\.completion\.chunk|text_completion)",'
    rb'"created":\d+,"model":"(?:[^"\\\r\n]|\\[^\r\n])*","choices":\[',
)
ONLY_CHOICE = b'{"index":0,'
# Inside a JSON string these quotes would be escaped.
FINISH_REASON = b'"finish_reason"'
UNFINISHED, FINISHED = FINISH_REASON + b":null", FINISH_REASON + b':"'
UNFINISHED_LENGTH = len(UNFINISHED)
ERROR = b'"error"'
PROMPT_IDS = b'"prompt_token_ids":['
NO_HEAD = b"\0"


class EngineEvents:
    """One engine's events. `is_over`: the stream has ended, `failure` says why if it should not have."""

    def __init__(self, expected: int, journal: Journal | None, *, hide_ids: bool) -> None:
        """`expected`: how many answers there are. `journal`: keeps what is passed on.

        `hide_ids`: token ids, which the client did not ask for, are taken out.
        """
        self.is_over = False
        self.failure: WorkerFailed | ApiError | None = None
        self.count = 0  # events that were passed on
        self.usage: dict[str, Any] | None = None  # what the engine says of its tokens
        self.prompt_tokens: int | None = None
        self.first_time: float | None = None  # of the first event, by `time.perf_counter`
        self._journal = journal
        self._hide_ids = hide_ids
        self._expected = expected
        self._parser = EventParser()
        self._finished = FinishedChoices(expected)
        self._has_begun = False
        # How every event of vLLM's form begins in this stream, and how the next one follows.
        self._head = self._next_head = NO_HEAD

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets of the engine's next bytes. Raises EventTooLarge."""
        if (
            chunk.endswith(EVENT_END)
            and self._parser.is_idle
            and (number := self._number_of_plain(chunk))
        ):
            return self._pass_on(chunk, number)
        if not self._has_begun:
            self._choose_form(chunk)
        if self._parser.between_events:
            chunk = self._parser.take_partial_line() + chunk
            end = _end_of_unfinished(chunk)
            if end and (number := self._number_of_plain(chunk[:end])):
                passed = self._pass_on(chunk[:end], number)
                return passed + self._read(self._parser.feed(chunk[end:]))
        return self._read(self._parser.feed(chunk))

    def finish(self) -> bytes:
        """The same at the end of the engine's body, which closes the last event."""
        events = [each for each in self._parser.finish() if _is_readable(each)]
        ready = self._read(events)
        if self.is_over:
            return ready
        self.is_over = True
        if self._finished.are_all:
            return ready + LAST
        self.failure = WorkerFailed("ended its answer too early")
        return ready

    def _choose_form(self, chunk: bytes) -> None:
        self.first_time = time.perf_counter()
        self._count_prompt(chunk)
        if head := FAST_HEAD.match(chunk):
            self._head = head[0] + (ONLY_CHOICE if self._expected == 1 else b"")
            self._next_head = EVENT_END + self._head

    def _count_prompt(self, chunk: bytes) -> None:
        """Counts the token ids of the prompt, where the first event holds them."""
        begin = chunk.find(PROMPT_IDS)
        if begin >= 0 and (end := chunk.find(b"]", begin)) > begin + len(PROMPT_IDS):
            self.prompt_tokens = chunk.count(b",", begin + len(PROMPT_IDS), end) + 1

    def _number_of_plain(self, events: bytes) -> int:
        """How many whole events these are, if all have vLLM's form, and none ends an answer or may tell of a failure; else 0.

        Most do: this is asked for every chunk. Nearly every chunk is one event, which is looked
        through once; several are counted through together.
        """
        if not events.startswith(self._head):
            return 0
        begin = len(self._head)
        if events.find(b"\n", begin) == len(events) - len(EVENT_END):
            rest = events.find(UNFINISHED, begin) + UNFINISHED_LENGTH
            # What may tell of a failure stands behind the choice.
            is_whole = rest > begin and events.find(FINISH_REASON, rest) < 0
            return is_whole and events.find(ERROR, rest) < 0
        number = events.count(EVENT_END)
        are_plain = (
            events.count(UNFINISHED) == number
            and events.count(FINISH_REASON) == number
            and events.count(self._next_head) == number - 1
            and events.count(b"\n") == 2 * number
            and ERROR not in events
        )
        return number if are_plain else 0

    def _pass_on(self, events: bytes, number: int) -> bytes:
        """Keeps `number` whole events, and returns what the client gets of them."""
        self._has_begun = True
        self.count += number
        if self._journal is not None:
            self._journal.add(events)
        return without_token_ids(events) if self._hide_ids else events

    def _read(self, events: list[Event]) -> bytes:
        """What the client gets of parsed events, up to the end or a failure."""
        ready = []
        for each in events:
            if each.is_done:
                self.is_over = True
                ready.append(LAST)
                break
            body = each.body()
            if (failure := _failure_in(each, body)) is not None:
                self.is_over, self.failure = True, failure
                break
            if body is None:
                ready.append(self._pass_on_unread(each))
            else:
                self._finished.note(body)
                ready.append(self._pass_on_parsed(each, body))
        return b"".join(ready)

    def _pass_on_unread(self, unread: Event) -> bytes:
        """What is no JSON object may mean something to the client, but nobody can go on from it."""
        self._has_begun = True
        if self._journal is not None:
            self._journal.give_up()
        data = unread.data
        return event_of_data(without_token_ids(data) if self._hide_ids else data)

    def _pass_on_parsed(self, parsed: Event, body: dict[str, Any]) -> bytes:
        self._has_begun = True
        if body.get("choices"):
            self.count += 1
        if usage := body.get("usage"):
            self.usage = usage
        changed = self._set_only_index(body) or b"\n" in parsed.data
        events = event(body) if changed else event_of_data(parsed.data)
        if self._journal is not None:
            self._journal.add(events)
        return without_token_ids(events) if self._hide_ids else events

    def _set_only_index(self, body: dict[str, Any]) -> bool:
        """Gives the only choice the index 0, where an engine (TGI) counts tokens. True if it did."""
        choices = choices_of(body)
        if self._expected != 1 or len(choices) != 1 or choices[0].get("index") == 0:
            return False
        choices[0]["index"] = 0
        return True


def _end_of_unfinished(chunk: bytes) -> int:
    """Where the whole events end, or those before the first that ends an answer; 0: there are none."""
    finished = chunk.find(FINISHED)
    end = chunk.rfind(EVENT_END, 0, finished if finished >= 0 else len(chunk))
    return end + len(EVENT_END) if end >= 0 else 0


def _is_readable(last: Event) -> bool:
    """Whether an event that the body's end closed is a whole one."""
    return last.is_done or last.is_error or last.body() is not None


def _failure_in(failed: Event, body: dict[str, Any] | None) -> WorkerFailed | ApiError | None:
    """What an event means that tells of the engine's failure; None if it does not."""
    if failed.is_error or (body is not None and is_failure(body)):
        return error_of_event(failed.data)
    if body is not None and is_aborted(body):
        return WorkerFailed("aborted its answer")
    return None
