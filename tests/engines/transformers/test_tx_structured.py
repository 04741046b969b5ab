"""Grammars: what they allow, what is refused, and that no client's grammar can stop the engine."""

import asyncio
import contextlib
import json
import random
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_tokenizer
from tokenizers import AddedToken

from kodolly.engines.transformers.requests.base import check
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.structured.compiler import (
    MAX_KEPT,
    GrammarCompiler,
    llguidance_tokenizer,
)
from kodolly.engines.transformers.structured.constraint import Constraint
from kodolly.engines.transformers.structured.matcher import GrammarFault
from kodolly.engines.transformers.tools.choice import BEGIN
from kodolly.engines.transformers.tools.choice import END as CLOSE
from kodolly.errors import BadRequest

TOKENIZER = tiny_tokenizer()
SIZE, END = len(TOKENIZER), 2
PERSON = {
    "type": "object",
    "properties": {
        "이름": {"type": "string", "minLength": 1, "maxLength": 5},
        "나이": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}]},
        "태그": {"type": "array", "items": {"enum": ["가", "나"]}, "maxItems": 3},
    },
    "required": ["이름", "나이", "태그"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(llguidance_tokenizer(TOKENIZER, SIZE, [END]), SIZE, most=4)


def asked(**fields: Any) -> Constraint:
    """What a chat with these fields asks for."""
    constraint = check(
        ChatRequest, {"messages": [{"role": "user", "content": "a"}]} | fields
    ).constraint
    assert constraint is not None
    return constraint


def schema(value: Any) -> Constraint:
    return asked(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    )


def walk(
    compiler: GrammarCompiler, constraint: Constraint, seed: int, most: int = 400
) -> str | None:
    """A text of random tokens that the grammar allows; None if it has no end after `most` of them."""
    matcher = asyncio.run(compiler.compile(constraint)).matcher()
    choose = random.Random(seed)
    tokens: list[int] = []
    while not matcher.is_done:
        token = choose.choice(torch.nonzero(matcher.allowed(SIZE)).flatten().tolist())
        if token == END:
            break
        if len(tokens) == most:
            return None
        matcher.accept(token)
        tokens.append(token)
    return str(TOKENIZER.decode(tokens, clean_up_tokenization_spaces=False))


def test_every_walk_is_what_the_schema_says(compiler: GrammarCompiler) -> None:
    """Twenty texts of random tokens are JSON of their schema: Korean is whole, lengths are of characters."""
    texts = [walk(compiler, schema(PERSON), seed) for seed in range(20)]
    whole = [json.loads(text) for text in texts if text is not None]
    assert len(whole) > 15
    for value in whole:
        assert list(value) == ["이름", "나이", "태그"]
        assert 1 <= len(value["이름"]) <= 5
        assert "\ufffd" not in value["이름"]
        assert value["나이"] is None or 0 <= value["나이"] <= 150
        assert set(value["태그"]) <= {"가", "나"}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"choice": ["서울", 'a"b\\n', "끝\n"]}, {"서울", 'a"b\\n', "끝\n"}),
        ({"regex": "[ab]{2}"}, {"aa", "ab", "ba", "bb"}),
        ({"grammar": 'root ::= "a" | "b" "c"'}, {"a", "bc"}),
        ({"grammar": 'start: "a" | X\nX: /[01]/'}, {"a", "0", "1"}),
        ({"json": '{"enum": [1, "가"]}'}, {"1", '"가"'}),
        ({"json": {"type": "boolean"}}, {"true", "false"}),
    ],
)
def test_each_kind_of_form(
    outputs: dict[str, Any], expected: set[str], compiler: GrammarCompiler
) -> None:
    """Random texts are of the form, and every text of it comes up."""
    texts = {walk(compiler, asked(structured_outputs=outputs), seed) for seed in range(60)}
    assert texts == expected


def test_any_json_object(compiler: GrammarCompiler) -> None:
    """json_object is an object, whatever is in it."""
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ):
        texts = [walk(compiler, asked(**fields), seed) for seed in range(5)]
        assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
        matcher = asyncio.run(compiler.compile(asked(**fields))).matcher()
        first = torch.nonzero(matcher.allowed(SIZE)).flatten().tolist()
        assert all(TOKENIZER.decode([token]).startswith("{") for token in first)


def test_white_space_comes_to_an_end(compiler: GrammarCompiler) -> None:
    """A model that writes a new line wherever it may still gets to the end of its JSON."""
    matcher = asyncio.run(compiler.compile(schema(PERSON))).matcher()
    line = TOKENIZER.encode("\n", add_special_tokens=False)[0]
    lines = 0
    for _ in range(200):
        allowed = matcher.allowed(SIZE)
        if matcher.is_done:
            break
        token = line if allowed[line] else int(torch.nonzero(allowed).flatten()[0])
        lines += token == line
        matcher.accept(token)
    assert 0 < lines < 30


