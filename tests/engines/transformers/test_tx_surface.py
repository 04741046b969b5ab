"""The surface over HTTP, with the real OpenAI client: scores, forms, tools, limits, repeated requests."""

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from kodolly.engines.transformers.text import Text

from .conftest import NAME, EngineProcess
from .test_tx_server import ASK, KEY, post

Json = dict[str, Any]
GREEDY: Json = {"model": NAME, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "날씨",
        "description": "날씨를 봅니다",
        "parameters": {
            "type": "object",
            "properties": {"도시": {"type": "string", "maxLength": 6}, "일": {"enum": [1, 2]}},
            "required": ["도시", "일"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    """What an answer is made to be."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=8)
    mood: Literal["좋음", "나쁨"]
    ages: list[int] = Field(max_length=2)


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=engine.url + "/v1", api_key=KEY, max_retries=0
    ) as opened:
        yield opened


async def test_the_echo_is_scored_as_the_model_scores_it(
    engine: EngineProcess, llama: Path
) -> None:
    """Each token of a prompt has the log probability that transformers gives it."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [5, 300, 400, 17, 320]
    body = GREEDY | {"prompt": [prompt, prompt[:3]], "echo": True, "logprobs": 2, "max_tokens": 0}
    code, answer = await post(engine, "/v1/completions", body)
    assert code == 200
    network: Any = AutoModelForCausalLM.from_pretrained(str(llama), dtype=torch.float32)
    with torch.inference_mode():
        values = torch.log_softmax(network(torch.tensor([prompt])).logits[0], dim=-1)
    expected = [float(values[at, token]) for at, token in enumerate(prompt[1:])]
    for choice, size in zip(answer["choices"], (5, 3), strict=True):
        scored = choice["logprobs"]
        assert scored["token_logprobs"][0] is None
        assert scored["token_logprobs"][1:] == pytest.approx(expected[: size - 1], abs=1e-3)
        assert "".join(scored["tokens"]) == choice["text"].rstrip("\ufffd")  # half a character
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("max_tokens", [1, 5])
async def test_an_evaluation_reads_the_echo(max_tokens: int, engine: EngineProcess) -> None:
    """As lm-eval does: prompts of token ids, scored with the answer's tokens behind them."""
    prompts = [[5, 300, 400], [7, 8, 9, 10]]
    body = GREEDY | {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    _, answer = await post(engine, "/v1/completions", body)
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        scored = choice["logprobs"]
        lengths = {len(values) for values in scored.values()}
        assert lengths == {len(prompt) + max_tokens}
        assert all(value < 0 for value in scored["token_logprobs"][1:])
        for token, top in zip(scored["tokens"][-max_tokens:], scored["top_logprobs"][-max_tokens:]):  # noqa: B905
            assert token == max(top, key=top.get)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_a_stream_has_the_scores_of_the_whole(path: str, engine: EngineProcess) -> None:
    """Joined, the events have the text, tokens and log probabilities of the answer in one piece."""
    chat = path.startswith("chat")
    prompt: Json = {"messages": ASK} if chat else {"prompt": "가나"}
    body = GREEDY | {"max_tokens": 12} | prompt
    body |= {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2, "echo": True}
    _, whole = await post(engine, "/v1/" + path, body)
    parts = await events(engine, "/v1/" + path, body)
    name = "content" if chat else "tokens"
    names = (name,) if chat else ("tokens", "token_logprobs", "text_offset", "top_logprobs")
    for each in names:
        joined = [value for part in parts if part["logprobs"] for value in part["logprobs"][each]]
        assert joined == whole["choices"][0]["logprobs"][each]
    texts = [part["delta"].get("content") or "" if chat else part["text"] for part in parts]
    choice = whole["choices"][0]
    assert "".join(texts) == (choice["message"]["content"] if chat else choice["text"])


async def events(engine: EngineProcess, path: str, body: Json) -> list[Json]:
    """The choices of a stream's events."""
    import aiohttp

    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(engine.url, headers=headers) as session,
        session.post(path, json=body | {"stream": True}) as answer,
    ):
        assert answer.status == 200
        lines = (await answer.text()).split("\n\n")
    frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [choice for frame in frames for choice in frame["choices"]]


async def test_prompt_logprobs(engine: EngineProcess) -> None:
    """vLLM's field, beside an answer that is not scored."""
    body = GREEDY | {"prompt": [5, 300, 400], "prompt_logprobs": 1, "max_tokens": 1}
    _, answer = await post(engine, "/v1/completions", body)
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [next(iter(each)) for each in rest] == ["300", "400"]
    assert all(min(entry["rank"] for entry in each.values()) == 1 for each in rest)
    chat = GREEDY | {"messages": ASK, "prompt_logprobs": 0, "max_tokens": 1}
    _, answer = await post(engine, "/v1/chat/completions", chat)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


async def test_a_whole_answer_has_vllms_fields(engine: EngineProcess) -> None:
    """What was not asked for is null, so a client of vLLM can read it unasked."""
    body = GREEDY | {"max_tokens": 1}
    _, chat = await post(engine, "/v1/chat/completions", body | {"messages": ASK})
    _, completion = await post(engine, "/v1/completions", body | {"prompt": [5, 300]})
    for holder in (chat, completion["choices"][0]):
        assert holder["prompt_logprobs"] is holder["prompt_token_ids"] is None
    for answer in (chat, completion):
        assert answer["choices"][0]["token_ids"] is answer["choices"][0]["logprobs"] is None
    message = chat["choices"][0]["message"]
    assert message["refusal"] is message["reasoning"] is None


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_an_answer_parses_as_a_model_of_pydantic(
    client: openai.AsyncOpenAI, seed: int
) -> None:
    """What a client's own `parse` sends, from a model that writes nothing but noise."""
    common: Json = {"model": NAME, "messages": ASK, "max_tokens": 400, "seed": seed}
    parsed = await client.chat.completions.parse(**common, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    assert parsed.choices[0].finish_reason == "stop"


async def test_several_answers_in_one_form(engine: EngineProcess) -> None:
    """n answers, each at its own place in the same grammar; in completions too."""
    body = {"model": NAME, "prompt": "가", "n": 4, "seed": 1, "max_tokens": 60}
    form = {"structured_outputs": {"regex": "[가나다]{3}[0-9]{2}"}}
    _, answer = await post(engine, "/v1/completions", body | form)
    texts = [choice["text"] for choice in answer["choices"]]
    assert all(len(text) == 5 and text[3:].isdigit() for text in texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "날씨"}}, "stop")],
)
async def test_a_demanded_call_comes_whole_and_streamed(
    choice: Any, reason: str, engine: EngineProcess
) -> None:
    """With arguments of the tool's schema, id and name first; a stream's pieces are the same call."""
    body = GREEDY | {"messages": ASK, "tools": [TOOL], "tool_choice": choice, "max_tokens": 300}
    body |= {"parallel_tool_calls": False}
    _, whole = await post(engine, "/v1/chat/completions", body)
    (made,) = whole["choices"]
    (call,) = made["message"]["tool_calls"]
    assert (made["finish_reason"], made["message"]["content"]) == (reason, None)
    assert (call["type"], call["function"]["name"]) == ("function", "날씨")
    arguments = json.loads(call["function"]["arguments"])
    assert arguments.keys() == {"도시", "일"}
    assert arguments["일"] in (1, 2)

    parts = await events(engine, "/v1/chat/completions", body)
    calls = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert calls[0]["id"] != call["id"]
    assert calls[0]["function"]["name"] == "날씨"
    assert "".join(each["function"]["arguments"] for each in calls) == call["function"]["arguments"]
    assert parts[-1]["finish_reason"] == reason
    assert not any(part["delta"].get("content") for part in parts)


