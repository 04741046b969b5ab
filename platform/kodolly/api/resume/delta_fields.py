"""A delta as fields by path, such as `("tool_calls", 0, "function", "arguments")`, and back.

Texts grow by each delta; a name, a type, an id and what is no text stand in one delta as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Path = tuple[str | int, ...]
Fields = dict[Path, Any]

WHOLE = frozenset({"role", "id", "type", "name"})
# An engine draws a tool call's id anew each time.
DRAWN = "id"


def grows(path: Path, value: Any) -> bool:
    """Whether a field is a text that further deltas add to."""
    return isinstance(value, str) and path[-1] not in WHOLE


def fields_of(delta: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields of a delta; those that are null, or empty lists, are none."""
    for name, value in delta.items():
        path = (*above, name)
        if isinstance(value, dict):
            yield from fields_of(value, path)
        elif name == "tool_calls" and isinstance(value, list):
            for at, call in enumerate(value):
                rest = {key: each for key, each in call.items() if key != "index"}
                yield from fields_of(rest, (*path, call.get("index", at)))
        elif value is not None and value != []:
            yield path, value


def delta_of(fields: Fields) -> dict[str, Any]:
    """The delta that has these fields."""
    delta: dict[str, Any] = {}
    for path, value in fields.items():
        place = delta
        for part, following in pairwise(path):
            if isinstance(part, int):
                continue
            if not isinstance(following, int):
                place = place.setdefault(part, {})
                continue
            calls = place.setdefault(part, [])
            place = next((call for call in calls if call["index"] == following), {})
            if not place:
                place["index"] = following
                calls.append(place)
        place[str(path[-1])] = value
    return delta


def add_to(fields: Fields, path: Path, value: Any) -> None:
    """Adds what a further delta has of a field."""
    before = fields.get(path)
    fields[path] = before + value if isinstance(before, str) and grows(path, value) else value


def entries_of(logprobs: dict[str, Any]) -> int:
    """How many tokens have their log probabilities here, in a chat's form or a completion's."""
    return len(logprobs.get("content") or logprobs.get("tokens") or ())
