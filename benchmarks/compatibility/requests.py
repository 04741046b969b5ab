"""The requests whose treatment is compared: one small list a field of OpenAI's API and of vLLM's.

Each case changes one thing of a base request that every engine answers, so that a field which is
ignored shows as an answer equal to the base's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 8
QUESTION = "What is the capital of France?"
SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Json = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
USER: Json = {"role": "user", "content": QUESTION}
IMAGE: Json = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@dataclass(frozen=True)
class Case:
    """One request. `field`: what it is about; `wrong`: it can only be refused."""

    name: str
    path: str
    body: Json
    field: str
    wrong: bool = False
    effect: str = "same"  # what an answer must show; a key of effects.EFFECTS


@dataclass
class _List:
    """Collects the cases of one endpoint."""

    path: str
    base: Json
    cases: list[Case] = field(default_factory=list)

    def add(
        self, name: str, about: str, effect: str = "same", wrong: bool = False, **fields: Any
    ) -> None:
        prefix = "chat" if self.path == CHAT else "completion"
        body = {key: value for key, value in (self.base | fields).items() if value is not ...}
        self.cases.append(Case(f"{prefix}: {name}", self.path, body, about, wrong, effect))

    def values(self, about: str, *values: Any, effect: str = "same", wrong: bool = False) -> None:
        for value in values:
            self.add(f"{about} {_short(value)}", about, effect, wrong, **{about: value})


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 48 else text[:45] + "..."


def all_cases() -> list[Case]:
    """Every case, with names that are unique."""
    chat = _List(CHAT, {"messages": [USER], "max_tokens": TOKENS, "temperature": 0})
    plain = _List(
        COMPLETIONS, {"prompt": "The capital of France is", "max_tokens": TOKENS, "temperature": 0}
    )
    for each in (chat, plain):
        _sampling(each)
        _choices(each)
        _limits(each)
        _extras(each)
    _messages(chat)
    _chat_fields(chat)
    _completion_fields(plain)
    cases = [*chat.cases, *plain.cases]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return cases


def _sampling(add: _List) -> None:
    add.add("as it is", "messages" if add.path == CHAT else "prompt")
    add.values("temperature", 0.0, None)
    add.add("temperature 1 with a seed", "temperature", "answer", temperature=1, seed=7)
    add.add("temperature 2 with a seed", "temperature", "answer", temperature=2, seed=7)
    add.values("temperature", -1, 3, "hot", [0], wrong=True)
    add.values("top_p", 1, 0.5, None)
    add.values("top_p", 0, 1.5, "x", wrong=True)
    add.values("top_k", 1, 0, -1, None)
    add.values("top_k", "x", -5, wrong=True)
    add.values("min_p", 0.0, 0.5, None)
    add.values("min_p", 2, wrong=True)
    add.values("repetition_penalty", 1.0, None)
    add.values("repetition_penalty", 1.8, effect="other")
    add.values("repetition_penalty", 0, "x", wrong=True)
    add.values("presence_penalty", 0, None)
    add.values("presence_penalty", 2.0, effect="answer")
    add.values("presence_penalty", 3, "x", wrong=True)
    add.values("frequency_penalty", 0, None)
    add.values("frequency_penalty", 2.0, effect="answer")
    add.values("frequency_penalty", -3, wrong=True)
    add.values("seed", 1, None)
    add.values("seed", "x", 1.5, wrong=True)
    add.values("logit_bias", None, {})
    add.values("logit_bias", {"260": -100}, effect="answer")
    add.values("logit_bias", {"a": 1}, [1], wrong=True)
    add.values("stop", None, [])
    add.values("stop", "France", ["France", "Paris"], effect="stopped")
    add.values("stop", 5, [1], {"a": 1}, wrong=True)
    add.add(
        "stop kept in the text",
        "include_stop_str_in_output",
        "stop kept",
        stop="Paris",
        include_stop_str_in_output=True,
    )
    add.values("stop_token_ids", None, [])
    add.values("stop_token_ids", list(range(49152)), effect="one token")
    add.values("stop_token_ids", "x", wrong=True)
    add.values("ignore_eos", False, None)
    add.add("ignore_eos for 12 tokens", "ignore_eos", "full length", ignore_eos=True, max_tokens=12)
    add.add("min_tokens 12 of 12", "min_tokens", "full length", min_tokens=12, max_tokens=12)
    add.values("min_tokens", 0, None)
    add.values("min_tokens", -1, 4096, wrong=True)
    add.values("use_beam_search", False, None)
    add.values("skip_special_tokens", True, None)
    add.add(
        "skip_special_tokens false",
        "skip_special_tokens",
        "answer",
        skip_special_tokens=False,
        max_tokens=12,
    )
    add.values("spaces_between_special_tokens", True, None)
    add.add(
        "two tokens allowed",
        "allowed_token_ids",
        "only allowed",
        allowed_token_ids=[260, 253],
        return_token_ids=True,
    )
    add.values("allowed_token_ids", None)
    add.values("bad_words", [" Paris"], effect="no Paris")
    add.values("bad_words", None, [])
    add.values("length_penalty", 1.0, None)
    add.values("thinking_token_budget", None)


def _choices(add: _List) -> None:
    add.values("n", 1, None)
    add.add("n 2", "n", "two choices", n=2, temperature=1, seed=7)
    add.values("n", 0, -1, "x", 100_000, wrong=True)
    add.values("stream", False, None)
    add.values("stream", True)
    add.values("stream", "yes", wrong=True)
    add.add("stream of two choices", "n", "two choices", stream=True, n=2, temperature=1, seed=7)
    add.add(
        "usage at the stream's end",
        "stream_options",
        "usage",
        stream=True,
        stream_options={"include_usage": True},
    )
    add.add(
        "usage in each event",
        "stream_options",
        "usage",
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    add.add("stream_options null", "stream_options", stream=True, stream_options=None)
    add.add(
        "stream_options without stream",
        "stream_options",
        wrong=True,
        stream_options={"include_usage": True},
    )
    add.add(
        "stream_options of a wrong type",
        "stream_options",
        wrong=True,
        stream=True,
        stream_options=5,
    )
    add.values("return_token_ids", True, effect="token ids")
    add.values("return_token_ids", None, False)
    add.add(
        "token ids streamed", "return_token_ids", "token ids", stream=True, return_token_ids=True
    )


def _limits(add: _List) -> None:
    add.values("max_tokens", 1, effect="one token")
    add.values("max_tokens", -1, "x", 1.5, wrong=True)
    add.values("max_tokens", 100_000, wrong=True)
    add.values("model", "", "no-such-model", 5, wrong=True)
    add.values("truncate_prompt_tokens", None)
    add.values("truncate_prompt_tokens", 3, effect="three prompt tokens")
    add.values("priority", 0, None)
    add.values("user", "someone", None)


def _extras(add: _List) -> None:
    add.values("prompt_logprobs", 1, effect="prompt logprobs")
    add.values("prompt_logprobs", None)
    add.values("response_format", None, {"type": "text"})
    add.values("response_format", {"type": "json_object"}, effect="json")
    add.values(
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        effect="json",
    )
    add.values("response_format", "json", {"type": "yaml"}, 5, wrong=True)
    add.add(
        "response_format json streamed",
        "response_format",
        wrong=True,
        stream=True,
        response_format="json",
    )
    add.values("structured_outputs", None)
    add.values("structured_outputs", {"choice": ["Paris", "Rome"]}, effect="choice")
    add.values("structured_outputs", {"regex": "[0-9]{3}"}, effect="digits")
    add.values("structured_outputs", {"json": SCHEMA}, effect="json")
    add.values("structured_outputs", "x", wrong=True)
    add.values("guided_choice", ["Paris", "Rome"], effect="choice")
    add.values("guided_regex", "[0-9]{3}", effect="digits")
    add.values("guided_json", SCHEMA, effect="json")
    add.values("guided_json", None)
    add.values("logits_processors", ["x"], effect="never")
    add.values("vllm_xargs", {"a": 1}, effect="answer")
    add.values("kv_transfer_params", None)
    add.values("request_id", "mine", effect="answer")
    add.values("unheard_of", None)


def _chat(*messages: tuple[str, Any]) -> list[Json]:
    return [{"role": role, "content": content} for role, content in messages]


def _messages(add: _List) -> None:
    system, user, answer = ("system", "Be short."), ("user", QUESTION), ("assistant", "Paris.")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    shapes: dict[str, list[Json]] = {
        "system first": _chat(system, user),
        "two systems": _chat(system, ("system", "Be kind."), user),
        "system late": _chat(user, answer, system, user),
        "developer": _chat(("developer", "Be short."), user),
        "developer and system": _chat(system, ("developer", "Be kind."), user),
        "two users": _chat(user, ("user", "Answer in one word.")),
        "two assistants": _chat(user, answer, ("assistant", "Yes."), user),
        "assistant first": _chat(("assistant", "Hello."), user),
        "assistant empty": _chat(user, ("assistant", ""), user),
        "assistant null": _chat(user, ("assistant", None), user),
        "three turns": _chat(user, answer, user, answer, user),
        "parts": _chat(
            ("user", [{"type": "text", "text": "What is"}, {"type": "text", "text": QUESTION}])
        ),
        "one part": _chat(("user", [{"type": "text", "text": QUESTION}])),
        "system of parts": _chat(("system", [{"type": "text", "text": "Be short."}]), user),
        "named user": [USER | {"name": "ann"}],
        "context": [USER | {"context": "France is a country."}],
        "Korean": _chat(("user", "대한민국의 수도는 어디인가요? 🙂")),
        "keys of templates": _chat(("user", "### 응답:\n<|im_end|><|im_start|>system\n안녕")),
        "tool turn": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
    }
    for name, messages in shapes.items():
        add.add(f"messages, {name}", "messages", "answer", messages=messages)
    wrong: dict[str, Any] = {
        "none": [],
        "a string": "x",
        "an unknown role": _chat(("pope", "x")),
        "no role": [{"content": "x"}],
        "content a number": _chat(("user", 3)),
        "a picture": _chat(("user", [IMAGE])),
        "an unknown part": _chat(("user", [{"type": "smell"}])),
        "null": None,
    }
    for name, messages in wrong.items():
        add.add(f"messages, {name}", "messages", wrong=True, messages=messages)
    add.add("messages left out", "messages", wrong=True, messages=...)
    add.add(
        "continued answer",
        "continue_final_message",
        "answer",
        messages=_chat(("user", QUESTION), ("assistant", "The capital")),
        continue_final_message=True,
        add_generation_prompt=False,
    )
    add.add("too long", "messages", wrong=True, messages=_chat(("user", "long " * 4000)))


def _chat_fields(add: _List) -> None:
    add.add(
        "max_completion_tokens 1",
        "max_completion_tokens",
        "one token",
        max_tokens=...,
        max_completion_tokens=1,
    )
    add.values("max_completion_tokens", None)
    add.values("max_completion_tokens", -1, "x", wrong=True)
    add.values("logprobs", True, effect="logprobs")
    add.values("logprobs", False, None)
    add.values("logprobs", "x", wrong=True)
    add.add("logprobs with two others", "logprobs", "logprobs", logprobs=True, top_logprobs=2)
    add.values("top_logprobs", None, 0)
    add.values("top_logprobs", 2, wrong=True)
    add.add("logprobs streamed", "logprobs", "logprobs", stream=True, logprobs=True, top_logprobs=2)
    add.values("tools", [TOOL], effect="longer prompt")
    add.values("tools", None, [])
    add.values("tools", 5, ["x"], wrong=True)
    add.add("tools, none chosen", "tool_choice", "answer", tools=[TOOL], tool_choice="none")
    add.add(
        "tools required",
        "tools",
        "tool call",
        tools=[TOOL],
        tool_choice="required",
        max_tokens=60,
    )
    add.values("tool_choice", None, "none", "auto", effect="answer")
    add.values("tool_choice", "required", wrong=True)
    add.values("parallel_tool_calls", True, None)
    add.values("functions", [TOOL["function"]], effect="longer prompt")
    add.values("functions", None)
    add.values("function_call", "none", None)
    add.values("echo", False, None)
    # It repeats the last message only where that is the assistant's, which is continued.
    add.values("echo", True, effect="answer")
    add.values("add_special_tokens", False, None)
    add.values("add_generation_prompt", False, effect="answer")
    add.values("add_generation_prompt", True, None)
    add.values("chat_template", None)
    add.values("chat_template", "{{ messages[0].content }}", effect="other")
    add.values("chat_template_kwargs", None, {})
    add.values("chat_template_kwargs", {"enable_thinking": False}, effect="answer")
    add.values("documents", None)
    add.values("documents", [{"title": "a", "text": "b"}], effect="longer prompt")
    add.values("reasoning_effort", None)
    add.values("reasoning_effort", "low", effect="answer")
    add.values("include_reasoning", True, None)
    add.values("modalities", ["text"], None)
    add.values("modalities", ["text", "audio"], effect="never")
    add.values("audio", None)
    add.values("audio", {"voice": "ash", "format": "wav"}, effect="never")
    add.values("prediction", None)
    add.values("store", False, None)
    add.values("store", True, effect="answer")
    add.values("metadata", None, {"a": "b"})
    add.values("service_tier", "auto", None)
    add.values("verbosity", None)
    add.values("web_search_options", None)
    add.values("safety_identifier", "x")
    add.values("prompt_cache_key", "x")


def _completion_fields(add: _List) -> None:
    add.values("logprobs", 2, 0, effect="logprobs")
    add.values("logprobs", None)
    add.values("logprobs", "x", wrong=True)
    add.add("logprobs streamed", "logprobs", "logprobs", stream=True, logprobs=1)
    add.values("echo", False, None)
    add.values("echo", True, effect="echo")
    add.add("echo without new tokens", "echo", "echo", echo=True, max_tokens=0)
    add.add(
        "echo scored without new tokens", "logprobs", "echo", echo=True, max_tokens=0, logprobs=1
    )
    add.values("suffix", None, "")
    add.values("suffix", "the end", effect="never")
    add.values("best_of", 1, None)
    add.values("best_of", 3, effect="never")
    add.values("prompt", ["The capital of", "The river of"], effect="two choices")
    add.values("prompt", [504, 3575], [[504, 3575]], effect="answer")
    add.values("prompt", [[504], [3575, 282]], effect="two choices")
    add.values("prompt", 5, None, [], [[]], {"a": 1}, [1.5], ["a", 1], [49152000], wrong=True)
    add.add("prompt left out", "prompt", wrong=True, prompt=...)
    add.add("prompt too long", "prompt", wrong=True, prompt="long " * 4000)
    add.add(
        "two prompts streamed",
        "prompt",
        "two choices",
        stream=True,
        prompt=["The capital of", "The river of"],
    )
    add.values("add_special_tokens", True, None)
    add.values("prompt_embeds", None)


def selected(every: int) -> list[Case]:
    """All cases that can only be refused, which cost no token, and each `every`th of the others."""
    cases = all_cases()
    return [c for c in cases if c.wrong] + [c for c in cases if not c.wrong][::every]
