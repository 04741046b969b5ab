"""Every field of OpenAI's API and of vLLM's: honoured, harmless, or refused by its name."""

from typing import Any

import pytest

from kodolly.engines.transformers.requests.base import check
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.requests.completion import CompletionRequest
from kodolly.engines.transformers.requests.sampling import Sampling
from kodolly.errors import BadRequest
from kodolly.protocol import parameters

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "가"}]}
TEXT: dict[str, Any] = {"prompt": "가"}
KINDS: list[tuple[type[Sampling], dict[str, Any]]] = [
    (ChatRequest, CHAT),
    (CompletionRequest, TEXT),
]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

REFUSED: dict[str, Any] = {
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": "root ::= 'a'",
    "use_beam_search": True,
    "length_penalty": 0.5,
    "logits_processors": ["x"],
    "priority": 1,
    "kv_transfer_params": {"a": 1},
    "response_format": {"type": "structural_tag"},
}
REFUSED_IN_CHAT: dict[str, Any] = {
    "tools": [{"type": "retrieval"}],
    "tool_choice": "required",
    "top_logprobs": 2,
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "add_special_tokens": True,
    "documents": [{"text": "a"}],
    "chat_template": "{{ 1 }}",
    "modalities": ["text", "audio"],
    "audio": {"voice": "ash"},
    "web_search_options": {},
    "reasoning_effort": "low",
    "verbosity": "low",
}
REFUSED_IN_COMPLETIONS: dict[str, Any] = {
    "best_of": 3,
    "suffix": "x",
    "prompt_embeds": "x",
}


def all_refused() -> list[tuple[type[Sampling], dict[str, Any], str, Any]]:
    own = {ChatRequest: REFUSED_IN_CHAT, CompletionRequest: REFUSED_IN_COMPLETIONS}
    return [
        (kind, base, name, value)
        for kind, base in KINDS
        for name, value in (REFUSED | own[kind]).items()
    ]


@pytest.mark.parametrize(("kind", "base", "name", "value"), all_refused())
def test_what_is_not_honoured_is_refused_by_name(
    kind: type[Sampling], base: dict[str, Any], name: str, value: Any
) -> None:
    """The refusal names the field, in param and in words; a null asks for nothing."""
    with pytest.raises(BadRequest) as refusal:
        check(kind, base | {name: value})
    assert str(refusal.value.param).startswith(name)
    assert name in refusal.value.message
    check(kind, base | {name: None})


@pytest.mark.parametrize(("kind", "base"), KINDS)
def test_values_that_ask_for_nothing_are_taken(kind: type[Sampling], base: dict[str, Any]) -> None:
    """A default of the API, sent by a client that names every field, is never refused."""
    defaults: dict[str, Any] = {
        "n": 1, "stream": False, "stop": None, "logprobs": None, "top_logprobs": 0,
        "presence_penalty": 0, "use_beam_search": False, "length_penalty": 1.0,
        "skip_special_tokens": True, "bad_words": [], "priority": 0, "vllm_xargs": {},
        "user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto",
        "cache_salt": "x", "spaces_between_special_tokens": True, "no_such_field": 1,
    }  # fmt: skip
    chat: dict[str, Any] = {
        "tools": [], "tool_choice": "auto", "functions": [], "function_call": "auto",
        "parallel_tool_calls": True, "modalities": ["text"], "response_format": {"type": "text"},
        "echo": False, "documents": [], "chat_template_kwargs": {}, "add_special_tokens": False,
    }  # fmt: skip
    text: dict[str, Any] = {
        "best_of": 1, "suffix": "", "echo": False, "response_format": {"type": "text"},
    }  # fmt: skip
    check(kind, base | defaults | (chat if kind is ChatRequest else text))


@pytest.mark.parametrize(("kind", "base"), KINDS)
def test_a_null_is_not_given(kind: type[Sampling], base: dict[str, Any]) -> None:
    """Of every field, with and without a default of its own."""
    names = (kind.model_fields.keys() | kind.unhonoured.keys()) - base.keys()
    assert {"n", "stream", "presence_penalty", "min_tokens", "ignore_eos"} <= names
    nulls = check(kind, base | dict.fromkeys(names))
    assert nulls == check(kind, base)


def test_no_token_at_all_needs_an_echo() -> None:
    """Without one there would be nothing to answer."""
    with pytest.raises(BadRequest) as refusal:
        check(CompletionRequest, TEXT | {"max_tokens": 0})
    assert refusal.value.param == "max_tokens"
    assert check(CompletionRequest, TEXT | {"max_tokens": 0, "echo": True}).limit == 0


def test_no_field_is_both_honoured_and_refused() -> None:
    """Each field has one fate."""
    for kind, table in ((ChatRequest, parameters.CHAT), (CompletionRequest, parameters.COMPLETION)):
        assert not kind.model_fields.keys() & table.keys()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (ChatRequest, {"stop": 5}, "stop: should be a valid list"),
        (ChatRequest, {"stop": ["a", 5]}, "stop[1]: should be a valid string"),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content: should be a valid string or a valid list",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": ["a"]}]},
            "messages[0].content[0]: should be a valid dictionary",
        ),
        (ChatRequest, {"messages": [{"content": "a"}]}, "messages[0].role: Field required"),
        (CompletionRequest, {"prompt": [1, "a"]}, "prompt[1]: should be a valid integer"),
        (ChatRequest, {"response_format": "json"}, "response_format: should be a valid dictionary"),
        (ChatRequest, {"stream": True, "stream_options": 5}, "stream_options: should be"),
    ],
)
def test_a_wrong_type_names_the_field_at_fault(
    kind: type[Sampling], change: dict[str, Any], message: str
) -> None:
    """Of a field that may be of several types, the fault is that of the type which was meant."""
    with pytest.raises(BadRequest) as refusal:
        check(kind, (CHAT if kind is ChatRequest else TEXT) | change)
    assert refusal.value.message.startswith(message), refusal.value.message
    assert refusal.value.param == message.partition(":")[0]


def test_messages_reach_the_template_as_vllm_gives_them() -> None:
    """Parts are joined by a line break; a tool call keeps its id, name and arguments."""
    parts = [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "맑음"},
    ]
    request = check(ChatRequest, {"messages": messages})
    plain = [message.plain(index) for index, message in enumerate(request.messages)]
    assert plain[0] == {"role": "user", "content": "가\n나"}
    assert plain[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert plain[2] == {"role": "tool", "content": "맑음", "tool_call_id": "1"}


@pytest.mark.parametrize("arguments", ["{", "[]", 5, "[" * 100_000])
def test_broken_arguments_of_a_call_are_the_clients(arguments: Any) -> None:
    """Arguments that are no JSON object are a 400."""
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    request = check(ChatRequest, {"messages": messages})
    with pytest.raises(BadRequest, match=r"messages\[0\]\.tool_calls"):
        request.messages[0].plain(0)
