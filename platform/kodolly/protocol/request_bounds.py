"""Bounds of what a request may ask of an engine: beyond them one request breaks it for everybody.

Found by trying on vLLM 0.32. A schema whose arrays have 10^9 items takes its memory until the
system kills it; one with 1,600 optional properties holds its grammar compiler for minutes; an integer
of more than 64 bits cannot be sent to its core. docs/failures.md lists what was tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from kodolly.errors import BadRequest

NUMBERS = frozenset({int, float})  # bool, a kind of int, is never too large
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1
MAX_COUNT = 1_000_000  # items, characters or repetitions that a schema or an expression may name
# Optional properties of one object, or of several so that the sum of their squares is the same: the
# time to compile a grammar grows faster than their number.
MAX_OPTIONAL = 500
MAX_LENGTH_PENALTY = 100  # of a beam search, which raises lengths to this power
MAX_BRANCHES = 50_000  # objects and lists of one schema

COUNTS = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
REPETITION = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
# Fields of a request that an engine makes a grammar of.
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
GRAMMARS = frozenset({"structured_outputs", "response_format", "tools", *GUIDED})
# Grammars that are the engine's own, so that a request cannot make them wrong.
SAFE_FORMATS = ("text", "json_object")
TOKEN_RULES = ("allowed_token_ids", "bad_words", "stop_token_ids")
TOO_LARGE = "must be a number of at most 64 bits"


def check_bounds(body: dict[str, Any]) -> None:
    """Raises BadRequest, which names the field, for what might break an engine."""
    for name, value in body.items():
        if type(value) in NUMBERS and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            _refuse(name, TOO_LARGE)
    penalty = body.get("length_penalty")
    if isinstance(penalty, int | float) and abs(penalty) > MAX_LENGTH_PENALTY:
        _refuse("length_penalty", f"must be from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}")
    if not GRAMMARS.isdisjoint(body):
        for name in sorted(GRAMMARS & body.keys()):
            if value := body[name]:
                _check_grammar(name, value)


def may_break_engine(body: dict[str, Any]) -> bool:
    """Whether an engine makes a grammar of the client's own words, or a search: both may fail it."""
    if any(body.get(name) for name in ("structured_outputs", "use_beam_search", *GUIDED)):
        return True
    response_format = body.get("response_format")
    if isinstance(response_format, dict):
        is_safe = response_format.get("type") in SAFE_FORMATS
        # A grammar under which no token is allowed any more.
        if not is_safe or any(body.get(name) for name in TOKEN_RULES):
            return True
    return bool(body.get("tools")) and body.get("tool_choice") not in (None, "auto", "none")


def _check_grammar(field: str, grammar: Any) -> None:
    branches = effort = 0
    for path, value in _parts(field, grammar):
        if isinstance(value, dict | list):
            branches += 1
            if branches > MAX_BRANCHES:
                _refuse(field, f"has more than {MAX_BRANCHES} objects and lists")
        if isinstance(value, dict):
            _check_counts(path, value)
            effort += _optional_properties(value) ** 2
            if effort > MAX_OPTIONAL**2:
                _refuse(path, f"more optional properties than an engine compiles ({MAX_OPTIONAL})")
        elif isinstance(value, str):
            _check_text(path, value)
        elif type(value) in NUMBERS and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            _refuse(path, TOO_LARGE)


def _check_counts(path: str, part: dict[str, Any]) -> None:
    for name in COUNTS & part.keys():
        count = part[name]
        if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
            _refuse(f"{path}.{name}", f"must be from 0 to {MAX_COUNT}")


def _optional_properties(part: dict[str, Any]) -> int:
    properties, required = part.get("properties"), part.get("required")
    if not isinstance(properties, dict):
        return 0
    required = required if isinstance(required, list) else []
    return len(properties.keys() - {name for name in required if isinstance(name, str)})


def _check_text(path: str, text: str) -> None:
    """Checks a regular expression or a grammar; in any other text such counts do not come."""
    for repetition in REPETITION.finditer(text):
        if any(len(count) > 18 or int(count) > MAX_COUNT for count in repetition.groups() if count):
            _refuse(path, f"may repeat something at most {MAX_COUNT} times")


def _parts(field: str, grammar: Any) -> Iterator[tuple[str, Any]]:
    """All values in a grammar with their paths, as `response_format.json_schema`."""
    left = [(field, grammar)]
    while left:
        path, value = left.pop()
        yield path, value
        if isinstance(value, dict):
            left += ((f"{path}.{name}", each) for name, each in value.items())
        elif isinstance(value, list):
            left += ((f"{path}[{at}]", each) for at, each in enumerate(value))
        elif isinstance(value, str) and path in ("structured_outputs.json", "guided_json"):
            left += ((path, each) for each in _schema_in(value))


def _schema_in(text: str) -> list[Any]:
    """A schema that is given as JSON text; nothing if it is none, which the engine then says."""
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        return []
    return [schema] if isinstance(schema, dict | list) else []


def _refuse(field: str, reason: str) -> None:
    raise BadRequest(f"{field}: {reason}", param=field)
