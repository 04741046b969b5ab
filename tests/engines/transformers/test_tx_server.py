"""The engine process over HTTP: the contract, the real OpenAI client, refusals, aborts, signals."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from support.engine_contract import CHECKS, Check, a_key_is_asked_for
from yarl import URL

from kodolly.engines.transformers.__main__ import main as start_engine

from .conftest import NAME, EngineProcess, Start, get, healths_until_ready, status

KEY = "secret"
ASK = [{"role": "user", "content": "한국의 수도는 어디인가요? 🙂"}]


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=engine.url + "/v1", api_key=KEY, max_retries=0
    ) as opened:
        yield opened


async def post(engine: EngineProcess, path: str, body: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(engine.url, headers=headers) as session,
        session.post(path, json=body) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_engine_keeps_the_contract(check: Check, engine: EngineProcess) -> None:
    """Each check of the engine contract holds."""
    await check(engine.url, NAME, KEY)


async def test_a_key_is_asked_for(engine: EngineProcess) -> None:
    """With a key set, /v1 is 401 without it."""
    await a_key_is_asked_for(engine.url, NAME, KEY)


EVERY_PATH = [
    *("/load", "/metrics", "/tokenize", "/detokenize", "/v1/models", "/v1/completions"),
    *(
        "/v1/chat/completions",
        "/",
        "/nowhere",
        "/health/",
        "//health",
        "/Health",
        "/health/../load",
    ),
]


@pytest.mark.parametrize("path", EVERY_PATH)
async def test_nothing_but_health_is_told_without_the_key(engine: EngineProcess, path: str) -> None:
    """Not how much it has to do, not what a text's tokens are, and not which paths there are."""
    async with aiohttp.ClientSession() as session:
        for method in ("GET", "POST", "OPTIONS", "DELETE"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
                url = URL(engine.url + path, encoded=True)
                async with session.request(method, url, json={}, headers=headers) as answer:
                    assert answer.status == 401, (method, path)
        async with session.get(engine.url + "/health") as answer:
            assert answer.status == 200


async def test_the_engine_admits_its_own_hosts_alone(engine: EngineProcess) -> None:
    """Under a name that was rebound not even its health is told; nor to a page of another site."""
    for headers, expected in (
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "engine.box:22002"}, 200),
    ):
        async with (
            aiohttp.ClientSession() as session,
            session.get(engine.url + "/health", headers=headers) as answer,
        ):
            assert answer.status == expected, headers


async def test_only_a_body_of_json_is_read(engine: EngineProcess) -> None:
    """A form and a plain text are what any page may send."""
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
    ):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            async with (
                aiohttp.ClientSession() as session,
                session.post(engine.url + path, data=b"{}", headers=headers) as answer,
            ):
                assert answer.status == 415
                assert "application/json" in await answer.text()


