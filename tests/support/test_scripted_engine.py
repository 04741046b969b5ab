"""The fake itself: what other tests lean on must be true."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.scripted_engine import Script, ScriptedEngine

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "안녕?"}]}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


async def events(client: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[Any]:
    """The decoded events of a stream, without [DONE]; AssertionError if that is missing."""
    async with client.post(url, json=body | {"stream": True}) as response:
        assert response.status == 200
        text = (await response.read()).decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def whatever_comes(response: aiohttp.ClientResponse) -> bytes:
    """All bytes until the stream ends or breaks."""
    received = b""
    with contextlib.suppress(aiohttp.ClientPayloadError):
        async for piece in response.content.iter_any():
            received += piece
    return received


async def until(condition: Any) -> None:
    """Wait until a condition holds; TimeoutError after five seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_split_character_is_held_back_until_it_is_whole() -> None:
    """A token that ends inside a syllable frees no text; the next one frees the syllable."""
    script = Script(tokens=["가", b"\xea\xbf", b"\x88", "끝"])
    assert [step.text for step in script.answer(4).steps] == ["가", "", "꿈", "끝"]
    assert "\ufffd" not in Script().text


@pytest.mark.parametrize("cut", range(len(Script().tokens)))
async def test_ids_of_half_an_answer_bring_the_other_half(
    client: aiohttp.ClientSession, cut: int
) -> None:
    """Prompt ids and the ids sent so far, given to /v1/completions, continue the same answer."""
    script = Script()
    ids = [step.token_id for step in script.answer(10**6).steps[:cut]]
    async with ScriptedEngine(script) as engine:
        body = {"model": "demo", "prompt": [*script.encode("질문"), *ids]}
        async with client.post(engine.url + "/v1/completions", json=body) as response:
            rest = (await response.json())["choices"][0]["text"]
    assert "".join(step.text for step in script.answer(10**6).steps[:cut]) + rest == script.text


@pytest.mark.parametrize("cut", [0, 1, 14, 41, 42, 100])
async def test_a_numbered_answer_goes_on_from_ids_and_repeats_nothing(
    client: aiohttp.ClientSession, cut: int
) -> None:
    """Two prompts get two answers, no window of one looks like another, and ids bring the rest."""
    script = Script(numbered=True, length=120)
    question = script.encode("질문")
    whole = script.answer(10**6, prompt=question)
    ids = [step.token_id for step in whole.steps]
    assert whole.text != script.answer(10**6, prompt=script.encode("물음")).text
    assert len({tuple(ids[at : at + 41]) for at in range(80)}) == 80
    assert script.decode(ids) == whole.text
    async with ScriptedEngine(script) as engine:
        body = {"model": "demo", "prompt": [*question, *ids[:cut]]}
        async with client.post(engine.url + "/v1/completions", json=body) as response:
            rest = (await response.json())["choices"][0]["text"]
    assert "".join(step.text for step in whole.steps[:cut]) + rest == whole.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_every_token_has_a_logprob_when_asked(
    client: aiohttp.ClientSession, path: str
) -> None:
    """Streamed and whole answers give the same value for each token, and none when not asked."""
    chat = path.endswith("chat/completions")
    asked: dict[str, Any] = CHAT | {"logprobs": True} if chat else {"prompt": "질문", "logprobs": 1}

    def values(choices: list[Any]) -> list[float]:
        got = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        if chat:
            return [entry["logprob"] for part in got for entry in part["content"]]
        return [value for part in got for value in part["token_logprobs"]]

    async with ScriptedEngine(Script(length=20)) as engine:
        chunks = await events(client, engine.url + path, asked | {"return_token_ids": True})
        async with client.post(engine.url + path, json=asked) as response:
            whole = (await response.json())["choices"]
        plain = await events(client, engine.url + path, CHAT if chat else {"prompt": "질문"})
    choices = [chunk["choices"][0] for chunk in chunks]
    made = [token for choice in choices for token in choice.get("token_ids") or []]
    assert len(values(choices)) == len(made) == 21
    assert values(choices) == values(whole)
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in plain)


