"""What a person just did (sent, edited, asked again) as the conversation to be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kodolly.web.history import Message, spoken, up_to_last_question, user

INPUT_LIMIT = 20_000  # characters of one message


@dataclass(frozen=True)
class Turn:
    """The conversation that ends on the question to answer.

    `typed`: the question came out of the input box, which is to be emptied.
    `cut`: it was longer than INPUT_LIMIT.
    """

    history: list[Message]
    typed: bool
    cut: bool = False


def read_turn(data: Any, text: Any, history: Sequence[Message]) -> Turn | None:
    """The turn an event of the page asks for; None when there is nothing to answer.

    `data` is Gradio's event data: of an edit {index, value, previous_value}, of an example
    {index, value: {text}}, of a retry or a notice's button {index, value}, of a sent message
    nothing. `text` is the input box.
    """
    if not isinstance(data, Mapping) or "index" not in data:
        return _asked(history, text, typed=True)
    value = data.get("value")
    if "previous_value" in data:
        return _asked(history[: _first(data["index"])], value, typed=False)
    if isinstance(value, Mapping) and not history:
        return _asked([], value.get("text"), typed=False)
    kept = up_to_last_question(spoken(history))
    return Turn(kept, typed=False) if kept else None


def _asked(before: Sequence[Message], text: Any, *, typed: bool) -> Turn | None:
    if not isinstance(text, str) or not text.strip():
        return None
    question = user(text.strip()[:INPUT_LIMIT])
    return Turn([*spoken(before), question], typed, cut=len(text.strip()) > INPUT_LIMIT)


def _first(index: Any) -> int:
    """Gradio gives a message's place as a number, or as a pair that starts with it."""
    if isinstance(index, list | tuple) and index:
        index = index[0]
    return index if isinstance(index, int) and index >= 0 else 0