def test_an_engine_that_others_reach_needs_a_key(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without one it starts beyond loopback only if told to."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr("kodolly.logs.configure", lambda *_: None)
    assert start_engine(["--model", str(llama), "--host", "0.0.0.0"]) == 1
    assert "VLLM_API_KEY" in caplog.text
    monkeypatch.setattr("kodolly.engines.transformers.__main__._serve", lambda *_: 7)
    assert start_engine(["--model", str(llama), "--host", "0.0.0.0", "--open"]) == 7


async def test_the_real_client_streams_what_it_gets_whole(client: openai.AsyncOpenAI) -> None:
    """The deltas of eight streams at once, joined, equal the whole answer asked for alone."""
    common: dict[str, Any] = {"model": NAME, "messages": ASK, "temperature": 0, "max_tokens": 60}
    whole = await client.chat.completions.create(**common)

    async def streamed() -> str:
        stream = await client.chat.completions.create(**common, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*(streamed() for _ in range(8)))
    assert set(texts) == {whole.choices[0].message.content}


async def test_a_stop_string_across_tokens_never_leaks(client: openai.AsyncOpenAI) -> None:
    """A stop string that begins inside one token and ends inside another is cut whole."""
    common: dict[str, Any] = {"model": NAME, "messages": ASK, "temperature": 0, "max_tokens": 60}
    stream = await client.chat.completions.create(**common, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    text = "".join(pieces)
    long = [(a, b) for a, b in itertools.pairwise(pieces) if len(a) > 1 < len(b)]
    left, right = long[0]
    stop = left[-1] + right[0]
    stream = await client.chat.completions.create(**common, stream=True, stop=["none", stop])
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(choice.delta.content or "" for choice in choices) == text.split(stop)[0]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("chat/completions", "temperature", 3),
        ("chat/completions", "top_p", 0),
        ("chat/completions", "n", 0),
        ("chat/completions", "max_tokens", 0),
        ("chat/completions", "seed", "one"),
        ("chat/completions", "stop", ["a"] * 17),
        ("chat/completions", "stop", ""),
        ("chat/completions", "top_logprobs", 2),
        ("chat/completions", "prompt_logprobs", 21),
        ("chat/completions", "allowed_token_ids", [100000]),
        ("chat/completions", "tool_choice", "required"),
        ("chat/completions", "tools", [{"type": "function"}]),
        ("chat/completions", "response_format", {"type": "xml"}),
        ("chat/completions", "structured_outputs", {"regex": "("}),
        ("chat/completions", "messages", []),
        ("chat/completions", "messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("chat/completions", "logit_bias", {"100000": 1}),
        ("chat/completions", "min_tokens", 9),
        ("completions", "max_tokens", 0),
        ("completions", "prompt", []),
        ("completions", "prompt", [100000]),
        ("completions", "prompt", None),
    ],
)
async def test_a_bad_value_names_its_field(
    path: str, field: str, value: Any, engine: EngineProcess
) -> None:
    """A value that can not be used is a 400 whose param is the field."""
    base: dict[str, Any] = {"model": NAME, "max_tokens": 4, "unknown_field": 1}
    base |= {"messages": ASK} if path.startswith("chat") else {"prompt": "가"}
    code, body = await post(engine, "/v1/" + path, base | {field: value})
    assert code == 400
    assert body["error"]["param"].startswith(field)
    assert field in body["error"]["message"]


async def test_prompt_and_answer_must_fit(engine: EngineProcess) -> None:
    """More tokens than the context holds are refused with the number it holds."""
    body = {"model": NAME, "messages": ASK, "max_tokens": 2048}
    code, answer = await post(engine, "/v1/chat/completions", body)
    assert code == 400
    assert "maximum context length is 2048" in answer["error"]["message"]


async def test_a_message_can_be_gone_on_with(engine: EngineProcess) -> None:
    """continue_final_message leaves the last turn open."""
    messages = [*ASK, {"role": "assistant", "content": "서울"}]
    body = {"model": NAME, "messages": messages, "continue_final_message": True}
    _, answer = await post(engine, "/tokenize", body | {"add_generation_prompt": False})
    _, back = await post(engine, "/detokenize", {"model": NAME, "tokens": answer["tokens"]})
    assert back["prompt"].endswith("<|im_start|>assistant\n서울")


async def test_penalties_and_seeds_reach_the_model(client: openai.AsyncOpenAI) -> None:
    """Sampled with one seed twice the answer is the same, with another it is not."""
    common: dict[str, Any] = {"model": NAME, "messages": ASK, "max_tokens": 20, "top_p": 0.9}
    texts = [
        (await client.chat.completions.create(**common, seed=seed)).choices[0].message.content
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_a_full_engine_refuses_and_recovers(engine: EngineProcess) -> None:
    """Over four rows and four waiting, a request is 503 with Retry-After; those in are served."""
    body = {"model": NAME, "prompt": "가", "max_tokens": 300, "n": 8, "ignore_eos": True}
    first = asyncio.ensure_future(post(engine, "/v1/completions", body))
    while json.loads(await asyncio.to_thread(get, engine.url + "/load", KEY))["server_load"] < 8:
        assert not first.done()
        await asyncio.sleep(0.01)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(engine.url, headers=headers) as session:
        small = {"model": NAME, "prompt": "가", "max_tokens": 1, "n": 8}
        async with session.post("/v1/completions", json=small) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    code, served = await first
    assert code == 200
    assert served["usage"]["completion_tokens"] == 8 * 300


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gone_client_is_aborted_and_logged(stream: bool, engine: EngineProcess) -> None:
    """When the client leaves, the row is free, the counter counts and the log says so."""
    before = await engine.metric("aborted_total")
    body = {"model": NAME, "prompt": "가", "max_tokens": 2000, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": f"gone-{stream}"}
    async with aiohttp.ClientSession(engine.url, headers=headers) as session:
        asking = asyncio.ensure_future(
            session.post("/v1/completions", json=body | {"stream": stream})
        )
        async with asyncio.timeout(20):
            while await engine.metric("requests_running") == 0:
                await asyncio.sleep(0.01)
        asking.cancel()
        (answer,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(answer, aiohttp.ClientResponse):
            answer.close()
    async with asyncio.timeout(20):
        while await engine.metric("aborted_total") == before:
            await asyncio.sleep(0.01)
    assert await engine.metric("requests_running") == 0
    assert f"aborted request cmpl-gone-{stream} after" in engine.log.read_text()


@pytest.mark.stack
async def test_from_loading_to_a_cut_stream(start: Start, neox: Path) -> None:
    """/health is 503 while a GPT-NeoX loads, then 200; on SIGTERM a stream that outlasts the
    drain time is cut, and the process ends with 0."""
    engine = start(neox, "--drain", "1")
    seen = await asyncio.to_thread(healths_until_ready, engine)
    assert seen[0] == 503
    body = {"model": NAME, "prompt": "가", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with (
        aiohttp.ClientSession(engine.url) as session,
        session.post("/v1/completions", json=body) as answer,
    ):
        await answer.content.readline()
        stopped = asyncio.create_task(asyncio.to_thread(engine.stop))
        with contextlib.suppress(aiohttp.ClientError):
            assert b"[DONE]" not in await answer.content.read()
        answer.close()
        assert await stopped == 0


@pytest.mark.stack
def test_sigterm_while_loading_ends_it_with_zero(start: Start, llama: Path) -> None:
    """It can be stopped before it is ready."""
    engine = start(llama)
    while status(engine.url + "/health") != 503:
        assert engine.process.poll() is None, engine.log.read_text()
    assert engine.stop() == 0


@pytest.mark.parametrize("flags", [["--max-model-len", "9999"], ["--chat-template", "missing"]])
def test_what_can_not_be_used_ends_it_with_one_line(
    flags: list[str], start: Start, llama: Path
) -> None:
    """A context over the model's own, or a missing file: exit status 1 and a plain reason."""
    engine = start(llama, *flags)
    assert engine.process.wait(timeout=60) == 1
    text = engine.log.read_text()
    assert "ERROR" in text
    assert "Traceback" not in text
