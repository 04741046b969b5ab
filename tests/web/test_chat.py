"""An answer, from the API's stream to what the page shows."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise

import pytest
from aiohttp import web
from support.scripted_engine import ScriptedEngine

from kodolly.web.chat import Chat, Choices
from kodolly.web.client import api_client
from kodolly.web.history import Message, assistant, is_notice, user
from kodolly.web.texts import KO, say

ASKED = [user("하나"), assistant("1"), user("둘")]
DEMO = Choices(model="demo")


async def last(chat: Chat, choices: Choices = DEMO, language: str = "ko") -> list[Message]:
    states = chat.answer(ASKED, choices, "en" if language == "en" else "ko")
    return [state async for state in states][-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def answering(
    handler: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[Chat]:
    """A chat whose API answers every completion by `handler`."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with api_client(f"http://127.0.0.1:{runner.addresses[0][1]}", None) as client:
            yield Chat(client)
    finally:
        await runner.cleanup()


async def test_the_answer_grows(chat: Chat, engine: ScriptedEngine) -> None:
    """States only grow and end on the engine's text, Korean untouched."""
    engine.script.token_delay = 0.01
    texts = []
    async for state in chat.answer(ASKED, DEMO, "ko"):
        assert state[: len(ASKED)] == ASKED
        texts.append(state[-1]["content"] if len(state) > len(ASKED) else "")
    assert len(set(texts)) > 3
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert texts[-1] == engine.script.text
    assert "\ufffd" not in texts[-1]


async def test_what_is_sent(chat: Chat, engine: ScriptedEngine) -> None:
    """The API gets the conversation, the system prompt and the settings as chosen."""
    await last(chat, Choices("demo", "친절하게", temperature=0.2, top_p=0.5, max_tokens=300))
    body = engine.requests[-1].body
    assert body["messages"] == [
        {"role": "system", "content": "친절하게"},
        {"role": "user", "content": "하나"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "둘"},
    ]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.2, 0.5, 300)
    assert body["stream"] is True


async def test_closing_stops_the_engine(chat: Chat, engine: ScriptedEngine) -> None:
    """Giving up an answer closes the API's stream: the engine aborts."""
    engine.script.length, engine.script.token_delay = 10_000, 0.01
    async with aclosing(chat.answer(ASKED, DEMO, "ko")) as states:
        async for state in states:
            if len(state) > len(ASKED):
                break
    await until(lambda: engine.aborted == 1)
    assert engine.running == 0


async def test_cancelling_stops_the_engine(chat: Chat, engine: ScriptedEngine) -> None:
    """A cancelled task closes the API's stream too, also before the first token."""
    engine.script.hang_after = 0

    async def consume() -> None:
        async for _ in chat.answer(ASKED, DEMO, "ko"):
            pass

    task = asyncio.create_task(consume())
    await until(lambda: engine.running == 1)
    task.cancel()
    await until(lambda: engine.aborted == 1)
    assert task.cancelled() or task.cancelling()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_lost_keeps_the_part_and_offers_retry(
    chat: Chat, engine: ScriptedEngine
) -> None:
    """A connection that breaks mid-answer leaves the partial answer and a notice with a button."""
    engine.script.die_after, engine.script.token_delay = 6, 0.01
    *_, part, told = await last(chat)
    assert part["content"]
    assert engine.script.text.startswith(part["content"])
    assert is_notice(told)
    assert KO["lost"] in told["content"]
    assert told["options"] == [{"value": "retry", "label": "다시 시도"}]


async def test_an_error_event_mid_answer(chat: Chat, engine: ScriptedEngine) -> None:
    """An error event inside the stream is told like a lost worker, the part kept."""
    engine.script.error_after, engine.script.token_delay = 6, 0.01
    *_, part, told = await last(chat)
    assert part["content"]
    assert KO["lost"] in told["content"]


@pytest.mark.parametrize(
    ("status", "key"),
    [(503, "no_worker"), (429, "busy"), (401, "no_access"), (404, "model_gone"), (500, "failed")],
)
@pytest.mark.parametrize("language", ["ko", "en"])
async def test_refusals_are_told_in_the_readers_language(
    chat: Chat, engine: ScriptedEngine, status: int, key: str, language: str
) -> None:
    """Each refusal of the API has its own sentence, in Korean or English."""
    engine.script.fail_status = status
    told = (await last(chat, language=language))[-1]
    assert is_notice(told)
    assert say("en" if language == "en" else "ko", key, model="demo") in told["content"]


async def test_a_model_that_is_gone(chat: Chat) -> None:
    """A model that left is named, with the advice to choose another."""
    told = (await last(chat, Choices(model="어제의-모델")))[-1]
    assert say("ko", "model_gone", model="어제의-모델") in told["content"]


async def test_a_context_too_long(chat: Chat, engine: ScriptedEngine) -> None:
    """An overflow is told as such and not as a wrong request."""
    engine.script.context_length = 8
    assert KO["too_long"] in (await last(chat))[-1]["content"]


