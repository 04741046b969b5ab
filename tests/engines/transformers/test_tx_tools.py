"""Calls of tools: which a request demands, and how they are read from an answer."""

import itertools
import json
from typing import Any

import pytest

from kodolly.engines.transformers.requests.base import check
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.tools.parser import CallParser, joined
from kodolly.errors import BadRequest

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "time")
]
WEATHER = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "서울 {\\"강남\\"}"}}\n</tool_call>'
)
TIME = '<tool_call>{"arguments": {"zone": 9}, "name": "time"}</tool_call>'

# text of an answer -> its content, and the names and arguments of its calls
READINGS: list[tuple[str, str | None, list[tuple[str, Any]]]] = [
    ("맑습니다.", "맑습니다.", []),
    ("", "", []),
    ("1 < 2 <tool", "1 < 2 <tool", []),
    (WEATHER, None, [("weather", {"city": '서울 {"강남"}'})]),
    (f"볼게요.\n{WEATHER}", "볼게요.\n", [("weather", {"city": '서울 {"강남"}'})]),
    (
        f"{WEATHER}\n{TIME}\n",
        None,
        [("weather", {"city": '서울 {"강남"}'}), ("time", {"zone": 9})],
    ),
    (f"{TIME}끝", "끝", [("time", {"zone": 9})]),
    ("<tool_call>나중에</tool_call>", "<tool_call>나중에</tool_call>", []),
    ("<tool_call>", "<tool_call>", []),
    ('<tool_call>{"name": "a", "arguments": {"x": "</tool_call>"}}', None, [("a", {"x": "</tool_call>"})]),
    ('<tool_call>{"name": "a", "parameters": {}}</tool_call>', None, [("a", {})]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "content", "calls"), READINGS)
def test_an_answer_is_read_the_same_in_any_pieces(
    text: str, content: str | None, calls: list[tuple[str, Any]]
) -> None:
    """Whole, letter by letter and cut in two at every place, it has the same content and calls."""
    cuts = [[text], list(text), *([text[:at], text[at:]] for at in range(1, len(text)))]
    for pieces in cuts:
        parser = CallParser()
        deltas = list(itertools.chain.from_iterable(map(parser.push, pieces))) + parser.flush()
        message = joined(deltas)
        assert message["content"] == content
        functions = [call["function"] for call in message.get("tool_calls", ())]
        read = [(each["name"], json.loads(each["arguments"])) for each in functions]
        assert read == calls


def test_a_call_that_is_cut_shows_what_there_is() -> None:
    """The limit may come within the arguments: their beginning is not lost."""
    parser = CallParser()
    message = joined(parser.push(WEATHER[:-25]) + parser.flush())
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert call["function"]["arguments"].startswith('{"city": "서')


def test_one_call_where_only_one_is_wanted() -> None:
    """With parallel_tool_calls false what follows the first call is left out, as vLLM leaves it out."""
    parser = CallParser(parallel=False)
    message = joined(parser.push(WEATHER + TIME + "그리고") + parser.flush())
    assert len(message["tool_calls"]) == 1
    assert message["content"] is None


def test_arguments_are_passed_on_as_they_come() -> None:
    """The first delta of a call has its id and name, and no piece waits for the end of the call."""
    parser = CallParser()
    deltas = [delta for letter in WEATHER for delta in parser.push(letter)]
    parts = [part for delta in deltas for part in delta["tool_calls"]]
    assert parts[0]["function"] == {"name": "weather", "arguments": ""}
    assert parts[0]["id"].startswith("call_")
    assert len(parts) > 20
    assert all(part.keys() == {"index", "function"} for part in parts[1:])


@pytest.mark.parametrize(
    ("fields", "demanded", "names"),
    [
        ({"tools": TOOLS}, False, ["weather", "time"]),
        ({"tools": TOOLS, "tool_choice": "auto"}, False, ["weather", "time"]),
        ({"tools": TOOLS, "tool_choice": "required"}, True, ["weather", "time"]),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "time"}}}, True, ["time"]),
    ],
)
def test_a_choice_of_tools(fields: dict[str, Any], demanded: bool, names: list[str]) -> None:
    """Which tools may be called, and whether one must be; only that needs a grammar."""
    request = check(ChatRequest, {"messages": [{"role": "user", "content": "a"}]} | fields)
    use = request.tool_use
    assert use is not None
    assert use.demanded is demanded
    assert [tool.function.name for tool in use.tools] == names
    assert (request.constraint is not None) is demanded


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "none"}}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_a_choice_that_cannot_be(fields: dict[str, Any], field: str) -> None:
    """It is refused by its field."""
    with pytest.raises(BadRequest) as refusal:
        check(ChatRequest, {"messages": [{"role": "user", "content": "a"}]} | fields)
    assert refusal.value.param == field


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_no_tool_may_be_called(fields: dict[str, Any]) -> None:
    """Without tools, and where the client says none, the text is the content as it is."""
    request = check(ChatRequest, {"messages": [{"role": "user", "content": "a"}]} | fields)
    assert request.tool_use is None