async def test_the_journal_says_what_came_and_from_where_it_went_on(
    client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A line for each request, written before its answer: id, and answer tokens in its prompt."""
    journal = tmp_path / "journal"
    async with ScriptedEngine(Script(), journal=journal) as engine:
        for prompt in ("질문", [1, 2, 1000, 1001]):
            body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
            headers = {"X-Request-Id": "j"}
            async with client.post(engine.url + "/v1/completions", json=body, headers=headers):
                pass
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(line["id"], line["had"]) for line in lines] == [("j", 0), ("j", 2)]


@pytest.mark.parametrize(("stop", "text"), [("꿈끝", "가나"), ("나", "가"), ("없음", "가나꿈끝")])
async def test_a_stop_string_ends_the_answer_before_itself(stop: str, text: str) -> None:
    """The text ends before the stop string, even when it spans tokens; the reason names it."""
    answer = Script(tokens=["가", "나", b"\xea\xbf", b"\x88", "끝"]).answer(100, [stop])
    assert answer.text == text
    assert answer.stop_reason == (stop if stop != "없음" else None)


async def test_a_client_that_leaves_is_counted_and_stops_the_answer(
    client: aiohttp.ClientSession,
) -> None:
    """After a disconnect the engine is idle, counts one abort and has made no late token."""
    async with ScriptedEngine(Script(length=1000, token_delay=0.01)) as engine:
        response = await client.post(
            engine.url + "/v1/chat/completions", json=CHAT | {"stream": True}
        )
        await response.content.readany()
        assert engine.running == 1
        response.close()
        await until(lambda: engine.running == 0)
        assert (engine.aborted, engine.late_tokens) == (1, 0)
        assert engine.requests[0].outcome == "aborted"
        assert engine.requests[0].tokens < 1000


async def test_die_after_breaks_the_stream_after_that_many_tokens(
    client: aiohttp.ClientSession,
) -> None:
    """The connection ends without [DONE] after exactly the tokens the script allows."""
    async with ScriptedEngine(Script(die_after=3)) as engine:
        body = CHAT | {"stream": True}
        async with client.post(engine.url + "/v1/chat/completions", json=body) as response:
            received = await whatever_comes(response)
        assert received.count(b"data: ") == 1 + 3
        assert b"[DONE]" not in received
        assert engine.requests[0].outcome == "died"
        engine.script.die_after = None
        assert len(await events(client, engine.url + "/v1/chat/completions", CHAT)) > 4


async def test_hang_after_keeps_the_connection_and_ends_when_the_fault_does(
    client: aiohttp.ClientSession,
) -> None:
    """A hung answer makes no token while the fault stands and goes on when it is taken away."""
    async with ScriptedEngine(Script(hang_after=2)) as engine:
        pending = asyncio.create_task(events(client, engine.url + "/v1/chat/completions", CHAT))
        await until(lambda: engine.tokens == 2)
        await asyncio.sleep(0.1)
        assert engine.tokens == 2
        engine.script.hang_after = None
        chunks = await pending
        assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == engine.script.text


@pytest.mark.parametrize(
    ("fault", "body", "status"),
    [
        ({"fail_status": 500}, {}, 500),
        ({"fail_status": 503}, {}, 503),
        ({"refuse_canary": True}, {"max_tokens": 1}, 503),
        ({"refuse_canary": True}, {"max_tokens": 2}, 200),
        ({"api_key": "secret"}, {}, 401),
    ],
)
async def test_a_fault_shows_as_its_status(
    client: aiohttp.ClientSession, fault: dict[str, Any], body: dict[str, Any], status: int
) -> None:
    """Each refusing fault answers its own status, and only where it should."""
    async with (
        ScriptedEngine(Script(**fault)) as engine,
        client.post(engine.url + "/v1/chat/completions", json=CHAT | body) as response,
    ):
        assert response.status == status


async def test_an_error_in_mid_stream_is_an_event(client: aiohttp.ClientSession) -> None:
    """As vLLM does when its engine dies: an error event, then [DONE], on a status of 200."""
    async with ScriptedEngine(Script(error_after=2)) as engine:
        chunks = await events(client, engine.url + "/v1/chat/completions", CHAT)
    assert chunks[-1]["error"]["code"] == 500


async def test_fastchat_frames_carry_the_whole_text_and_end_twice(
    client: aiohttp.ClientSession,
) -> None:
    """FastChat's stream: every frame holds all the text; the last comes again with its reason."""
    async with ScriptedEngine() as engine:
        body = {"model": "demo", "prompt": "질문", "max_new_tokens": 100, "echo": False}
        async with client.post(engine.url + "/worker_generate_stream", json=body) as response:
            frames = [json.loads(f) for f in (await response.read()).split(b"\0") if f]
        texts = [frame["text"] for frame in frames]
        assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
        assert texts[-1] == texts[-2] == engine.script.text
        assert [f["finish_reason"] for f in frames[-2:]] == [None, "stop"]
        async with client.post(engine.url + "/worker_generate", json=body) as response:
            assert await response.json() == frames[-1]


async def test_requests_are_remembered_with_headers_and_body(
    client: aiohttp.ClientSession,
) -> None:
    """A test can look at what really arrived, and the request id comes back."""
    async with ScriptedEngine() as engine:
        headers = {"X-Request-Id": "abc"}
        url = engine.url + "/v1/chat/completions"
        async with client.post(url, json=CHAT, headers=headers) as response:
            assert (await response.json())["id"] == "chatcmpl-abc"
            assert response.headers["X-Request-Id"] == "abc"
        assert engine.requests[0].headers["X-Request-Id"] == "abc"
        assert engine.requests[0].body["messages"] == CHAT["messages"]
