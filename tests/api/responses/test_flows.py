"""What clients do with responses: tools, schemas, references, keys, a server without a store."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from api.conftest import Stack
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel
from support.apps import serving_aiohttp
from support.processes import eventually
from support.response_events import events_of, plain

from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings
from kodolly.store.store import Store

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def wire(*deltas: dict[str, Any], finish: str = "stop") -> bytes:
    """A chat's stream as an engine sends it."""
    reasons = [None] * (len(deltas) - 1) + [finish]
    events = [
        {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in zip(deltas, reasons, strict=True)
    ]
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + (
        b"data: [DONE]\n\n"
    )


def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {"arguments": arguments, **({"name": "weather"} if first else {})}
    return {"tool_calls": [{"index": index, **first, "function": function}]}


@pytest.fixture
def store(tmp_path: Path) -> Store | None:
    return Store(f"sqlite:///{tmp_path}/store.sqlite3")


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(client_keys=("key-one-1234567890", "key-two-1234567890"))


@pytest.fixture
async def clients(stack: Stack) -> AsyncIterator[list[AsyncOpenAI]]:
    """One for each key."""
    url = f"{stack.url}/v1"
    keys = ("key-one-1234567890", "key-two-1234567890")
    made = [AsyncOpenAI(base_url=url, api_key=key, max_retries=0) for key in keys]
    yield made
    for client in made:
        await client.close()


async def test_a_tool_round_trip(stack: Stack, clients: list[AsyncOpenAI]) -> None:
    """The call comes as an item; its output goes back after it, by previous_response_id."""
    client = clients[0]
    async with tool_engine(
        stack,
        wire(
            call(0, "", id="call_1", type="function"),
            call(0, '{"city":"서울"}'),
            finish="tool_calls",
        ),
        wire({"content": "맑아요"}),
    ) as requests:
        first = await client.responses.create(model="demo", input="날씨?", tools=[TOOL])
        item = plain(first)["output"][0]
        assert (item["type"], item["name"], item["arguments"]) == (
            "function_call",
            "weather",
            '{"city":"서울"}',
        )
        second = await client.responses.create(
            model="demo",
            previous_response_id=first.id,
            tools=[TOOL],
            input=[{"type": "function_call_output", "call_id": "call_1", "output": "20도"}],
        )
        assert second.output_text == "맑아요"
        messages = requests[-1]["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
        assert messages[1]["tool_calls"][0]["id"] == "call_1"
        assert messages[2]["content"] == "20도"


async def test_parse_gives_the_object(stack: Stack, clients: list[AsyncOpenAI]) -> None:
    """`.parse` sends a schema and reads the text as what it describes."""

    class Person(BaseModel):
        name: str

    async with tool_engine(
        stack, wire({"content": '{"name":'}, {"content": '"철수"}'})
    ) as requests:
        response = await clients[0].responses.parse(model="demo", input="이름?", text_format=Person)
    assert response.output_parsed == Person(name="철수")
    assert requests[0]["response_format"]["json_schema"]["name"] == "Person"


async def test_items_are_named_by_their_ids(stack: Stack, clients: list[AsyncOpenAI]) -> None:
    """Vercel's provider sends the last turn as an item_reference alone; another key's is not there."""
    async with tool_engine(stack, wire({"content": "하나"}), wire({"content": "둘"})) as requests:
        first = await clients[0].responses.create(model="demo", input="1")
        reference: Any = {"type": "item_reference", "id": first.output[0].id}
        again: Any = [{"role": "user", "content": "1"}, reference, {"role": "user", "content": "2"}]
        await clients[0].responses.create(model="demo", input=again)
        contents = [message["content"] for message in requests[-1]["messages"]]
        assert contents == ["1", "하나", "2"]
        with pytest.raises(NotFoundError):
            await clients[1].responses.create(model="demo", input=again)


async def test_ids_of_another_key_are_not_there(stack: Stack, clients: list[AsyncOpenAI]) -> None:
    """Whatever is asked of them."""
    async with tool_engine(stack, wire({"content": "하나"})):
        response = await clients[0].responses.create(model="demo", input="1")
    conversation = await clients[0].conversations.create()
    other = clients[1]
    for work in (
        other.responses.retrieve(response.id),
        other.responses.cancel(response.id),
        other.responses.delete(response.id),
        other.responses.input_items.list(response.id),
        other.responses.create(model="demo", input="2", previous_response_id=response.id),
        other.conversations.retrieve(conversation.id),
        other.conversations.delete(conversation.id),
        other.conversations.items.list(conversation.id),
    ):
        with pytest.raises(NotFoundError):
            await work
    assert (await clients[0].responses.retrieve(response.id)).output_text == "하나"


async def test_stream_starts_after_an_event(stack: Stack, clients: list[AsyncOpenAI]) -> None:
    """OpenAI's `.stream(response_id=, starting_after=)` reads from the first event and filters itself."""
    async with tool_engine(stack, wire({"content": "하나"}, {"content": "둘"})):
        created = await clients[0].responses.create(model="demo", input="1", stream=True)
        events = await events_of(created)
        response_id = events[0]["response"]["id"]
        async with clients[0].responses.stream(response_id=response_id, starting_after=3) as stream:
            numbers = [event.sequence_number async for event in stream]
            response = await stream.get_final_response()
    assert numbers == list(range(4, len(events)))[-len(numbers) :]
    assert response.output_text == "하나둘"


async def test_what_fails_before_its_first_token_is_an_http_error(
    stack: Stack, clients: list[AsyncOpenAI]
) -> None:
    """An engine's 400 names the field as this API calls it, and nothing is stored."""
    async with tool_engine(stack):
        with pytest.raises(NotFoundError):
            await clients[0].responses.create(model="nobody", input="1")
        with pytest.raises(BadRequestError) as failure:
            await clients[0].responses.create(model="demo", input=[{"role": "x", "content": "1"}])  # type: ignore[list-item, misc]
    assert failure.value.param == "input[0].role"


@asynccontextmanager
async def tool_engine(stack: Stack, *answers: bytes) -> AsyncIterator[list[dict[str, Any]]]:
    """An engine of the model `demo` that gives these answers in turn; yields the requests it got."""
    requests: list[dict[str, Any]] = []
    left = list(answers)

    async def stream(request: web.Request) -> web.StreamResponse:
        requests.append(await request.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(left.pop(0))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", stream)
    async with serving_aiohttp(app) as url:
        extension = Extension(engine_url=url, heart_beat_interval=600, context_length=4096)
        stack.controller.registry.register(
            Registration(worker_name=url, kodolly=extension), WorkerStatus(model_names=["demo"])
        )
        await eventually(lambda: stack.table.models())
        yield requests
