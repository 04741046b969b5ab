"""What the API changes, refuses or names so that every engine treats a request alike."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly.api.errors import api_error, named
from kodolly.api.prepare import for_engine, stops_of
from kodolly.errors import ApiError, BadRequest, ContextOverflow
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check, without_nulls
from kodolly.protocol.wire import Extension

USER = {"role": "user", "content": "가"}
CHAT: dict[str, Any] = {"model": "demo", "messages": [USER]}
TEXT: dict[str, Any] = {"model": "demo", "prompt": "가"}
TOOL = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}


def prepared(change: dict[str, Any], **extension: Any) -> dict[str, Any]:
    return for_engine(CHAT | change, Extension.model_validate(extension), chat=True)


@pytest.mark.parametrize(
    ("knows", "role"), [(None, "system"), (["tools"], "system"), (["developer"], "developer")]
)
def test_developer_is_system_where_the_template_knows_no_such_role(
    knows: list[str] | None, role: str
) -> None:
    """Also for an attached engine, whose template is not known."""
    body = prepared(
        {"messages": [{"role": "developer", "content": "s"}, USER]}, template_knows=knows
    )
    assert body["messages"] == [{"role": role, "content": "s"}, USER]


@pytest.mark.parametrize(("field", "value"), [("tools", [TOOL]), ("documents", [{"text": "a"}])])
def test_what_no_prompt_would_hold_is_refused(field: str, value: Any) -> None:
    """A template without tools or documents would drop them without a word."""
    with pytest.raises(BadRequest, match=rf"{field}: .*dolly-ko.* has no place") as refusal:
        prepared({field: value}, template="dolly-ko", template_knows=["developer"])
    assert refusal.value.param == field
    for knows in (None, [field]):  # not known, or known to hold them
        assert prepared({field: value}, template_knows=knows)[field] == value
    prepared({field: []}, template_knows=[])
    prepared({"tools": [TOOL], "tool_choice": "none"}, template_knows=[])


@pytest.mark.parametrize(
    ("chat", "field", "value"),
    [
        (True, "functions", [{"name": "f"}]),
        (True, "guided_json", {"type": "object"}),
        (True, "guided_regex", "a"),
        (True, "guided_choice", ["a"]),
        (True, "audio", {"voice": "ash"}),
        (True, "modalities", ["audio"]),
        (False, "best_of", 3),
        (False, "guided_regex", "a"),
        (False, "logits_processors", ["x"]),
    ],
)
def test_what_vllm_would_drop_is_refused_by_name(chat: bool, field: str, value: Any) -> None:
    """vLLM takes it for an unknown field; an attached engine may honour it."""
    body = (CHAT if chat else TEXT) | {field: value}
    with pytest.raises(BadRequest) as refusal:
        for_engine(body, Extension(engine="vllm"), chat=chat)
    assert refusal.value.param == field
    assert for_engine(body, Extension(), chat=chat)[field] == value


def test_every_text_of_a_chat_is_guarded() -> None:
    """Also the arguments of a call and a tool's description, which templates write into the prompt."""
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": "<|im_end|>"}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    change = {"messages": [USER, answer], "tools": [TOOL], "documents": [{"text": "<|im_end|>"}]}
    body = prepared(change | {"chat_template_kwargs": {"a": "<|im_end|>"}}, guard=["<|im_end|>"])
    assert "<|im_end|>" not in str(body)
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == "f"


def test_nesting_beyond_python_is_a_400() -> None:
    """Guarding walks through a value; one that is too deep is the client's fault."""
    deep: Any = "x"
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(BadRequest, match="nested"):
        prepared({"tools": [deep]}, guard=["<|im_end|>"])


def test_ignore_eos_ignores_the_templates_end_too() -> None:
    """A client that wants no end of the model's own gets none but its own stop strings."""
    extension = Extension(stop=["### 끝"])
    body = CHAT | {"stop": ["그만"]}
    assert for_engine(body, extension, chat=True)["stop"] == ["그만", "### 끝"]
    body |= {"ignore_eos": True}
    assert for_engine(body, extension, chat=True)["stop"] == ["그만"]
    assert stops_of(body, extension) == ["그만"]


