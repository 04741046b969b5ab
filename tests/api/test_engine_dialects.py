"""Streams of engines that write server-sent events in their own ways, as a client gets them."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import pytest

from .conftest import Stack

Json = dict[str, Any]
TEXT = "안녕하세요, 반가워요"
WORDS = ("안녕", "하세요", ", ", "반가워요")


def dumps(body: Json) -> str:
    """JSON as vLLM writes it."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def chunk(part: Json, **more: Any) -> Json:
    """An event's body with one choice."""
    head = {"id": "x1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
    return {**head, "choices": [part], **more}


def piece(text: str, index: int = 0, reason: str | None = None, **more: Any) -> Json:
    """A choice with a piece of text."""
    return {"index": index, "delta": {"content": text}, "finish_reason": reason, **more}


def answer(
    dress: Callable[[str], str] = lambda data: f"data: {data}\n\n",
    *,
    encode: Callable[[Json], str] = dumps,
    index: Callable[[int], int] = lambda _: 0,
    done: bool = True,
) -> bytes:
    """A whole answer: each event's JSON, dressed."""
    bodies = [chunk(piece(word, index(n))) for n, word in enumerate(WORDS)]
    bodies.append(chunk({"index": index(len(WORDS)), "delta": {}, "finish_reason": "stop"}))
    return "".join(map(dress, [*map(encode, bodies), *(["[DONE]"] if done else [])])).encode()


def spaced(body: Json) -> str:
    """JSON with spaces and its keys in another order, over several lines."""
    return json.dumps(body, ensure_ascii=False, indent=1, sort_keys=True)


def in_lines(data: str) -> str:
    """An event with a data field for every line."""
    return "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"


def mixed(data: str) -> str:
    """vLLM's form now and then, something else between."""
    forms = (
        f"data: {data}\n\n",
        f": ping\n\ndata: {data}\n\n",
        f"data:{data}\r\n\r\n",
        f"id: 1\ndata: {data}\n\n",
    )
    return forms[len(data) % len(forms)]


def plain(data: str) -> str:
    return f"data: {data}\n\n"


DRESSES: dict[str, bytes] = {
    "vllm": answer(),
    "crlf": answer(lambda data: f"data: {data}\r\n\r\n"),
    "cr": answer(lambda data: f"data: {data}\r\r"),
    "no space": answer(lambda data: f"data:{data}\n\n"),
    "comments": answer(lambda data: f": ping\n\ndata: {data}\n: pong\n\n"),
    "fields": answer(lambda data: f"event: message\nid: 5\nretry: 10\ndata: {data}\n\n"),
    "lines": answer(in_lines, encode=spaced),
    "bom": "\ufeff".encode() + answer(),
    "mixed": answer(mixed),
    "one newline after done": answer().removesuffix(b"\n"),
    "no newline after done": answer().removesuffix(b"\n\n"),
    "no done": answer(done=False),
    "no done, no blank line": answer(done=False).removesuffix(b"\n"),
    "no done, no space": answer(lambda data: f"data:{data}\n\n", done=False),
    "index counts tokens": answer(lambda data: f"data:{data}\n\n", index=lambda n: n + 1),
    "index counts tokens, no done": answer(index=lambda n: n + 1, done=False),
    "done twice": answer() + b"data: [DONE]\n\n",
    "error is null": answer(encode=lambda body: dumps(body | {"error": None})),
    "empty events": answer(lambda data: f"data:\n\ndata\n\ndata:\t{data}\n\n"),
    "no index": answer(encode=lambda body: dumps(body).replace('"index":0,', "")),
    "empty finish reasons": answer(encode=lambda body: dumps(body).replace(":null", ':""')),
    "usage is last": answer(done=False) + b'data: {"choices":[],"usage":{"total_tokens":5}}\n\n',
    "spaces around done": answer(done=False) + b"data:  [DONE] \r",
    "more after done": answer() + b"data: junk\n\n",
    "text speaks of errors": answer(
        encode=lambda body: dumps(body | {"note": 'data: {"error":"finish_reason":"abort"}'})
    ),
}
HALF = plain(dumps(chunk(piece("안녕")))) + plain(dumps(chunk(piece("하세"))))
FAILURES: dict[str, str] = {
    "vllm": 'data: {"error":{"message":"boom","code":500}}\n\ndata: [DONE]\n\n',
    "error field": 'error: {"code":500,"message":"boom"}\n\ndata: [DONE]\n\n',
    "error field within an event": plain(dumps(chunk(piece("x"))))[:-1] + 'error: {"code":500}\n\n',
    "error event": 'event: error\ndata: {"message":"boom"}\n\n',
    "no space": 'data:{"error":{"message":"boom"}}\n\ndata: [DONE]\n\n',
    "spaces": 'data: { "error" : { "message" : "boom" } }\n\n',
    "error is text": 'data: {"error":"boom","error_type":"generation"}\n\n',
    "object": 'data: {"object":"error","message":"boom","code":50001}\n\ndata: [DONE]\n\n',
    "event field is last": "data: boom\nevent: error\n\n",
    "fastapi": 'data: {"detail":"boom"}\n\ndata: [DONE]\n\n',
    "bare error object": 'data: {"code":500,"message":"boom"}\n\ndata: [DONE]\n\n',
    "fastchat": 'data: {"text":"boom","error_code":50001}\n\ndata: [DONE]\n\n',
    "finish reason": plain(dumps(chunk(piece("", reason="error")))) + "data: [DONE]\n\n",
    "html": "<html><title>502 Bad Gateway</title></html>\n",
    "last of the keys": plain(dumps(chunk(piece("x"), error={"message": "boom"}))),
    "abort": plain(dumps(chunk(piece("", reason="abort")))) + "data: [DONE]\n\n",
    "abort, spaces": plain(json.dumps(chunk(piece("", reason="abort")))),
    "crlf": 'data: {"error":{"message":"boom"}}\r\n\r\n',
    "body ends": "",
    "body ends within an event": 'data: {"id":"x1","choices":[{"index":0,"delta":{"con',
}


async def raw(stack: Stack, **more: Any) -> tuple[int, str]:
    """(status, body) of a streamed chat."""
    messages = [{"role": "user", "content": "안녕?"}]
    body = {"model": "demo", "stream": True, "messages": messages, **more}
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
        return response.status, await response.text()


def events_of(body: str) -> list[Json]:
    """The events' bodies but for [DONE], which ends the stream and comes once."""
    *events, last, rest = body.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    assert body.count("[DONE]") == 1
    return [json.loads(event.removeprefix("data: ").replace("\ndata: ", "\n")) for event in events]


@pytest.mark.parametrize(("size", "tools"), [(10**6, False), (7, True)])
@pytest.mark.parametrize("name", DRESSES)
async def test_an_answer_in_any_dress_comes_out_once(
    stack: Stack, engines: Callable[..., Any], name: str, size: int, tools: bool
) -> None:
    """The whole text, one finish reason, one [DONE], and no other worker is asked."""
    requests = await engines(DRESSES[name], size)
    asked = {"tools": [{"type": "function", "function": {"name": "f"}}]} if tools else {}
    status, body = await raw(stack, **asked)
    assert status == 200, body
    choices = [choice for event in events_of(body) for choice in event["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == TEXT
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    assert {choice["index"] for choice in choices} == {0}
    assert len(requests) == 1


async def test_events_that_come_all_at_once_are_read_to_their_end(
    stack: Stack, engines: Callable[..., Any]
) -> None:
    """More bytes than are kept for a reader, there before one has come: the stream goes on."""
    padded = answer(encode=lambda body: dumps(body | {"pad": "x" * 70_000}))
    await engines(padded)
    status, body = await raw(stack)
    assert status == 200
    assert len(events_of(body)) == len(WORDS) + 1


@pytest.mark.parametrize("size", [10**6, 11])
@pytest.mark.parametrize("name", FAILURES)
async def test_half_an_answer_never_passes_as_a_whole_one(
    stack: Stack, engines: Callable[..., Any], name: str, size: int
) -> None:
    """What the client has stays, and an error event follows; openai's client raises it."""
    await engines((HALF + FAILURES[name]).encode(), size)
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "안녕?"}], stream=True
        )
        text, code = "", None
        try:
            async for event in stream:
                text += event.choices[0].delta.content or ""
        except openai.APIError as error:
            code = error.code
    assert (text, code) == ("안녕하세", "worker_lost")


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_before_the_first_token_is_another_workers_turn(
    stack: Stack, engines: Callable[..., Any], name: str
) -> None:
    """The client notices nothing of it."""
    broken = await engines(FAILURES[name].encode())
    well = await engines(DRESSES["no space"])
    while not broken:  # which one is asked first, the chat's text decides too
        status, body = await raw(stack, user=str(len(well)), messages=[said(len(well))])
        assert status == 200
        assert "error" not in body
        events_of(body)


