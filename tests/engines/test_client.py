"""The engine client, against the scripted engine and against servers that misbehave on purpose."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web
from support.apps import serving_aiohttp
from support.scripted_engine import Script, ScriptedEngine

from kodolly.engines.client import CONNECT, EngineClient
from kodolly.engines.metrics import EngineSample, requests_in_engine, steps_of_engine, totals
from kodolly.engines.openai import Offer, discover, normalise_url
from kodolly.engines.stream import StreamClient
from kodolly.errors import EngineCallError, EngineSilent, SettingsError
from kodolly.http.client import new_client
from kodolly.http.server import cancel_and_wait
from kodolly.http.upstream import Pool

from .test_metrics import VLLM_STEPS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with new_client() as client:
        yield client


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(CONNECT)
    task = asyncio.create_task(pool.run())
    yield pool
    await cancel_and_wait(task)


@asynccontextmanager
async def serving(**routes: Handler) -> AsyncIterator[str]:
    """A server on loopback that answers /load by `load`, /v1/models by `v1_models`, and so on."""
    app = web.Application()
    for name, handler in routes.items():
        app.router.add_route("*", "/" + name.replace("_", "/", 1), handler)
    async with serving_aiohttp(app) as url:
        yield url


def answering(body: Any, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(text=body, status=status)
        return web.json_response(body, status=status)

    return handler


def streaming(*chunks: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0)
        return response

    return handler


async def events(url: str, pool: Pool, **body: Any) -> list[dict[str, Any]]:
    stream = StreamClient(url, None, pool).events({"model": "demo", "prompt": "가", **body})
    return [event async for event in stream]


async def test_healthy(http: httpx.AsyncClient) -> None:
    """An engine is healthy when /health answers 200, and not when it answers 503 or nothing."""
    async with ScriptedEngine() as engine:
        client = EngineClient(engine.url, None, http)
        assert await client.healthy()
        engine.script.health_status = 503
        assert not await client.healthy()
    assert not await client.healthy()


async def test_models(http: httpx.AsyncClient) -> None:
    """The served names are the ids of /v1/models."""
    async with ScriptedEngine(Script(model="한국어")) as engine:
        assert await EngineClient(engine.url + "/", None, http).models() == ["한국어"]


async def test_key_is_sent(http: httpx.AsyncClient) -> None:
    """An engine with a key answers a client that has it, and its 401 carries the status."""
    async with ScriptedEngine(Script(api_key="k")) as engine:
        assert await EngineClient(engine.url, "k", http).models() == ["demo"]
        with pytest.raises(EngineCallError, match="401: Unauthorized") as caught:
            await EngineClient(engine.url, None, http).models()
    assert caught.value.status == 401


async def test_canary_is_one_token(http: httpx.AsyncClient) -> None:
    """The canary asks for a single greedy token and returns when it came."""
    async with ScriptedEngine() as engine:
        await EngineClient(engine.url, None, http).canary("demo")
        (seen,) = engine.requests
    assert (seen.path, seen.body["max_tokens"], seen.body["temperature"]) == (
        "/v1/completions",
        1,
        0,
    )


async def test_canary_refused(http: httpx.AsyncClient) -> None:
    """A canary that the engine refuses is an EngineCallError with its status and words."""
    async with ScriptedEngine(Script(refuse_canary=True)) as engine:
        with pytest.raises(EngineCallError, match="scripted failure") as caught:
            await EngineClient(engine.url, None, http).canary("demo")
    assert caught.value.status == 503


async def test_canary_of_a_hung_engine(http: httpx.AsyncClient) -> None:
    """A canary ends in time although the engine makes no token."""
    async with ScriptedEngine(Script(hang_after=0)) as engine:
        with pytest.raises(EngineCallError, match="in time") as caught:
            await EngineClient(engine.url, None, http).canary("demo", timeout=0.1)
    assert caught.value.status is None


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [{"text": ""}]},
        {"choices": [{"text": ""}], "usage": {"completion_tokens": 0}},
        {"object": "nothing"},
    ],
)
async def test_canary_without_a_token(http: httpx.AsyncClient, answer: Any) -> None:
    """A 200 that carries no token is no proof."""
    async with serving(v1_completions=answering(answer)) as url:
        with pytest.raises(EngineCallError, match="canary"):
            await EngineClient(url, None, http).canary("demo")


async def test_canary_whose_token_has_no_text(http: httpx.AsyncClient) -> None:
    """An end mark as first token has no text, and is a token."""
    answer = {"choices": [{"text": ""}], "usage": {"completion_tokens": 1}}
    async with serving(v1_completions=answering(answer)) as url:
        await EngineClient(url, None, http).canary("demo")


async def test_load(http: httpx.AsyncClient) -> None:
    """The load is what /load says."""
    async with ScriptedEngine(Script(load=3)) as engine:
        assert await EngineClient(engine.url, None, http).load() == 3


VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 2.0
vllm:num_requests_running{engine="1",model_name="a } b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a } b"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 4.0
"""
SGLANG_METRICS = 'sglang:num_running_reqs{tp_rank="0"} 5\nsglang:num_queue_reqs{tp_rank="0"} 1\n'
LLAMA_METRICS = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 3 1700000000\n"


