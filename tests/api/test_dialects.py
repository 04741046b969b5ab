"""Engines of other makers behind the API: their refusals, their errors, their contexts."""

import asyncio
from typing import Any

import aiohttp
import pytest
from api.conftest import Stack
from support.apps import serving_aiohttp
from support.dialects import Dialect
from support.processes import eventually
from support.scripted_engine import Script

from kodolly.api.errors import api_error
from kodolly.protocol.wire import Extension, Registration, WorkerState, WorkerStatus
from kodolly.settings import ApiSettings

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}
OVERFLOW = b'{"error": {"message": "This model\'s maximum context length is 16 tokens."}}'


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(max_body=100_000, connect_timeout=10, queue_size=2, queue_timeout=1.0)


async def add(stack: Stack, dialect: Dialect, **extension: Any) -> str:
    """Puts an engine of this dialect into the table; its name there."""
    url = await stack.stack.enter_async_context(serving_aiohttp(dialect.app()))
    fields = {"engine_url": url, "heart_beat_interval": 600, "context_length": 4096, **extension}
    stack.controller.registry.register(
        Registration(worker_name=url, kodolly=Extension.model_validate(fields)),
        WorkerStatus(model_names=["demo"]),
    )
    await eventually(stack.is_followed)
    return url


async def post(stack: Stack, body: dict[str, Any], path: str = "chat/completions") -> Any:
    """Status, headers and body of an answer."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{stack.url}/v1/{path}", json=body) as answer,
    ):
        return answer.status, answer.headers, await answer.text()


async def test_token_ids_refused_once_are_not_sent_again(stack: Stack) -> None:
    """The stream that meets the refusal is answered, and no later one tries."""
    dialect = Dialect(refuses=("return_token_ids",))
    await add(stack, dialect)
    for _ in range(3):
        status, _, text = await post(stack, CHAT | {"stream": True})
        assert (status, text.count("네"), text.count("[DONE]")) == (200, 1, 1)
    assert ["return_token_ids" in body for body in dialect.bodies] == [True, False, False, False]


async def test_another_fault_is_told_as_it_is(stack: Stack) -> None:
    """A request that is refused with and without them is the client's to mend, each time."""
    dialect = Dialect(refuses=("bad_field",))
    await add(stack, dialect)
    for _ in range(2):
        status, _, text = await post(stack, CHAT | {"stream": True, "bad_field": 1})
        assert (status, "bad_field: not permitted" in text) == (400, True)
    await post(stack, CHAT | {"stream": True})
    assert dialect.bodies[-1]["return_token_ids"] is True


async def test_a_client_s_own_wish_for_token_ids_is_not_dropped(stack: Stack) -> None:
    """It is refused in the engine's words: an answer without them is not what was asked for."""
    dialect = Dialect(refuses=("return_token_ids",))
    await add(stack, dialect)
    status, _, text = await post(stack, CHAT | {"stream": True, "return_token_ids": True})
    assert (status, len(dialect.bodies)) == (400, 1)
    assert "return_token_ids: not permitted" in text


@pytest.mark.parametrize(
    ("status", "header", "told"),
    [(429, "17", "17"), (503, "17", "17"), (429, "17; evil", "2"), (429, "9" * 9, "86400")],
)
async def test_a_busy_engine_s_retry_after_is_kept(
    stack: Stack, status: int, header: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client is told when the engine wants it back, with the engine's own status."""
    monkeypatch.setattr("kodolly.api.relay.retry.WAIT_AT_START_S", 0.1)
    await add(stack, Dialect(chat_status=status, headers={"Retry-After": header}))
    for stream in (False, True):
        code, headers, text = await post(stack, CHAT | {"stream": stream})
        assert (code, headers["Retry-After"], "refused" in text) == (status, told, True)


async def test_another_worker_takes_what_a_busy_one_refuses(stack: Stack) -> None:
    """Its 429 is the client's only when all are busy."""
    await add(stack, Dialect(chat_status=429, headers={"Retry-After": "60"}))
    await add(stack, Dialect())
    for _ in range(4):
        assert (await post(stack, CHAT))[0] == 200


PAGE = (
    b"<!doctype html><html><head><title>502  Bad\nGateway</title><style>p{}</style></head><p>x</p>"
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "why"}}', "why"),
        (b'{"error": "why", "error_type": "validation"}', "why"),
        (b'{"detail": "why"}', "why"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "why", "type": "t"}]}', "n: why"),
        (b'{"object": "error", "message": "why", "code": 400}', "why"),
        (b"404 page not found", "404 page not found"),
        (PAGE, "502 Bad Gateway"),
        (b"<html><script>evil()</script><h1>No</h1> <b>way", "No way"),
        (b"a\x00\x1b[31m\r\n\xffb" + b" " * 100, "a [31m b"),
        (b'{"error": {"message": "a\\u001b[2J\\nb"}}', "a [2J b"),
        (b"x" * 10**6, "x" * 500),
        (b"", "no reason given"),
        (b"[" * 1000, "[" * 500),
    ],
)
def test_an_error_body_keeps_its_cause(body: bytes, message: str) -> None:
    """Whatever its form: bounded, and without what could harm a terminal."""
    assert api_error(400, body).message == message