async def test_a_conversation_with_tools_goes_on(client: openai.AsyncOpenAI) -> None:
    """The loop of an agent: a call, its result, and then calls or an answer in a form."""
    messages: list[Any] = [*ASK]
    common: Json = {"model": NAME, "tools": [TOOL], "max_tokens": 200, "seed": 1}
    first = await client.chat.completions.create(
        **common, messages=messages, tool_choice="required", parallel_tool_calls=False
    )
    message = first.choices[0].message
    assert message.tool_calls
    messages.append(message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "맑음"})
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
    for seed in range(4):
        answer = await client.chat.completions.create(
            **common | {"seed": seed}, messages=messages, response_format=form
        )
        choice = answer.choices[0]
        if choice.finish_reason == "tool_calls":
            assert choice.message.tool_calls
        else:
            assert choice.message.content in ("true", "false")


async def test_the_prompt_holds_the_tools(engine: EngineProcess) -> None:
    """Also where none may be called, as in vLLM; /tokenize counts them."""
    counts = []
    for tools in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}):
        body = GREEDY | {"messages": ASK, "max_tokens": 1} | tools
        _, answer = await post(engine, "/v1/chat/completions", body)
        counts.append(answer["usage"]["prompt_tokens"])
    assert counts[0] < counts[1] == counts[2]
    _, tokens = await post(engine, "/tokenize", {"messages": ASK, "tools": [TOOL]})
    assert tokens["count"] == counts[1]


def test_which_templates_have_a_place_for_tools(llama: Path) -> None:
    """One that does not name them has none; nor one whose calls are no JSON."""
    assert not Text(llama).reads_calls
    for source, expected in (
        ("{{ tools }}<tool_call>", True),
        ("{{ tools }}", False),
        ("{{ tools }}<tool_call><function=f>", False),
    ):
        assert Text(llama, source).reads_calls is expected


async def test_only_allowed_tokens_come_and_no_bad_words(engine: EngineProcess) -> None:
    """A list of allowed tokens, and words that may not come, in the middle of a text either."""
    words = []
    for word in ("다", "는"):
        _, tokens = await post(engine, "/tokenize", {"prompt": word})
        words += tokens["tokens"]
    body: Json = {"model": NAME, "prompt": "가", "max_tokens": 30, "allowed_token_ids": words}
    for bad, expected in (([], set(words)), (["다"], {words[1]})):
        change = {"bad_words": bad, "seed": 1, "return_token_ids": True}
        _, answer = await post(engine, "/v1/completions", body | change)
        assert set(answer["choices"][0]["token_ids"]) == expected