async def test_a_wrong_request_gives_the_apis_reason() -> None:
    """A refusal we have no sentence for carries the API's own, bounded."""
    reason = "temperature must be lower. " + "x" * 5000

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": reason, "type": "x"}}, status=400)

    async with answering(refuse) as chat:
        told = (await last(chat))[-1]["content"]
    assert "temperature must be lower." in told
    assert len(told) < 1000


async def test_nobody_listens() -> None:
    """An API that cannot be reached is told as such."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with api_client(f"http://127.0.0.1:{taken.getsockname()[1]}", None) as client:
            assert KO["api_down"] in (await last(Chat(client)))[-1]["content"]
            assert KO["api_down"] in (await last(Chat(client), Choices()))[-1]["content"]


async def test_without_a_choice_the_first_live_model_answers(
    chat: Chat, engine: ScriptedEngine
) -> None:
    """A page that has not seen the list yet still gets an answer."""
    assert (await last(chat, Choices()))[-1] == assistant(engine.script.text)


async def test_a_stream_without_an_end_is_a_loss() -> None:
    """A stream that closes properly but never says why it ended is an interrupted answer."""
    event = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"demo",'
    event += b'"choices":[{"index":0,"delta":{"content":"half"},"finish_reason":null}]}\n\n'

    async def half(_: web.Request) -> web.Response:
        return web.Response(body=event, content_type="text/event-stream")

    async with answering(half) as chat:
        *_, part, told = await last(chat)
    assert part == assistant("half")
    assert KO["lost"] in told["content"]


async def test_nonsense_from_the_api() -> None:
    """An answer that is no JSON is a failure in words, not a crash."""

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(body=b"data: <html>\n\n", content_type="text/event-stream")

    async with answering(nonsense) as chat:
        assert is_notice((await last(chat))[-1])


async def test_the_maximum_length_is_told(chat: Chat) -> None:
    """An answer cut by its length says so, without a retry button."""
    *_, part, told = await last(chat, Choices("demo", max_tokens=3))
    assert part["content"]
    assert KO["length"] in told["content"]
    assert "options" not in told


def test_choices_are_moved_into_range() -> None:
    """Whatever a browser sends becomes a value the API accepts."""
    wild = Choices.read(7, None, float("nan"), -3, 10**9)
    assert (wild.model, wild.system, wild.temperature, wild.top_p) == (None, "", 0.7, 0.01)
    assert wild.max_tokens == 32_768
    assert Choices.read("m", "s", True, "x", None) == Choices("m", "s")


async def test_a_place_in_the_queue_is_shown_until_the_answer_begins() -> None:
    """What the API tells of our place becomes one line, in the reader's language, then the answer."""
    begin = asyncio.Event()

    async def queued(request: web.Request) -> web.StreamResponse:
        assert request.headers["X-KoDolly-Queue"] == "events"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        place = {"object": "kodolly.queue", "position": 3, "wait": 11.2, "choices": []}
        await response.write(b"data: " + json.dumps(place).encode() + b"\n\n")
        await begin.wait()
        choice = {"index": 0, "delta": {"content": "답"}, "finish_reason": "stop"}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
        await response.write(b"data: " + json.dumps(chunk | {"choices": [choice]}).encode())
        await response.write(b"\n\ndata: [DONE]\n\n")
        return response

    async with answering(queued) as chat:  # type: ignore[arg-type]
        states = []
        async for state in chat.answer(ASKED, DEMO, "ko"):
            states.append(state)
            if is_notice(state[-1]):
                begin.set()
    waiting = next(state[-1]["content"] for state in states if is_notice(state[-1]))
    assert "3번째" in waiting
    assert "12초" in waiting
    assert states[-1] == [*ASKED, assistant("답")]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "key"),
    [
        ("invalid_request_error", "request_fault", "refused"),
        ("invalid_request_error", "context_length_exceeded", "too_long"),
        ("requests", "rate_limit_exceeded", "busy"),
        ("server_error", "no_worker", "no_worker"),
        ("server_error", "engine_error", "failed"),
    ],
)
async def test_an_error_event_is_told_by_what_it_says(
    kind: str, code: str, key: str, begun: bool
) -> None:
    """A comment may have begun the stream, so a refusal has no status any more."""
    part = {"choices": [{"index": 0, "delta": {"content": "가"}, "finish_reason": None}]}
    error = {"error": {"message": "왜냐하면", "type": kind, "param": None, "code": code}}
    events = [part, error] if begun else [error]
    wire = ": ping\n\n" + "".join(f"data: {json.dumps(each)}\n\n" for each in events)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=wire, content_type="text/event-stream")

    async with answering(handler) as chat:
        state = await last(chat)
    # Of what failed in the middle the part is kept; whose fault it was is said in either case.
    expected = "lost" if begun and kind != "invalid_request_error" else key
    assert (assistant("가") in state) == begun
    assert KO[expected].format(reason="왜냐하면", model="demo") in state[-1]["content"]