@pytest.mark.parametrize(
    ("metrics", "load"),
    [
        (VLLM_METRICS, 7),
        (SGLANG_METRICS, 6),
        (LLAMA_METRICS, 5),
        ("process_open_fds 7.0\n", None),
        ("vllm:num_requests_running NaN?\n<html>\n", None),
    ],
)
def test_requests_in_metrics(metrics: str, load: int | None) -> None:
    """Running and waiting requests are read from each engine's own gauges, over all labels."""
    assert requests_in_engine(totals(metrics)) == load


async def test_load_from_metrics(http: httpx.AsyncClient) -> None:
    """Without /load the metrics tell, and without either nobody does."""
    async with serving(metrics=answering(SGLANG_METRICS)) as url:
        assert await EngineClient(url, None, http).load() == 6
    async with serving() as url:
        assert await EngineClient(url, None, http).load() is None


async def test_untracked_load(http: httpx.AsyncClient) -> None:
    """A 0 on /load gives way to metrics that count requests, and stands without them."""
    idle = answering({"server_load": 0})
    async with serving(load=idle, metrics=answering(VLLM_METRICS)) as url:
        assert await EngineClient(url, None, http).load() == 7
    async with serving(load=idle) as url:
        assert await EngineClient(url, None, http).load() == 0