async def test_a_broken_engine_s_cause_reaches_client_and_log(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy's page before an engine is told by its title."""
    await add(stack, Dialect(chat_status=502, refusal=PAGE))
    status, _, text = await post(stack, CHAT)
    assert (status, "502 Bad Gateway" in text) == (502, True)
    assert "answered 502: 502 Bad Gateway" in caplog.text


async def test_what_is_too_long_for_one_worker_goes_to_a_larger_one(stack: Stack) -> None:
    """Equal names, unequal contexts: the small engine's refusal is not the client's answer."""
    small = Dialect(chat_status=400, refusal=OVERFLOW)
    await add(stack, small, context_length=16)
    large = Dialect()
    await add(stack, large, context_length=4096)
    for stream in (False, True):
        for _ in range(3):
            assert (await post(stack, CHAT | {"stream": stream}))[0] == 200
    assert len(large.bodies) == 6


async def test_what_is_too_long_for_all_is_told_so(stack: Stack) -> None:
    """By the largest; a third of the same size is not asked."""
    dialects = [Dialect(chat_status=400, refusal=OVERFLOW) for _ in range(3)]
    for dialect, length in zip(dialects, (16, 32, 32), strict=True):
        await add(stack, dialect, context_length=length)
    for stream in (False, True):
        status, _, text = await post(stack, CHAT | {"stream": stream})
        assert (status, "context_length_exceeded" in text) == (400, True)
    assert sum(len(dialect.bodies) for dialect in dialects) <= 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", CHAT | {"max_tokens": 100}),
        ("chat/completions", CHAT | {"max_completion_tokens": 100}),
        ("completions", {"model": "demo", "prompt": list(range(17)), "max_tokens": 1}),
        ("completions", {"model": "demo", "prompt": [1], "max_tokens": 16}),
    ],
)
async def test_what_can_be_counted_is_not_even_tried(
    stack: Stack, path: str, body: dict[str, Any]
) -> None:
    """Token ids and the answer's bound tell without a tokenizer that a worker is too small."""
    small, large = Dialect(), Dialect()
    await add(stack, small, context_length=16)
    await add(stack, large, context_length=4096)
    for _ in range(4):
        assert (await post(stack, body, path))[0] == 200
    assert (len(small.bodies), len(large.bodies)) == (0, 4)


async def test_completions_go_where_there_are_any(stack: Stack) -> None:
    """A worker whose engine only chats gets chats; alone, it says so itself."""
    chats = Dialect(completions_status=404, refusal=b"404 page not found")
    name = await add(stack, chats, chat_only=True)
    body = {"model": "demo", "prompt": "x"}
    status, _, text = await post(stack, body, "completions")
    assert (status, "404 page not found" in text) == (400, True)
    await add(stack, Dialect(), chat_only=False)
    for _ in range(4):
        assert (await post(stack, body, "completions"))[0] == 200
    assert chats.calls["/v1/completions"] == 1
    stack.controller.registry.remove(name)


async def test_a_stream_never_moves_to_a_worker_that_cannot_continue_it(stack: Stack) -> None:
    """Its tokens go to the one that takes token ids, though the other has no load."""
    dead = await stack.add(Script(die_after=3, token_delay=0.5))
    streaming = asyncio.create_task(post(stack, CHAT | {"stream": True}))
    await eventually(lambda: dead.requests)
    chats = Dialect()
    await add(stack, chats, chat_only=True, context_length=16384)
    await stack.add(Script())
    status, _, text = await streaming
    assert (status, "worker_lost" in text) == (200, False)
    assert text.rstrip().endswith("[DONE]")
    assert chats.bodies == []


async def starting(stack: Stack) -> str:
    """A worker that is starting, once the API knows of it."""
    engine = await stack.add(Script())
    stack.state(engine, WorkerState.STARTING)
    await eventually(lambda: stack.table.is_starting("demo"))
    return engine.url


async def test_requests_wait_while_a_worker_is_starting(stack: Stack) -> None:
    """They are answered once it is ready, not refused before."""
    name = await starting(stack)
    waiting = [asyncio.create_task(post(stack, CHAT | {"stream": s})) for s in (False, True)]
    await eventually(lambda: stack.admission.waiting("demo") == 2)
    status, _, text = await post(stack, CHAT)
    assert (status, "too many requests wait" in text) == (429, True)
    stack.controller.registry._set_state(name, WorkerState.READY)
    assert [(await each)[0] for each in waiting] == [200, 200]


async def test_the_wait_for_a_starting_worker_is_bounded(stack: Stack) -> None:
    """It ends with 503 and Retry-After; at once when that worker is gone."""
    name = await starting(stack)
    status, headers, text = await post(stack, CHAT)
    assert (status, headers["Retry-After"], "ready yet" in text) == (
        503,
        "2",
        True,
    )
    waiting = asyncio.create_task(post(stack, CHAT))
    await eventually(lambda: stack.admission.waiting("demo") == 1)
    stack.controller.registry.mark_lost(name)
    status, _, text = await waiting
    assert (status, "is gone" in text) == (503, True)
