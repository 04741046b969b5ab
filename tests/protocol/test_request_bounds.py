"""What would break an engine is refused before one sees it, and by the name of its field."""

import json
from typing import Any

import pytest

from kodolly.errors import BadRequest
from kodolly.protocol.request_bounds import MAX_COUNT, check_bounds, may_break_engine

Json = dict[str, Any]
# Each of these took vLLM 0.32 down, held up its other requests, or was answered with a 500.
POISON: list[tuple[Json, str]] = [
    ({"top_k": 1.1805916207174113e21}, "top_k"),  # 2**70 as our JSON parser reads it
    ({"priority": 2**63}, "priority"),
    ({"use_beam_search": True, "length_penalty": -1e308}, "length_penalty"),
    (
        {"structured_outputs": {"json": {"type": "array", "minItems": 10**9}}},
        "structured_outputs.json.minItems",
    ),
    (
        {"guided_json": '{"type": "array", "maxItems": 1000000000}'},
        "guided_json.maxItems",
    ),
    (
        {"structured_outputs": {"json": json.dumps({"anyOf": [{"minItems": 10**9}]})}},
        "structured_outputs.json.anyOf[0].minItems",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "string", "maxLength": 10**9}},
            }
        },
        "response_format.json_schema.schema.maxLength",
    ),
    (
        {"structured_outputs": {"json": {"type": "string", "minLength": -5}}},
        "structured_outputs.json.minLength",
    ),
    (
        {"structured_outputs": {"json": {"type": "integer", "maximum": 1e30}}},
        "structured_outputs.json.maximum",
    ),
    ({"structured_outputs": {"regex": "a{1,1000000000000}"}}, "structured_outputs.regex"),
    ({"guided_regex": "(b{ 5000000 })*"}, "guided_regex"),
    ({"structured_outputs": {"regex": "a{" + "9" * 10_000 + "}"}}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"grammar": 'root ::= "a"{10000000}'}},
        "structured_outputs.grammar",
    ),
    (
        {"structured_outputs": {"json": {"type": "string", "pattern": "x{5000000}"}}},
        "structured_outputs.json.pattern",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {"properties": {f"p{n}": {} for n in range(1600)}},
                    },
                }
            ]
        },
        "tools[0].function.parameters",
    ),
    (
        {
            "structured_outputs": {
                "json": {"anyOf": [{"properties": {f"p{n}": {} for n in range(400)}}] * 2}
            }
        },
        "structured_outputs.json.anyOf[0]",
    ),
    ({"structured_outputs": {"json": {"anyOf": [{}] * 60_000}}}, "structured_outputs"),
]


@pytest.mark.parametrize(("body", "field"), POISON)
def test_what_breaks_engines_is_refused_by_name(body: Json, field: str) -> None:
    """The message begins with the field, and says the bound."""
    with pytest.raises(BadRequest) as refusal:
        check_bounds({"model": "m", "messages": [], **body})
    assert refusal.value.param == field
    assert str(refusal.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "body",
    [
        {"seed": -(2**63), "top_k": 2**31 - 1, "temperature": 0.5, "n": None, "stream": True},
        {"response_format": {"type": "json_object"}},
        {"response_format": "json"},
        {"guided_json": "{"},
        {"structured_outputs": {"json": {"type": "array", "maxItems": MAX_COUNT}}},
        {"structured_outputs": {"json": {"properties": {"minItems": {"type": "integer"}}}}},
        {"structured_outputs": {"json": {"properties": {f"p{n}": {} for n in range(500)}}}},
        {
            "structured_outputs": {
                "json": {
                    "properties": {f"p{n}": {} for n in range(1600)},
                    "required": [f"p{n}" for n in range(1600)],
                }
            }
        },
        {"structured_outputs": {"regex": r"\d{3}-\d{4}(x{1,2}|y{,5}|z{2,})"}},
        {"structured_outputs": {"choice": ["{5}", "{}", "{,}"]}},
        {"messages": [{"role": "user", "content": "a{99999999} and minItems"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_what_people_ask_for_is_not(body: Json) -> None:
    """Bounds are far from what a schema of everyday work has."""
    check_bounds({"model": "m", **body})


def test_a_grammar_is_told_from_what_engines_do_by_themselves() -> None:
    """Only what the client words itself, or what rules out tokens, can break."""
    for body in (
        {"structured_outputs": {"regex": "a"}},
        {"guided_choice": ["a"]},
        {"use_beam_search": True},
        {"response_format": {"type": "json_object"}, "bad_words": ["a"]},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"tools": [{}], "tool_choice": "required"},
        {"tools": [{}], "tool_choice": {"type": "function"}},
    ):
        assert may_break_engine(body)
    others: list[Json] = [
        {},
        {"response_format": {"type": "json_object"}},
        {"response_format": None, "structured_outputs": None},
        {"tools": [{}]},
        {"tools": [{}], "tool_choice": "none"},
    ]
    for other in others:
        assert not may_break_engine(other)