async def test_a_pulse_asks_no_more_than_it_must(http: httpx.AsyncClient) -> None:
    """An idle engine that tracks its load is not asked for its metrics; a busy one is."""
    asked: list[str] = []

    async def metrics(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(text=VLLM_STEPS)

    async with serving(load=answering({"server_load": 0}), metrics=metrics) as url:
        client = EngineClient(url, None, http)
        assert await client.sample(timeout=5, tracks_load=True) == EngineSample(0, None)
        assert asked == []
    async with serving(load=answering({"server_load": 3}), metrics=metrics) as url:
        client = EngineClient(url, None, http)
        assert await client.sample(timeout=5, tracks_load=True, need_steps=False) == EngineSample(
            3, None
        )
        assert asked == []
        untracked = await client.sample(timeout=5)
        assert untracked == EngineSample(3, steps_of_engine(totals(VLLM_STEPS)))


async def test_a_silent_engine_is_told_from_one_that_is_gone(
    http: httpx.AsyncClient,
) -> None:
    """No answer in time is EngineSilent; a refused connection is an error, but not that one."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(load=never) as url:
        with pytest.raises(EngineSilent):
            await EngineClient(url, None, http).sample(timeout=0.1)
    with pytest.raises(EngineCallError) as gone:
        await EngineClient(url, None, http).sample(timeout=5)
    assert not isinstance(gone.value, EngineSilent)
    assert gone.value.status is None


async def test_count_tokens(http: httpx.AsyncClient) -> None:
    """A text's tokens are what /tokenize counts; the scripted engine has one a byte."""
    async with ScriptedEngine() as engine:
        assert await EngineClient(engine.url, None, http).count_tokens("demo", "한글") == 6


async def test_count_tokens_of_llama_cpp(http: httpx.AsyncClient) -> None:
    """llama.cpp's /tokenize reads `content` and answers a bare list."""

    async def tokenize(request: web.Request) -> web.StreamResponse:
        content = (await request.json()).get("content", "")
        return web.json_response({"tokens": list(content.encode())})

    async with serving(tokenize=tokenize) as url:
        assert await EngineClient(url, None, http).count_tokens("demo", "한") == 3


@pytest.mark.parametrize(
    ("card", "length"),
    [
        ({"id": "demo", "max_model_len": 2048}, 2048),
        ({"id": "demo", "meta": {"n_ctx_train": 4096}}, 4096),
        ({"id": "other", "max_model_len": 2048}, 99),
        ({"id": "demo"}, 99),
    ],
)
async def test_context_length(http: httpx.AsyncClient, card: dict[str, Any], length: int) -> None:
    """The context is the model card's, in vLLM's word or llama.cpp's, else /tokenize's."""
    models = answering({"object": "list", "data": [card]})
    tokenize = answering({"count": 1, "max_model_len": 99, "tokens": [1]})
    async with serving(v1_models=models, tokenize=tokenize) as url:
        assert await EngineClient(url, None, http).context_length("demo") == length


async def test_context_length_untold(http: httpx.AsyncClient) -> None:
    """An engine that does not say has an unknown context, not a failed call."""
    async with serving(v1_models=answering({"data": [{"id": "demo"}]})) as url:
        assert await EngineClient(url, None, http).context_length("demo") is None


async def test_stream_equals_whole(http: httpx.AsyncClient, pool: Pool) -> None:
    """The texts of a stream, put together, are the text of the whole answer."""
    async with ScriptedEngine() as engine:
        client = EngineClient(engine.url, None, http)
        whole = await client.complete({"model": "demo", "prompt": "가"})
        parts = [event["choices"][0]["text"] for event in await events(engine.url, pool)]
    assert "".join(parts) == whole["choices"][0]["text"] == engine.script.answer(10**6, [], 0).text
    assert len(parts) > 1


async def test_request_id(http: httpx.AsyncClient, pool: Pool) -> None:
    """A request id given is the id the engine answers with."""
    async with ScriptedEngine() as engine:
        client = EngineClient(engine.url, None, http)
        body = {"model": "demo", "prompt": "가"}
        assert (await client.complete(body, request_id="abc"))["id"] == "cmpl-abc"
        stream = StreamClient(engine.url, None, pool).events(body, request_id="def")
        assert {event["id"] async for event in stream} == {"cmpl-def"}


async def test_chat_path(http: httpx.AsyncClient) -> None:
    """Another path is asked the same way."""
    async with ScriptedEngine() as engine:
        client = EngineClient(engine.url, None, http)
        body = {"model": "demo", "messages": [{"role": "user", "content": "가"}]}
        answer = await client.complete(body, path="/v1/chat/completions")
    assert answer["object"] == "chat.completion"


async def test_closing_a_stream_stops_the_engine(pool: Pool) -> None:
    """Closing the iterator closes the connection, so that the engine aborts."""
    script = Script(length=100_000, token_delay=0.005)
    async with ScriptedEngine(script) as engine:
        stream = StreamClient(engine.url, None, pool).events({"model": "demo", "prompt": "가"})
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(10):
            while engine.running:
                await asyncio.sleep(0.01)
    assert engine.aborted == 1


async def test_error_status_of_a_stream(pool: Pool) -> None:
    """A stream that the engine refuses raises its status and message."""
    async with ScriptedEngine() as engine:
        with pytest.raises(EngineCallError, match="does not exist") as caught:
            await events(engine.url, pool, model="unknown")
    assert caught.value.status == 404


async def test_error_event_inside_a_stream(pool: Pool) -> None:
    """An error event raises after the events before it."""
    async with ScriptedEngine(Script(error_after=3)) as engine:
        stream = StreamClient(engine.url, None, pool).events({"model": "demo", "prompt": "가"})
        got = []
        for _ in range(3):
            got.append((await anext(stream))["choices"][0]["text"])
        with pytest.raises(EngineCallError, match="scripted failure") as caught:
            await anext(stream)
    assert "".join(got) == "물론이죠, 안녕하세요!"
    assert caught.value.status == 500


async def test_stream_that_breaks(pool: Pool) -> None:
    """A connection lost in the middle of a stream is an EngineCallError without a status."""
    async with ScriptedEngine(Script(die_after=3)) as engine:
        with pytest.raises(EngineCallError) as caught:
            await events(engine.url, pool)
    assert caught.value.status is None


async def test_stream_that_ends_too_soon(pool: Pool) -> None:
    """A stream that ends without [DONE] was cut, whatever its transport says."""
    async with serving(v1_completions=streaming(b'data: {"id": "a"}\n\n')) as url:
        with pytest.raises(EngineCallError, match="before it was done"):
            await events(url, pool)


async def test_stream_that_hangs(pool: Pool) -> None:
    """A stream without a byte for longer than the pause is an EngineCallError."""
    async with ScriptedEngine(Script(hang_after=2)) as engine:
        client = StreamClient(engine.url, None, pool)
        with pytest.raises(EngineCallError, match="in time"):
            async for _ in client.events({"model": "demo", "prompt": "가"}, pause=0.1):
                pass


async def test_stream_of_something_else(pool: Pool) -> None:
    """An event that is no JSON object is an EngineCallError."""
    async with serving(v1_completions=streaming(b"data: oops\n\n")) as url:
        with pytest.raises(EngineCallError, match="no JSON object"):
            await events(url, pool)


@pytest.mark.parametrize("body", ["not json", "[1]", ""])
async def test_answers_that_are_no_object(http: httpx.AsyncClient, body: str) -> None:
    """A 200 with something else than a JSON object is an EngineCallError."""
    async with serving(v1_models=answering(body)) as url:
        with pytest.raises(EngineCallError, match="JSON object"):
            await EngineClient(url, None, http).models()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"detail": "Not Found"}, "Not Found"),
        ("Internal Server Error", "Internal Server Error"),
        ("", "no reason given"),
    ],
)
async def test_words_of_an_error(http: httpx.AsyncClient, body: Any, words: str) -> None:
    """The engine's own words are in the error, in whichever shape it gave them."""
    async with serving(v1_completions=answering(body, 418)) as url:
        with pytest.raises(EngineCallError, match=f"418: {words}$") as caught:
            await EngineClient(url, None, http).complete({})
    assert caught.value.status == 418


