"""Turns an event of the page (send, edit, retry, example) into the conversation to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kodolly.web.history import Message, up_to_last_question, user, without_notices

INPUT_LIMIT = 20_000  # characters of one message


@dataclass(frozen=True)
class Turn:
    """The conversation to answer; its last message is the question.

    `from_input`: the question is from the input box, which must be cleared.
    `too_long`: it was longer than INPUT_LIMIT, and is cut.
    """

    history: list[Message]
    from_input: bool
    too_long: bool = False


def read_turn(data: Any, text: Any, history: Sequence[Message]) -> Turn | None:
    """The conversation to answer after an event of the page; None if there is nothing to answer.

    `data`: Gradio's event data. For an edit {index, value, previous_value}, for an example
    {index, value: {text}}, for a retry or a notice's button {index, value}, otherwise no mapping
    with an index. `text`: the content of the input box.
    """
    if not isinstance(data, Mapping) or "index" not in data:
        return _question_turn(history, text, from_input=True)
    value = data.get("value")
    if "previous_value" in data:
        return _question_turn(history[: _first(data["index"])], value, from_input=False)
    if isinstance(value, Mapping) and not history:
        return _question_turn([], value.get("text"), from_input=False)
    messages = up_to_last_question(without_notices(history))
    return Turn(messages, from_input=False) if messages else None


def _question_turn(before: Sequence[Message], text: Any, *, from_input: bool) -> Turn | None:
    if not isinstance(text, str) or not text.strip():
        return None
    question = user(text.strip()[:INPUT_LIMIT])
    return Turn(
        [*without_notices(before), question], from_input, too_long=len(text.strip()) > INPUT_LIMIT
    )


def _first(index: Any) -> int:
    """The index of a message. Gradio sends it as a number, or as a pair that starts with it."""
    if isinstance(index, list | tuple) and index:
        index = index[0]
    return index if isinstance(index, int) and index >= 0 else 0
