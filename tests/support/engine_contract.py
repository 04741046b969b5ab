"""What every engine must do on the wire, as checks that run against any base URL.

The scripted engine, the transformers engine and a real vLLM pass the same list:

    @pytest.mark.parametrize("check", CHECKS)
    async def test_contract(check): await check(url, model)

Each check is an async function of (base_url, model, api_key=None) and raises AssertionError. They
ask greedily for a few tokens only, so that a model on a CPU can answer them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

Json = Any
Check = Callable[..., Awaitable[None]]

TOKENS = 12
MESSAGES = [{"role": "user", "content": "한국의 수도는 어디인가요? 한 문장으로 답하세요. 🙂"}]
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}


@asynccontextmanager
async def _client(base_url: str, api_key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(base_url, headers=headers, timeout=timeout) as client:
        yield client


def _chat(model: str, **fields: Any) -> Json:
    base = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": TOKENS}
    return base | fields


def _completion(model: str, prompt: Any, **fields: Any) -> Json:
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS} | fields


async def _post(client: aiohttp.ClientSession, path: str, body: Json, status: int = 200) -> Json:
    async with client.post(path, json=body) as response:
        text = await response.text()
        assert response.status == status, f"{path}: {response.status} {text}"
        return json.loads(text)


async def _events(client: aiohttp.ClientSession, path: str, body: Json) -> list[Json]:
    """Events of a stream; its framing is part of the check."""
    async with client.post(path, json=body | {"stream": True}) as response:
        text = (await response.read()).decode()
        assert response.status == 200, text
        assert response.content_type == "text/event-stream"
    assert text.endswith("data: [DONE]\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def _deltas(events: list[Json], index: int = 0) -> list[Json]:
    choices = [choice for event in events for choice in event["choices"]]
    return [choice for choice in choices if choice["index"] == index]


def _said(choices: list[Json]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def _is_error(body: Json, status: int) -> None:
    assert set(body) == {"error"}
    assert isinstance(body["error"]["message"], str)
    assert isinstance(body["error"]["type"], str)
    assert "param" in body["error"]
    assert body["error"]["code"] == status


async def health_answers(base_url: str, model: str, api_key: str | None = None) -> None:
    """GET /health is 200, without a key."""
    async with _client(base_url, None) as client, client.get("/health") as response:
        assert response.status == 200


async def models_are_listed(base_url: str, model: str, api_key: str | None = None) -> None:
    """GET /v1/models names the served model and its longest context."""
    async with _client(base_url, api_key) as client, client.get("/v1/models") as response:
        body = await response.json()
    assert body["object"] == "list"
    card = next(card for card in body["data"] if card["id"] == model)
    assert card["object"] == "model"
    assert isinstance(card["created"], int)
    assert card["max_model_len"] > 0


async def chat_answers_whole(base_url: str, model: str, api_key: str | None = None) -> None:
    """A chat answer has OpenAI's body: one choice, a message, a reason, usage that adds up."""
    async with _client(base_url, api_key) as client:
        body = await _post(client, "/v1/chat/completions", _chat(model))
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == model
    assert isinstance(body["created"], int)
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in {"stop", "length"}
    counts = body["usage"]
    assert set(counts) >= USAGE
    assert counts["prompt_tokens"] + counts["completion_tokens"] == counts["total_tokens"]
    assert 0 < counts["completion_tokens"] <= TOKENS


async def chat_streams_in_order(base_url: str, model: str, api_key: str | None = None) -> None:
    """Role first, then content, then one finish, then usage, then [DONE], all of one identity."""
    asked = _chat(model, stream_options={"include_usage": True})
    async with _client(base_url, api_key) as client:
        events = await _events(client, "/v1/chat/completions", asked)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["model"] for event in events} == {model}
    assert len({(event["id"], event["created"]) for event in events}) == 1
    assert events[0]["id"].startswith("chatcmpl-")
    choices = _deltas(events)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all({"index", "delta", "logprobs", "finish_reason"} <= set(c) for c in choices)
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert choices[-1]["finish_reason"] in {"stop", "length"}
    assert events[-1]["choices"] == []
    assert set(events[-1]["usage"]) >= USAGE
    assert all(event.get("usage") is None for event in events[:-1])