def test_a_wrong_token_ends_that_answer_alone(compiler: GrammarCompiler) -> None:
    """Two answers follow the same grammar: the fault of one does not reach the other."""
    grammar = asyncio.run(compiler.compile(asked(structured_outputs={"choice": ["aa", "b"]})))
    one, other = grammar.matcher(), grammar.matcher()
    wrong, right = (TOKENIZER.encode(text, add_special_tokens=False)[0] for text in ("z", "b"))
    with pytest.raises(GrammarFault):
        one.accept(wrong)
    other.accept(right)
    assert other.is_done


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"json": {"not": {"type": "string"}}}, '"not"'),
    ({"json": {"if": {}, "then": {}}}, '"if"'),
    ({"json": {"type": "array", "uniqueItems": True}}, '"uniqueItems"'),
    ({"json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
    ({"json": {"$ref": "https://example.org/x"}}, "does not fetch"),
    ({"json": {"type": "string", "format": "riddle"}}, "riddle"),
    ({"regex": "("}, "unclosed group"),
    ({"grammar": "start: nowhere"}, "nowhere"),
    ({"grammar": "root ::= ("}, "grammar"),
]


@pytest.mark.parametrize(("outputs", "words"), REFUSALS)
def test_what_no_grammar_can_be_made_of_is_refused(
    outputs: dict[str, Any], words: str, compiler: GrammarCompiler
) -> None:
    """The refusal names the field, and the keyword or the fault in one line."""
    with pytest.raises(BadRequest) as refusal:
        asyncio.run(compiler.compile(asked(structured_outputs=outputs)))
    assert refusal.value.param == "structured_outputs"
    assert words in refusal.value.message
    assert "\n" not in refusal.value.message


def rules(count: int, body: str) -> str:
    return "\n".join(
        [
            "start: r0",
            *(f"r{i}: " + body.format(f"r{i + 1}") for i in range(count)),
            f'r{count}: "a"',
        ]
    )


def objects(count: int) -> dict[str, Any]:
    ends: dict[str, Any] = {str(count): {"type": "string"}}
    items = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(count)}
    return {"$defs": items | ends, "$ref": "#/$defs/0"}


def nested(count: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(count):
        value = {"items": value}
    return value


HOSTILE: dict[str, dict[str, Any]] = {
    "a long chain of rules": {"grammar": rules(1200, "{0}")},
    "a long chain of terminals": {"grammar": rules(1000, "{0}").replace("r", "R").replace("staRt", "start")},
    "rules that double": {"grammar": rules(60, "{0} {0}")},
    "rules that may be empty": {"grammar": rules(400, '{0} {0} | "x"')},
    "rules that are themselves": {"grammar": 'start: start start | "a" |'},
    "terminals that double": {"grammar": rules(40, "{0} {0}").replace("r", "R").replace("staRt", "start")},
    "a rule a million times": {"grammar": "start: a{1000000}\na: b{1000}\nb: \"x\"{1000}"},
    "deep parentheses": {"grammar": "start: " + "(" * 4000 + '"a"' + ")" * 4000},
    "deep parentheses of GBNF": {"grammar": "root ::= " + "(" * 4000 + '"a"' + ")" * 4000},
    "a chain of references": {"json": objects(2500)},
    "a schema of itself": {"json": {"$ref": "#"}},
    "a deep schema": {"json": nested(200)},
    "a long constant": {"json": {"const": "가" * 40_000}},
    "a million items": {"json": {"minItems": 10**6, "maxItems": 10**6, "items": {"minItems": 1000}}},
    "five hundred optional properties": {"json": {"properties": {f"p{i}": {} for i in range(500)}}},
    "an expression of many states": {"regex": "(a|b)*a(a|b){900}"},
    "nested repetitions": {"regex": "((a{1,100}){1,100}){1,100}"},
    "many expressions": {"json": {"anyOf": [{"pattern": f"^.*{i}.{{90}}$"} for i in range(200)]}},
    "a long expression": {"regex": "[a-z]" * 20_000},
    "a text beyond all bounds": {"regex": "a" * 200_000},
}  # fmt: skip


@pytest.mark.parametrize("outputs", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_grammar_stops_nothing(
    outputs: dict[str, Any], compiler: GrammarCompiler
) -> None:
    """It is refused, or followed for some tokens, or given up for the answer that asked for it."""
    with contextlib.suppress(BadRequest, GrammarFault):
        constraint = asked(structured_outputs=outputs)
        matcher = asyncio.run(compiler.compile(constraint)).matcher()
        for _ in range(5):
            allowed = torch.nonzero(matcher.allowed(SIZE)).flatten().tolist()
            if not allowed or allowed == [END] or matcher.is_done:
                break
            matcher.accept(next(token for token in allowed if token != END))
    assert walk(compiler, asked(structured_outputs={"choice": ["서울"]}), 0) == "서울"


def test_a_grammar_is_made_once_and_few_are_kept(compiler: GrammarCompiler) -> None:
    """The same schema again costs nothing; the ones that were used last are kept, and no more."""

    async def made(name: str) -> object:
        return await compiler.compile(asked(structured_outputs={"choice": [name]}))

    async def run() -> None:
        first = await made("first")
        assert await made("first") is first
        for index in range(MAX_KEPT):
            await made(str(index))
        assert await made("first") is not first

    asyncio.run(run())


@pytest.mark.parametrize("special", [True, False])
def test_the_tags_of_a_call_may_be_tokens_of_their_own(special: bool) -> None:
    """As for Qwen; for other models they are plain text, which the surface's tests try."""
    tokenizer = tiny_tokenizer()
    tags = [AddedToken(tag, normalized=False, special=special) for tag in (BEGIN, CLOSE)]
    tokenizer.add_tokens(tags, special_tokens=special)
    size = len(tokenizer)
    compiler = GrammarCompiler(llguidance_tokenizer(tokenizer, size, [END]), size, most=1)
    tool = {"type": "function", "function": {"name": "날씨", "parameters": {"maxProperties": 0}}}
    demand = asked(tools=[tool], tool_choice="required", parallel_tool_calls=False)
    matcher = asyncio.run(compiler.compile(demand)).matcher()
    tokens: list[int] = []
    while not matcher.is_done and len(tokens) < 100:
        allowed = torch.nonzero(matcher.allowed(size)).flatten().tolist()
        tokens.append(allowed[-1])
        if tokens[-1] == END:
            break
        matcher.accept(tokens[-1])
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert (tokens[0], text.count(BEGIN)) == (tokenizer.convert_tokens_to_ids(BEGIN), 1)
    assert '"날씨"' in text