async def test_nobody_listens(http: httpx.AsyncClient) -> None:
    """A refused connection is an EngineCallError without a status."""
    async with serving() as url:
        pass
    with pytest.raises(EngineCallError, match="/v1/models failed") as caught:
        await EngineClient(url, None, http).models()
    assert caught.value.status is None


async def test_connection_closed_while_idle(http: httpx.AsyncClient) -> None:
    """A pooled connection that the engine closed meanwhile costs no failed call."""
    dropped: list[str] = []

    async def drop_first(request: web.Request) -> web.StreamResponse:
        if not dropped and request.transport is not None:
            dropped.append("once")
            request.transport.abort()
        return web.json_response({"count": 1})

    async with serving(tokenize=drop_first) as url:
        assert await EngineClient(url, None, http).count_tokens("demo", "가") == 1
    assert dropped == ["once"]


@pytest.mark.parametrize(
    ("given_url", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        (" http://gpu:8000/v1 ", "http://gpu:8000"),
        ("https://host/engines/a/v1/", "https://host/engines/a"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_url_with_or_without_v1(given_url: str, root: str) -> None:
    """Both ways of naming a server give its root."""
    assert normalise_url(given_url) == root


@pytest.mark.parametrize(
    "bad",
    ["", "gpu:8000", "ftp://gpu/v1", "http://", "http://gpu:port", "http://gpu/v1?key=1"],
)
def test_url_that_cannot_be_used(bad: str) -> None:
    """What is no http(s) address is a settings error that repeats it."""
    with pytest.raises(SettingsError, match=re.escape(repr(bad))):
        normalise_url(bad)


def test_url_with_a_key_in_it() -> None:
    """Credentials in the URL are refused, and not repeated in the message."""
    with pytest.raises(SettingsError) as caught:
        normalise_url("http://user:geheim@gpu:8000/v1")
    assert "geheim" not in str(caught.value)


async def test_discover() -> None:
    """The models of a running server are found from its URL and key."""
    async with ScriptedEngine(Script(model="a", api_key="k")) as engine:
        assert await discover(engine.url + "/v1", "k") == [Offer("a")]
