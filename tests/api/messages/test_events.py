"""From a chat's events to a message's, and whole answers: without an API."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly.api.messages.events import MessageEvents
from kodolly.api.messages.request import MessagesRequest, check
from kodolly.api.messages.result import message
from kodolly.api.messages.to_chat import chat_body
from kodolly.api.sse import LAST, event

Json = dict[str, Any]
HEAD: Json = {"id": "chatcmpl-1", "model": "m"}


def call(index: int, arguments: str, name: str | None = None) -> Json:
    """A piece of a tool call; the first one has a name."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function} | ({"id": f"call_{index}"} if name else {})


def streamed(deltas: list[Json], reason: str = "stop") -> list[Json]:
    """The message's events for a stream of these deltas."""
    machine = MessageEvents([])
    choices: list[Json] = [{"delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"delta": {}, "finish_reason": reason})
    sent = b"".join(machine.feed(event(HEAD | {"choices": [choice]})) for choice in choices)
    counts = {"prompt_tokens": 5, "completion_tokens": 7}
    sent += machine.feed(event(HEAD | {"choices": [], "usage": counts}) + LAST)
    return [orjson.loads(part.split(b"data: ")[1]) for part in sent.split(b"\n\n") if part]


def gathered(sent: list[Json]) -> list[Json]:
    """The blocks as a client puts them together from the events."""
    blocks: list[Json] = []
    for each in sent:
        if each["type"] == "content_block_start":
            blocks.append(dict(each["content_block"]))
            assert each["index"] == len(blocks) - 1
        elif each["type"] == "content_block_delta":
            delta, block = each["delta"], blocks[each["index"]]
            field = {
                "text_delta": "text",
                "thinking_delta": "thinking",
                "input_json_delta": "json",
            }[delta["type"]]
            piece = delta.get("partial_json") or delta.get("text") or delta.get("thinking")
            block[field] = block.get(field, "") + piece
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(block.pop("json", "{}"))
    return blocks


TOOLS: list[Json] = [
    {"reasoning": "음, "},
    {"reasoning": "날씨라."},
    {"content": "찾아 "},
    {"content": "볼게요."},
    {"tool_calls": [call(0, "", "weather")]},
    {"tool_calls": [call(0, '{"city": ')]},
    {"tool_calls": [call(0, '"서울"}')]},
    {"tool_calls": [call(1, "{}", "time")]},
]
BLOCKS: list[Json] = [
    {"type": "thinking", "thinking": "음, 날씨라.", "signature": ""},
    {"type": "text", "text": "찾아 볼게요."},
    {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "서울"}},
    {"type": "tool_use", "id": "call_1", "name": "time", "input": {}},
]


def test_thoughts_text_and_calls_are_blocks_of_their_own() -> None:
    """Each is opened once and closed before the next one; the end says that tools were called."""
    sent = streamed(TOOLS, "tool_calls")

    assert gathered(sent) == BLOCKS
    edges = [(e["type"], e["index"]) for e in sent if e["type"].endswith(("block_start", "stop"))
             and "index" in e]  # fmt: skip
    names = ("content_block_start", "content_block_stop")
    assert edges == [(name, index) for index in range(4) for name in names]
    assert sent[-2]["delta"]["stop_reason"] == "tool_use"
    assert sent[-2]["usage"] == {"input_tokens": 5, "output_tokens": 7}


def test_a_named_call_that_ends_with_stop_is_tool_use() -> None:
    """Engines say so of a tool that the client named."""
    assert streamed(TOOLS, "stop")[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_whole_answer_has_the_same_blocks() -> None:
    """Whole and streamed differ in form alone."""
    calls = [
        {"id": "call_0", "function": {"name": "weather", "arguments": '{"city": "서울"}'}},
        {"id": "call_1", "function": {"name": "time", "arguments": ""}},
    ]
    said = {"reasoning": "음, 날씨라.", "content": "찾아 볼게요.", "tool_calls": calls}
    choice = {"message": said, "finish_reason": "tool_calls"}
    made = message(HEAD | {"choices": [choice], "usage": None}, [])

    assert made["content"] == BLOCKS
    assert (made["id"], made["stop_reason"]) == ("msg_1", "tool_use")


def test_arguments_cut_short_are_kept_as_text() -> None:
    """Nothing that the model made is lost."""
    calls = [{"id": "a", "function": {"name": "f", "arguments": '{"city": "서'}}]
    choice = {"message": {"content": None, "tool_calls": calls}, "finish_reason": "length"}
    made = message(HEAD | {"choices": [choice]}, [])

    assert made["content"][0]["input"] == {"INVALID_JSON": '{"city": "서'}
    assert made["stop_reason"] == "max_tokens"


@given(
    st.lists(st.tuples(st.sampled_from(["content", "reasoning"]), st.text(max_size=5)), max_size=9)
)
def test_the_pieces_make_the_text(pieces: list[tuple[str, str]]) -> None:
    """Whatever the order of pieces, no character is lost, doubled or moved."""
    blocks = gathered(streamed([{kind: text} for kind, text in pieces]))

    for kind, name in (("content", "text"), ("reasoning", "thinking")):
        given_text = "".join(text for each, text in pieces if each == kind)
        assert "".join(block.get(name, "") for block in blocks) == given_text


def chat(**fields: Any) -> Json:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    return chat_body(check(MessagesRequest, body | fields))


def test_a_round_of_tools_becomes_a_chat_s() -> None:
    """A call's input is text there, what a tool returned a message of its own, in the client's order."""
    turns: list[Json] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [
                    {"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
                {"type": "text", "text": "d"},
            ],
        },
    ]  # fmt: skip
    tool = {"name": "f", "description": "F.", "input_schema": {"properties": {}}}
    body = chat(messages=turns, tools=[tool], tool_choice={"type": "any"})

    two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert body["messages"] == [
        {"role": "user", "content": two},
        {
            "role": "assistant",
            "content": "c",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t", "content": "1\n2"},
        {"role": "user", "content": "d"},
    ]
    parameters = {"type": "object", "properties": {}}
    function = {"name": "f", "description": "F.", "parameters": parameters}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "chats"),
    [
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"thinking_token_budget": 2000},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        (
            {"service_tier": "auto", "cache_control": {}, "context_management": {"edits": []}},
            {},
        ),
    ],
)
def test_a_field_becomes_a_chat_s(fields: Json, chats: Json) -> None:
    """Those of caching and billing are left out."""
    assert {**chat(), **chats} == chat(**fields)


def test_a_schema_for_the_answer_becomes_a_response_format() -> None:
    """`output_config.format` of Anthropic's."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = chat(output_config={"format": {"type": "json_schema", "schema": schema}})

    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == schema
