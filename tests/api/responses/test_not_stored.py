"""Responses that are not stored, by OpenAI's own client before a scripted engine."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from api.conftest import Stack
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from support.response_events import events_of, text_of
from support.scripted_engine import Script


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    await stack.add(Script(length=12))
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_whole_response_has_the_text_of_the_chat(client: AsyncOpenAI) -> None:
    """`.create` gives the engine's text, a status and the counts of tokens."""
    response = await client.responses.create(model="demo", input="안녕", store=False)
    assert response.output_text == Script(length=12).text
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens == 13


async def test_a_stream_has_its_events_in_order(client: AsyncOpenAI) -> None:
    """`stream=True` numbers its events from 0, and their deltas make the text."""
    stream = await client.responses.create(model="demo", input="안녕", store=False, stream=True)
    events = await events_of(stream)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert text_of(events) == Script(length=12).text
    kinds = list(dict.fromkeys(event["type"] for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_a_response_that_reaches_its_limit_is_incomplete(client: AsyncOpenAI) -> None:
    """The last event of an answer that `max_output_tokens` cut is `response.incomplete`."""
    async with client.responses.stream(
        model="demo", input="안녕", max_output_tokens=3, store=False
    ) as stream:
        events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"
    details = events[-1].response.incomplete_details
    assert details is not None
    assert details.reason == "max_output_tokens"


async def test_a_field_nobody_honours_is_named(client: AsyncOpenAI) -> None:
    """A tool that is no function is a 400 that names its place."""
    with pytest.raises(BadRequestError) as failure:
        await client.responses.create(
            model="demo", input="안녕", store=False, tools=[{"type": "web_search"}]
        )
    assert failure.value.param == "tools[0].type"


async def test_a_server_without_a_store_says_so(client: AsyncOpenAI) -> None:
    """What would be stored is served and says `store: false`; what needs a store is refused clearly."""
    response = await client.responses.create(model="demo", input="안녕")
    assert response.to_dict()["store"] is False
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(NotFoundError):
        await client.responses.create(model="demo", input="1", previous_response_id=response.id)
    with pytest.raises(BadRequestError) as failure:
        await client.responses.create(model="demo", input="1", background=True)
    assert failure.value.param == "background"
    with pytest.raises(BadRequestError):
        await client.conversations.create()


async def test_an_input_is_counted(client: AsyncOpenAI) -> None:
    """`input_tokens.count` gives the length of the prompt that the engine reads."""
    short = await client.responses.input_tokens.count(model="demo", input="안녕")
    long = await client.responses.input_tokens.count(model="demo", input="안녕" * 9)
    assert long.input_tokens - short.input_tokens == len(("안녕" * 8).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_each_wrong_field_is_named(
    client: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    """A 400 says which."""
    with pytest.raises(BadRequestError) as failure:
        await client.responses.create(model="demo", input="안녕", store=False, extra_body=fields)
    assert failure.value.param == param