def test_nulls_are_not_given() -> None:
    """No engine sees a null, which each of them takes for something else."""
    assert without_nulls(CHAT | {"n": None, "stream": None, "seed": 0}) == CHAT | {"seed": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": 5}, "stop: should be a valid string or a valid list"),
        ({"stop": ["a", 5]}, "stop[1]: should be a valid string"),
        ({"response_format": "json"}, "response_format: should be a valid dictionary"),
        ({"response_format": "json", "stream": True}, "response_format: should be"),
        ({"structured_outputs": "x"}, "structured_outputs: should be a valid dictionary"),
        ({"tools": 5}, "tools: should be a valid list"),
        ({"tools": ["x"]}, "tools[0]: should be a valid dictionary"),
        ({"tool_choice": 5}, "tool_choice: should be a valid string or a valid dictionary"),
        ({"logprobs": "x"}, "logprobs: should be a valid boolean"),
        ({"prompt_logprobs": "x"}, "prompt_logprobs: should be a valid integer"),
        ({"logit_bias": [1]}, "logit_bias: should be a valid dictionary"),
        ({"messages": 5}, "messages: should be a valid list"),
        ({"messages": [USER, 5]}, "messages[1]: should be"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content: should be"),
    ],
)
def test_a_wrong_type_is_a_400_that_names_the_field(change: dict[str, Any], message: str) -> None:
    """Of a field of several types, the fault is that of the type which was meant, or all are named."""
    with pytest.raises(BadRequest) as refusal:
        check(ChatRequest, CHAT | change)
    assert refusal.value.message.startswith(message), refusal.value.message
    assert refusal.value.param == message.partition(":")[0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ],
)
def test_completions_have_bounds(change: dict[str, Any], field: str) -> None:
    """An empty prompt, more answers than any engine holds, and no token to make are refused."""
    with pytest.raises(BadRequest) as refusal:
        check(CompletionRequest, TEXT | change)
    assert refusal.value.param == field


def test_a_prompt_can_be_scored_without_a_new_token() -> None:
    """As evaluation harnesses do it; 128 answers are as many as OpenAI gives."""
    check(CompletionRequest, TEXT | {"max_tokens": 0, "echo": True, "logprobs": 1})
    check(CompletionRequest, TEXT | {"prompt": ["a"] * 16, "n": 128})


def refused_by_vllm(message: str, param: str | None = None, **change: Any) -> ApiError:
    body = b'{"error": {"message": "%s", "param": %s}}' % (
        message.encode(),
        b"null" if param is None else f'"{param}"'.encode(),
    )
    error = named(api_error(400, body), CHAT | change, "messages")
    assert isinstance(error, ApiError)
    return error


@pytest.mark.parametrize(
    ("message", "change", "field"),
    [
        ("top_k must be 0 (disable), or at least 1, got -5.", {"top_k": -5}, "top_k"),
        (
            'Grammar error: Unimplemented keys: ["uniqueItems"]',
            {"response_format": {"type": "json_schema"}},
            "response_format",
        ),
        (
            "min_tokens must be at most max_tokens=4",
            {"min_tokens": 9, "max_tokens": 4},
            "min_tokens",
        ),
        ("vl is not a multimodal model", {}, "messages"),
        ("'auto' tool choice requires a parser", {"tools": [TOOL]}, "tools"),
        ("Chat template is passed with request", {"chat_template": "x"}, "chat_template"),
        ("1 validation error: 0.ChatCompletionContentPartTextParam.text", {}, "messages"),
        ("something else", {}, None),
    ],
)
def test_the_field_is_named_where_vllm_does_not(
    message: str, change: dict[str, Any], field: str | None
) -> None:
    """A word of its message that is a field of the request."""
    assert refused_by_vllm(message, **change).param == field


@pytest.mark.parametrize(
    ("message", "param", "change", "field"),
    [
        ("This model's maximum context length is 9", "input_tokens", {}, "messages"),
        ("This model's maximum context length is 9", None, {"max_tokens": 1}, "messages"),
        ("max_tokens=9 cannot be greater than max_model_len=5", "max_tokens", {"max_tokens": 9}, "max_tokens"),
        (
            "max_tokens=9 cannot be greater than max_model_len=5",
            "max_tokens",
            {"max_completion_tokens": 9},
            "max_completion_tokens",
        ),
    ],
)  # fmt: skip
def test_overflow_has_one_code_and_a_field_of_the_request(
    message: str, param: str | None, change: dict[str, Any], field: str
) -> None:
    """Whatever the engine calls it."""
    error = refused_by_vllm(message, param, **change)
    assert isinstance(error, ContextOverflow)
    assert (error.code, error.param) == ("context_length_exceeded", field)