def said(number: int) -> Json:
    """A question of its own."""
    return {"role": "user", "content": f"질문 {number}"}


@pytest.mark.parametrize(
    "part",
    [
        piece("가", index=7),
        piece("가", index=[1]),  # type: ignore[arg-type]
        {"index": 0, "delta": "가", "finish_reason": None},
        {"index": 0, "delta": {"content": 5}, "finish_reason": None},
        piece("가", token_ids=["x"]),
        piece("가", token_ids=[2**70]),
        piece("가", prompt_token_ids=5),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
async def test_what_the_journal_cannot_read_is_passed_on(
    stack: Stack, engines: Callable[..., Any], part: Json, n: int
) -> None:
    """Such a stream has no second worker, but it goes on; also one that is longer than a block."""
    odd = plain(dumps(chunk(part)))
    long = plain(dumps(chunk(piece("나" * 100)))) * 300
    ends = "".join(plain(dumps(chunk(piece("", index, "stop")))) for index in range(n))
    await engines((odd + long + odd + ends + "data: [DONE]\n\n").encode(), 10_000)
    status, body = await raw(stack, n=n)
    assert status == 200
    assert len(events_of(body)) == 302 + n


async def test_an_event_that_is_no_json_is_passed_on(
    stack: Stack, engines: Callable[..., Any]
) -> None:
    """A client may know what it means."""
    odd = 'data: {"choices":[],"odd":NaN,"token_ids":[1,2]}\n\n'
    await engines(odd.encode() + DRESSES["vllm"])
    status, body = await raw(stack)
    assert status == 200
    assert body.startswith('data: {"choices":[],"odd":NaN,"token_ids":null}\n\n')
    assert body.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("form", ["fast", "spaces", "no space"])
@pytest.mark.parametrize("tools", [False, True], ids=["", "tools"])
async def test_token_ids_come_only_to_those_who_asked(
    stack: Stack, engines: Callable[..., Any], form: str, tools: bool
) -> None:
    """In whatever form they are written, asked for by us or not."""
    first = chunk(piece(TEXT, token_ids=[7001]), prompt_token_ids=[7002])
    last = chunk(piece("", reason="stop", token_ids=[7003]))
    dress = "data:" if form == "no space" else "data: "
    encode = spaced if form == "spaces" else dumps
    lines = [encode(body).replace("\n", " ") for body in (first, last)]
    wire = "".join(f"{dress}{line}\n\n" for line in lines) + f"{dress}[DONE]\n\n"
    await engines(wire.encode())
    asked = {"tools": [{"type": "function", "function": {"name": "f"}}]} if tools else {}
    for wanted in (False, True):
        _, body = await raw(stack, return_token_ids=wanted, **asked)
        events_of(body)
        assert [number in body for number in ("7001", "7002", "7003")] == [wanted] * 3


async def test_one_choice_of_two_that_has_not_ended_is_no_answer(
    stack: Stack, engines: Callable[..., Any]
) -> None:
    """A clean end of the body proves nothing then."""
    first = plain(dumps(chunk(piece("가", 0, "stop"))))
    second = plain(dumps(chunk(piece("나", 1))))
    await engines((first + second).encode())
    _, body = await raw(stack, n=2)
    assert "worker_lost" in body
    assert "[DONE]" not in body


async def test_what_cannot_be_read_is_not_begun_anew(
    stack: Stack, engines: Callable[..., Any]
) -> None:
    """An answer that breaks off after an odd event ends in an error, beside a worker that is well."""
    odd = plain('{"choices":[],"odd":NaN,"text":"가"}')
    for _ in range(2):
        await engines(odd.encode())
    _, body = await raw(stack)
    assert body.count("가") == 1
    assert "worker_lost" in body