async def chat_stream_equals_whole(base_url: str, model: str, api_key: str | None = None) -> None:
    """Concatenated deltas, reason and usage equal those of the answer that is not streamed."""
    asked = _chat(model)
    async with _client(base_url, api_key) as client:
        whole = await _post(client, "/v1/chat/completions", asked)
        options = {"stream_options": {"include_usage": True}}
        events = await _events(client, "/v1/chat/completions", asked | options)
    choices = _deltas(events)
    assert _said(choices) == whole["choices"][0]["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert {k: events[-1]["usage"][k] for k in USAGE} == {k: whole["usage"][k] for k in USAGE}
    assert all("\ufffd" not in choice["delta"]["content"] for choice in choices[:-1])


async def usage_comes_only_when_asked(
    base_url: str, model: str, api_key: str | None = None
) -> None:
    """Without stream_options every event has a choice and none has usage."""
    async with _client(base_url, api_key) as client:
        events = await _events(client, "/v1/chat/completions", _chat(model, max_tokens=2))
    assert all(event["choices"] and event.get("usage") is None for event in events)


async def one_token_is_one_token(base_url: str, model: str, api_key: str | None = None) -> None:
    """max_tokens 1 makes exactly one token; max_completion_tokens means the same."""
    async with _client(base_url, api_key) as client:
        for name in ("max_tokens", "max_completion_tokens"):
            asked = {"model": model, "messages": MESSAGES, "temperature": 0, name: 1}
            body = await _post(client, "/v1/chat/completions", asked)
            assert body["usage"]["completion_tokens"] == 1
            assert body["choices"][0]["finish_reason"] in {"length", "stop"}


async def several_choices(base_url: str, model: str, api_key: str | None = None) -> None:
    """n=2 gives two choices, whole and streamed, each with its role, its text and its end."""
    asked = _chat(model, n=2, temperature=0.7, seed=1)
    async with _client(base_url, api_key) as client:
        body = await _post(client, "/v1/chat/completions", asked)
        events = await _events(client, "/v1/chat/completions", asked)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for index in (0, 1):
        choices = _deltas(events, index)
        assert choices[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] is None for c in choices].count(False) == 1


