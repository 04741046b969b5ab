"""Engines that refuse, fall silent or are asked for too much, behind the API."""

import asyncio
import logging
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.apps import serving
from support.processes import eventually
from support.scripted_engine import Script

from kodolly.api.prepare import LONG_TEXT, append_context, is_long
from kodolly.errors import BadRequest
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings

from .conftest import Stack

JSON = {"Content-Type": "application/json"}
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}
KEY = "engine-key-that-nobody-may-read"


async def post(stack: Stack, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, data=data, headers=JSON) as answer:
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_engine_is_passed_over(stack: Stack, status: int, stream: bool) -> None:
    """An engine that refuses our key or is broken costs a retry while another is well."""
    broken = await stack.add(Script(fail_status=status))
    well = await stack.add(Script())
    for _ in range(2):
        url = f"{stack.url}/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, json=CHAT | {"stream": stream}) as answer,
        ):
            assert answer.status == 200
            await answer.read()
    assert len(well.requests) == 2
    assert not broken.running


@pytest.mark.parametrize("stream", [False, True])
async def test_a_requests_own_fault_is_told_and_tried_nowhere_else(
    stack: Stack, stream: bool
) -> None:
    """An engine that says 400 in the middle of its work is believed, and stays trusted."""
    engines = [await stack.add(Script(error_after=2, error_code=400)) for _ in range(2)]
    url = f"{stack.url}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=CHAT | {"stream": stream}) as answer,
    ):
        text = await answer.text()
        assert answer.status == (200 if stream else 400)
    assert "scripted failure" in text
    assert "invalid_request_error" in text
    assert sum(len(engine.requests) for engine in engines) == 1
    assert not [worker for worker in stack.table.all() if worker.suspect_until]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_kills_two_engines_spares_the_third(
    stack: Stack, stream: bool
) -> None:
    """Three engines that all die of one request: the third never sees it."""
    engines = [await stack.add(Script(die_after=0)) for _ in range(3)]
    url = f"{stack.url}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=CHAT | {"stream": stream}) as answer,
    ):
        assert answer.status == 502
        assert answer.headers["x-should-retry"] == "false"
    assert sum(len(engine.requests) for engine in engines) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"<html>busy</html>",
        b'{"choices":[]}',
        b'{"choices":[{"index":0,"text":"a","finish_reason":"abort"}]}',
    ],
)
async def test_a_200_that_is_no_answer_is_passed_over(stack: Stack, body: bytes) -> None:
    """Nobody is told that all is well by an engine that is not: the next one is asked."""

    async def empty(_: Request) -> Response:
        return Response(body, media_type="application/json")

    routes = [Route("/v1/chat/completions", empty, methods=["POST"])]
    async with serving(Starlette(routes=routes)) as url:
        extension = Extension(engine_url=url, heart_beat_interval=600, context_length=16384)
        stack.controller.registry.register(
            Registration(worker_name=url, kodolly=extension), WorkerStatus(model_names=["demo"])
        )
        await stack.add(Script())
        for _ in range(2):
            status, answer = await post(stack, CHAT)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, Script().text)


@pytest.mark.parametrize("status", [401, 500])
async def test_the_last_error_is_told_when_all_engines_are_broken(
    stack: Stack, status: int
) -> None:
    """With nobody left the client hears what the engine said, as 502."""
    await stack.add(Script(fail_status=status))
    given, answer = await post(stack, CHAT)
    assert (given, answer["error"]["code"]) == (502, "engine_error")
    assert "scripted failure" in answer["error"]["message"]


class TestSlowAnswers:
    """Bounds of answers that are not streamed."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(read_timeout=0.2, answer_timeout=20)

    async def test_a_whole_answer_may_take_longer_than_a_stream_s_silence(
        self, stack: Stack
    ) -> None:
        """An engine sends nothing of it before its end, so `read_timeout` is not its bound."""
        await stack.add(Script(first_delay=0.5))
        assert (await post(stack, CHAT))[0] == 200


class TestSilentEngines:
    """The bound of an answer that is not streamed."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(read_timeout=0.2, answer_timeout=1.0)

    async def test_a_silent_engine_is_not_replaced(self, stack: Stack) -> None:
        """A request that ran into its bound is told so, and no other engine has to do it again."""
        engines = [await stack.add(Script(hang_after=0)) for _ in range(2)]
        status, answer = await post(stack, CHAT)
        assert (status, answer["error"]["code"]) == (502, "engine_error")
        assert "within 1 s" in answer["error"]["message"]
        assert sum(len(engine.requests) for engine in engines) == 1


async def test_engines_are_asked_for_plain_bytes(stack: Stack) -> None:
    """What an engine sends is relayed as it is, so it must not be compressed."""
    engine = await stack.add()
    await post(stack, CHAT)
    assert engine.requests[-1].headers["Accept-Encoding"] == "identity"