async def test_values_that_contradict_each_other_are_the_requests_own_fault(
    engine: EngineProcess,
) -> None:
    """A form that the allowed tokens cannot write is a 400, whole and in a stream."""
    body = GREEDY | {"prompt": "가", "structured_outputs": {"choice": ["가"]}}
    code, answer = await post(engine, "/v1/completions", body | {"allowed_token_ids": [0]})
    assert (code, answer["error"]["code"]) == (400, 400)
    code, _ = await post(engine, "/v1/completions", GREEDY | {"prompt": "가", "max_tokens": 1})
    assert code == 200


async def test_a_prompt_is_cut_to_its_last_tokens(engine: EngineProcess) -> None:
    """truncate_prompt_tokens keeps the end, or the beginning where that is asked for."""
    body = GREEDY | {"prompt": [5, 6, 7], "max_tokens": 1, "return_token_ids": True}
    for change, expected in (
        ({"truncate_prompt_tokens": 2}, [6, 7]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [5, 6]),
        ({"truncate_prompt_tokens": -1}, [5, 6, 7]),
        ({"truncate_prompt_tokens": 9}, [5, 6, 7]),
    ):
        _, answer = await post(engine, "/v1/completions", body | change)
        assert answer["choices"][0]["prompt_token_ids"] == expected


async def test_special_tokens_are_shown_where_asked_for(engine: EngineProcess) -> None:
    """skip_special_tokens false."""
    body = GREEDY | {"prompt": "가", "max_tokens": 2, "allowed_token_ids": [1]}
    for skips, expected in ((True, ""), (False, "<|im_start|>" * 2)):
        _, answer = await post(engine, "/v1/completions", body | {"skip_special_tokens": skips})
        assert answer["choices"][0]["text"] == expected


async def test_an_assistants_text_is_echoed(engine: EngineProcess) -> None:
    """In a chat, the beginning that the answer goes on with comes with it."""
    messages = [*ASK, {"role": "assistant", "content": "서울"}]
    body = GREEDY | {"messages": messages, "max_tokens": 3, "echo": True}
    body |= {"continue_final_message": True, "add_generation_prompt": False}
    _, whole = await post(engine, "/v1/chat/completions", body)
    assert whole["choices"][0]["message"]["content"].startswith("서울")
    parts = await events(engine, "/v1/chat/completions", body)
    text = "".join(part["delta"].get("content") or "" for part in parts)
    assert text == whole["choices"][0]["message"]["content"]


async def test_tokens_by_their_spelling(engine: EngineProcess) -> None:
    """/tokenize with return_token_strs; without it the field is null, as in vLLM."""
    _, answer = await post(engine, "/tokenize", {"prompt": "서울", "return_token_strs": True})
    assert len(answer["token_strs"]) == answer["count"]
    _, answer = await post(engine, "/tokenize", {"messages": ASK})
    assert answer["token_strs"] is None
    both = {"messages": ASK, "continue_final_message": True, "add_generation_prompt": True}
    code, answer = await post(engine, "/tokenize", both)
    assert (code, answer["error"]["param"]) == (400, "continue_final_message")


FORMS: dict[str, Json] = {
    "text": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": Person.model_json_schema()}}},
    "tools": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "penalties": {"presence_penalty": 1, "repetition_penalty": 1.2, "bad_words": ["가"]},
    "stop": {"stop": ["다"], "min_tokens": 8},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_a_repeated_request_goes_on_where_the_first_one_was(
    form: Json, engine: EngineProcess
) -> None:
    """With the tokens that the client has, the same seeded request ends as it did; another seed may end
    otherwise, and is still of the form."""
    body = {"model": NAME, "messages": ASK, "max_tokens": 80, "seed": 5, "return_token_ids": True}
    body |= {"logprobs": True}
    _, first = await post(engine, "/v1/chat/completions", body | form)
    (whole,) = first["choices"]
    ids = whole["token_ids"]
    for count in (1, len(ids) // 2, len(ids)):
        replay: Json = {"vllm_xargs": {"kd_ids": ids[:count]}}
        _, again = await post(engine, "/v1/chat/completions", body | form | replay)
        (choice,) = again["choices"]
        assert choice["token_ids"] == ids
        assert choice["finish_reason"] == whole["finish_reason"]
        scores = [
            [each["logprob"] for each in side["logprobs"]["content"]] for side in (choice, whole)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
        _, other = await post(engine, "/v1/chat/completions", body | form | replay | {"seed": 6})
        (choice,) = other["choices"]
        assert choice["token_ids"][:count] == ids[:count]
        if "response_format" in form and choice["finish_reason"] == "stop":
            Person.model_validate_json(choice["message"]["content"])
        if "tools" in form and choice["finish_reason"] == "tool_calls":
            (call,) = choice["message"]["tool_calls"]
            assert math.isfinite(json.loads(call["function"]["arguments"])["일"])