async def stop_strings_stop(base_url: str, model: str, api_key: str | None = None) -> None:
    """A stop string ends the answer before itself, whole and streamed, as text or as a list."""
    async with _client(base_url, api_key) as client:
        whole = await _post(client, "/v1/chat/completions", _chat(model))
        text = whole["choices"][0]["message"]["content"].rstrip("\ufffd")
        stop = text[len(text) // 2 :][:2]
        expected = text[: text.index(stop)]
        for given in (stop, ["never said", stop]):
            asked = _chat(model, stop=given)
            body = await _post(client, "/v1/chat/completions", asked)
            assert body["choices"][0]["message"]["content"] == expected
            assert body["choices"][0]["finish_reason"] == "stop"
            choices = _deltas(await _events(client, "/v1/chat/completions", asked))
            assert _said(choices) == expected
            assert choices[-1]["finish_reason"] == "stop"


async def completions_take_four_prompts(
    base_url: str, model: str, api_key: str | None = None
) -> None:
    """A prompt may be text, ids, or a list of either; equal prompts give equal answers."""
    text = "The capital of Korea is"
    async with _client(base_url, api_key) as client:
        ids = (await _post(client, "/tokenize", {"model": model, "prompt": text}))["tokens"]
        answers = set()
        for prompt in (text, [text], ids, [ids], [text, text]):
            body = await _post(client, "/v1/completions", _completion(model, prompt))
            assert body["object"] == "text_completion"
            assert body["id"].startswith("cmpl-")
            assert set(body["usage"]) >= USAGE
            answers |= {choice["text"] for choice in body["choices"]}
            assert len(body["choices"]) == (2 if prompt == [text, text] else 1)
        events = await _events(client, "/v1/completions", _completion(model, text))
    streamed = "".join(choice["text"] for choice in _deltas(events))
    assert answers == {streamed}
    assert {event["object"] for event in events} == {"text_completion"}
    assert _deltas(events)[-1]["finish_reason"] in {"stop", "length"}


async def token_ids_resume_an_answer(base_url: str, model: str, api_key: str | None = None) -> None:
    """return_token_ids: prompt ids in the first event, each token once; half of them bring the rest.

    This is what lets the API go on with a broken stream on another engine.
    """
    asked = _chat(model, return_token_ids=True, stream_options={"include_usage": True})
    async with _client(base_url, api_key) as client:
        events = await _events(client, "/v1/chat/completions", asked)
        prompt = events[0]["prompt_token_ids"]
        made = [i for choice in _deltas(events)[1:] for i in choice["token_ids"] or []]
        counts = events[-1]["usage"]
        assert (len(prompt), len(made)) == (counts["prompt_tokens"], counts["completion_tokens"])
        plain = await _post(client, "/detokenize", {"model": model, "tokens": made})
        assert _said(_deltas(events)).strip() in plain["prompt"]
        half = len(made) // 2
        rest = _completion(model, prompt + made[:half], max_tokens=TOKENS - half)
        resumed = await _events(client, "/v1/completions", rest | {"return_token_ids": True})
    assert [i for choice in _deltas(resumed) for i in choice["token_ids"] or []] == made[half:]


async def tokenizer_agrees(base_url: str, model: str, api_key: str | None = None) -> None:
    """/tokenize counts a chat as the chat itself does; /detokenize gives Korean text back."""
    text = "안녕하세요, 세계! 🙂 뷁"
    async with _client(base_url, api_key) as client:
        asked = {"model": model, "messages": MESSAGES, "add_generation_prompt": True}
        counted = await _post(client, "/tokenize", asked)
        answered = await _post(client, "/v1/chat/completions", _chat(model, max_tokens=1))
        plain = {"model": model, "prompt": text, "add_special_tokens": False}
        tokens = (await _post(client, "/tokenize", plain))["tokens"]
        back = await _post(client, "/detokenize", {"model": model, "tokens": tokens})
    assert counted["count"] == len(counted["tokens"]) == answered["usage"]["prompt_tokens"]
    assert counted["max_model_len"] > 0
    assert back["prompt"] == text


async def request_id_is_kept(base_url: str, model: str, api_key: str | None = None) -> None:
    """X-Request-Id becomes the id of the answer."""
    headers = {"X-Request-Id": "contract-1"}
    async with _client(base_url, api_key) as client:
        for path, body, prefix in (
            ("/v1/chat/completions", _chat(model, max_tokens=1), "chatcmpl-"),
            ("/v1/completions", _completion(model, "a", max_tokens=1), "cmpl-"),
        ):
            async with client.post(path, json=body, headers=headers) as response:
                answer = await response.json()
            assert answer["id"].startswith(prefix + "contract-1")


async def errors_have_one_shape(base_url: str, model: str, api_key: str | None = None) -> None:
    """Unknown model 404, bad value 400, too long a prompt 400, broken JSON 400: one envelope."""
    async with _client(base_url, api_key) as client:
        path = "/v1/chat/completions"
        _is_error(await _post(client, path, _chat("no-such-model"), 404), 404)
        _is_error(await _post(client, path, _chat(model, temperature=-1), 400), 400)
        async with client.get("/v1/models") as response:
            longest = (await response.json())["data"][0]["max_model_len"]
        endless = _completion(model, [1] * (longest + 1))
        _is_error(await _post(client, "/v1/completions", endless, 400), 400)
        headers = {"Content-Type": "application/json"}
        async with client.post(path, data=b"{", headers=headers) as response:
            assert response.status == 400
            _is_error(await response.json(), 400)


async def load_and_metrics_answer(base_url: str, model: str, api_key: str | None = None) -> None:
    """/load is a number of requests; /metrics is Prometheus text."""
    async with _client(base_url, api_key) as client:
        async with client.get("/load") as response:
            assert isinstance((await response.json())["server_load"], int)
        async with client.get("/metrics") as response:
            assert response.status == 200
            assert "# TYPE" in await response.text()


async def a_gone_client_frees_the_engine(
    base_url: str, model: str, api_key: str | None = None
) -> None:
    """When the client leaves a long stream, /load is back at 0 within ten seconds."""
    asked = _chat(model, max_tokens=512, stream=True, ignore_eos=True)
    async with _client(base_url, api_key) as client:
        response = await client.post("/v1/chat/completions", json=asked)
        await response.content.readline()
        response.close()
        async with asyncio.timeout(10):
            while (await (await client.get("/load")).json())["server_load"]:
                await asyncio.sleep(0.1)


async def a_key_is_asked_for(base_url: str, model: str, api_key: str) -> None:
    """With VLLM_API_KEY set, /v1/* is 401 without it and with a wrong one, 200 with it.

    Not in CHECKS: it needs an engine that was started with a key.
    """
    for key, status in ((None, 401), ("wrong", 401), (api_key, 200)):
        async with _client(base_url, key) as client, client.get("/v1/models") as response:
            assert response.status == status


CHECKS: tuple[Check, ...] = (
    health_answers,
    models_are_listed,
    chat_answers_whole,
    chat_streams_in_order,
    chat_stream_equals_whole,
    usage_comes_only_when_asked,
    one_token_is_one_token,
    several_choices,
    stop_strings_stop,
    completions_take_four_prompts,
    token_ids_resume_an_answer,
    tokenizer_agrees,
    request_id_is_kept,
    errors_have_one_shape,
    load_and_metrics_answer,
    a_gone_client_frees_the_engine,
)