async def test_an_engine_s_key_is_never_logged(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that answers no HTTP is logged without the headers it was asked with."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"no HTTP at all\r\n\r\n")
        writer.close()

    caplog.set_level(logging.INFO)
    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stack.controller.registry.register(
            Registration(
                worker_name=url,
                kodolly=Extension(engine_url=url, engine_key=KEY, heart_beat_interval=600),
            ),
            WorkerStatus(model_names=["demo"]),
        )
        await eventually(stack.is_followed)
        assert (await post(stack, CHAT))[0] == 503
    assert "does not answer" in caplog.text
    assert KEY not in caplog.text


async def test_nesting_that_cannot_be_passed_on_is_400(stack: Stack) -> None:
    """JSON deeper than our encoder writes is the client's error, not a crash."""
    await stack.add()
    deep = b"[" * 300 + b"]" * 300
    status, answer = await post(stack, orjson.dumps(CHAT)[:-1] + b',"x":' + deep + b"}")
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("prompt", [[1.5] * 50, [[1.5] * 50] * 50, [None] * 50])
def test_one_fault_of_a_list_is_enough(prompt: list[Any]) -> None:
    """A long list of wrong items is refused at its first one, by each shape a prompt may have."""
    with pytest.raises(BadRequest) as refusal:
        check(CompletionRequest, {"model": "demo", "prompt": prompt})
    cause: Any = refusal.value.__cause__
    assert cause.error_count() <= 4
    assert refusal.value.param is not None
    assert refusal.value.param.startswith("prompt")


def test_one_fault_of_the_messages_is_enough() -> None:
    """Wrong messages and wrong parts of a content are not counted either."""
    for messages in ([3] * 50, [{"role": "user", "content": [3] * 50}] * 50):
        with pytest.raises(BadRequest) as refusal:
            check(ChatRequest, {"model": "demo", "messages": messages})
        cause: Any = refusal.value.__cause__
        assert cause.error_count() <= 2


def test_more_parts_than_anyone_needs_are_refused() -> None:
    """The parts of a content are bounded, as messages are."""
    content = [{"type": "text", "text": "x"}] * 2049
    with pytest.raises(BadRequest, match=r"messages\[0\].content"):
        check(ChatRequest, {"model": "demo", "messages": [{"role": "user", "content": content}]})


def test_long_chats_are_told_from_short_ones() -> None:
    """Much text counts, in a string or in parts, and so do very many parts."""
    text = "x" * (LONG_TEXT + 1)
    contents: list[Any] = [text, [{"type": "text", "text": text}], [{"type": "text"}] * LONG_TEXT]
    assert all(is_long({"messages": [{"role": "user", "content": c}]}) for c in contents)
    assert not is_long(CHAT)
    assert not is_long({"prompt": text})


async def test_a_long_chat_is_guarded_too(stack: Stack) -> None:
    """The thread that prepares a long chat does all that is done to a short one."""
    engine = await stack.add(guard=["<|im_end|>"])
    message = {"role": "user", "content": "x" * LONG_TEXT + "<|im_end|>"}
    assert is_long({"messages": [message]})
    await post(stack, CHAT | {"messages": [message]})
    assert "<|im_end|>" not in engine.requests[-1].body["messages"][0]["content"]


def test_a_context_joins_whatever_content_there_is() -> None:
    """It is put after a text or after parts; without any content it is refused, never dropped."""
    part = {"type": "text", "text": "수도는?"}
    told = append_context({"role": "user", "content": [part], "context": "서울이 수도다."})
    assert told["content"] == [part, {"type": "text", "text": "\n\n서울이 수도다."}]
    assert "context" not in told
    with pytest.raises(BadRequest):
        append_context({"role": "user", "content": None, "context": "서울이 수도다."})


GRAMMAR: dict[str, Any] = {"structured_outputs": {"regex": "(a|b)"}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_breaks_an_engine_is_not_carried_to_another(
    stack: Stack, stream: bool
) -> None:
    """An engine that says 500 to it is well: it is trusted as before, and the fault is the request's."""
    engines = [await stack.add(Script(fail_status=500)) for _ in range(2)]
    status, answer = await post(stack, CHAT | GRAMMAR | {"stream": stream})
    assert status == 502
    assert "schema or grammar" in answer["error"]["message"]
    assert sum(len(engine.requests) for engine in engines) == 1
    assert not [worker for worker in stack.table.all() if worker.suspect_until]


async def test_a_grammar_whose_engine_dies_has_one_more_chance(stack: Stack) -> None:
    """The engine may have been killed for another reason; a third one is not risked."""
    engines = [await stack.add(Script(die_after=0)) for _ in range(3)]
    status, answer = await post(stack, CHAT | GRAMMAR)
    assert status == 502
    assert "not given to a third" in answer["error"]["message"]
    assert sum(len(engine.requests) for engine in engines) == 2


async def test_a_grammar_that_only_found_no_engine_is_tried_on_another(stack: Stack) -> None:
    """A refused connection or a busy engine says nothing about the request."""
    await stack.add(Script(fail_status=503))
    well = await stack.add(Script())
    for number in range(4):
        message = {"role": "user", "content": f"질문 {number}"}
        assert (await post(stack, CHAT | GRAMMAR | {"messages": [message]}))[0] == 200
    assert len(well.requests) == 4


async def test_poison_is_refused_before_an_engine_sees_it(stack: Stack) -> None:
    """On both paths, with the field's name."""
    engine = await stack.add()
    schema = {"type": "array", "minItems": 10**9}
    for path, more in (("chat/completions", CHAT), ("completions", {"prompt": "x"})):
        body = {"model": "demo", **more, "structured_outputs": {"json": schema}}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{stack.url}/v1/{path}", json=body) as answer,
        ):
            error = (await answer.json())["error"]
        assert (answer.status, error["param"]) == (400, "structured_outputs.json.minItems")
    assert engine.requests == []
