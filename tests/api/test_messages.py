"""Anthropic's Messages API, before scripted engines."""

from typing import Any

import aiohttp
import orjson
import pytest
from support.apps import serving
from support.script import Script

from kodolly.api.app import create_app
from kodolly.settings import ApiSettings

from .conftest import Stack

QUESTION: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "한국의 수도는?"}],
}
Events = list[dict[str, Any]]


async def post(
    stack: Stack, path: str = "", headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{stack.url}/v1/messages{path}", json=QUESTION | fields) as response,
    ):
        return response.status, await response.json()


async def events(stack: Stack, **fields: Any) -> Events:
    """The decoded events of a streamed message; each is named as its type."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{stack.url}/v1/messages", json=QUESTION | fields | {"stream": True}
        ) as response,
    ):
        text = (await response.read()).decode()
        assert response.status == 200, text
    decoded = []
    for part in text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        decoded.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {decoded[-1]['type']}"
    return decoded


def text_of(sent: Events) -> str:
    return "".join(e["delta"]["text"] for e in sent if e["type"] == "content_block_delta")


async def test_a_message_is_the_answer_of_a_chat(stack: Stack) -> None:
    """Its fields are Anthropic's, and the engine is asked for an ordinary chat."""
    engine = await stack.add()
    status, message = await post(
        stack,
        system=[{"type": "text", "text": "짧게.", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["없는 말"],
        top_k=5,
        metadata={"user_id": "u"},
    )

    assert status == 200
    assert (message["type"], message["role"], message["stop_reason"]) == (
        "message",
        "assistant",
        "end_turn",
    )
    assert message["content"] == [{"type": "text", "text": engine.script.text}]
    assert message["usage"]["input_tokens"] > 0
    assert message["usage"]["output_tokens"] > 0
    asked = engine.requests[-1].body
    assert asked["messages"][0] == {"role": "system", "content": "짧게."}
    assert (asked["stop"], asked["top_k"], asked["user"]) == (["없는 말"], 5, "u")


async def test_a_stream_has_the_events_in_order_and_the_whole_text(stack: Stack) -> None:
    """message_start, the block, message_delta with the counts, message_stop."""
    await stack.add()
    _, whole = await post(stack)
    sent = await events(stack)

    kinds = [event["type"] for event in sent]
    first, last = kinds.index("content_block_delta"), len(kinds) - 3
    assert kinds[:first] == ["message_start", "ping", "content_block_start"]
    assert set(kinds[first:last]) == {"content_block_delta"}
    assert kinds[last:] == ["content_block_stop", "message_delta", "message_stop"]
    assert text_of(sent) == whole["content"][0]["text"]
    assert sent[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": whole["usage"],
    }


async def test_a_stream_goes_on_when_its_worker_dies(stack: Stack) -> None:
    """The client of a message notices it as little as that of a chat."""
    well = await stack.add()
    bad = await stack.add(Script(die_after=7))
    for worker in stack.table.all():
        worker.foreign = 1000 if worker.row.name == well.url else 0
    sent = await events(stack)

    assert bad.requests
    assert text_of(sent) == well.script.text
    assert [event["type"] for event in sent].count("message_start") == 1
    assert sent[-1]["type"] == "message_stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_end_says_why(stack: Stack, stream: bool) -> None:
    """A limit, the client's stop sequence; a stop string of the template is an end like any other."""
    engine = await stack.add(stop=["굵은"])
    text = engine.script.text
    word = text[4:9]
    for fields, reason, sequence in (
        ({"max_tokens": 3}, "max_tokens", None),
        ({"stop_sequences": [word]}, "stop_sequence", word),
        ({}, "end_turn", None),
    ):
        if stream:
            end = next(e for e in await events(stack, **fields) if e["type"] == "message_delta")
            given = end["delta"]
        else:
            _, given = await post(stack, **fields)
        assert (given["stop_reason"], given["stop_sequence"]) == (reason, sequence)


async def test_a_last_turn_of_the_assistant_begins_the_answer(stack: Stack) -> None:
    """Anthropic's prefill is a continued message."""
    engine = await stack.add()
    await post(stack, messages=[*QUESTION["messages"], {"role": "assistant", "content": "수도는"}])

    asked = engine.requests[-1].body
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_result", "tool_use_id": "a"}],
                    }
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
async def test_what_is_wrong_is_named(stack: Stack, fields: dict[str, Any], field: str) -> None:
    """In Anthropic's envelope, by the path of the field."""
    engine = await stack.add()
    status, body = await post(stack, **fields)

    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["message"].startswith(field), body
    assert not engine.requests


async def test_tokens_are_counted_by_the_engine(stack: Stack) -> None:
    """As many as the message itself has; the queue is not waited in, and nothing is generated."""
    engine = await stack.add()
    _, message = await post(stack)
    status, count = await post(stack, "/count_tokens", max_tokens=None)

    assert (status, count) == (200, {"input_tokens": message["usage"]["input_tokens"]})
    assert engine.requests[-1].path == "/tokenize"


async def test_an_error_within_a_stream_is_an_event(stack: Stack) -> None:
    """The client's library raises it."""
    await stack.add(Script(error_after=2, error_code=400))
    sent = await events(stack)

    assert sent[-1]["type"] == "error"
    assert set(sent[-1]["error"]) == {"type", "message"}


async def test_an_unknown_model_is_404(stack: Stack) -> None:
    """As Anthropic answers it."""
    await stack.add()
    status, body = await post(stack, model="none")
    assert (status, body["error"]["type"]) == (404, "not_found_error")


class TestWithKeys:
    """Where the operator set client keys."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(client_keys=("secret-of-the-client",))

    async def test_a_key_comes_as_anthropic_s_clients_send_it(self, settings: ApiSettings) -> None:
        """As x-api-key, or as a Bearer token; without one, or with a wrong one, the answer is 401."""
        async with serving(create_app(settings)) as url, aiohttp.ClientSession() as http:
            for headers, status in (
                ({}, 401),
                ({"x-api-key": "wrong"}, 401),
                ({"x-api-key": "secret-of-the-client"}, 503),  # no worker
                ({"Authorization": "Bearer secret-of-the-client"}, 503),
            ):
                post = http.post(f"{url}/v1/messages", json=QUESTION, headers=headers)
                async with post as response:
                    body = await response.json()
                assert response.status == status
                assert (body["error"]["type"] == "authentication_error") == (status == 401)
