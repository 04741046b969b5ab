"""openai-python."""

from __future__ import annotations

import json

import openai
from flow import KEY, MESSAGES, MODEL, QUESTION, TOKENS, TOOL, URL, refused, run
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=240)
CHAT = {"model": MODEL, "messages": MESSAGES, "temperature": 0}


class City(BaseModel):
    """What the structured answers are."""

    city: str = Field(max_length=20)


def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def chat() -> None:
    answer = client.chat.completions.create(**CHAT, max_tokens=TOKENS)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= TOKENS


def chat_stream() -> None:
    stream = client.chat.completions.create(
        **CHAT, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage.total_tokens


def chat_stream_helper() -> None:
    with client.chat.completions.stream(**CHAT, max_tokens=TOKENS) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text


def several_choices() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, n=2, temperature=1, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]


def completion() -> None:
    answer = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4)
    assert len(answer.choices) == 2


def logprobs() -> None:
    answer = client.chat.completions.create(**CHAT, max_tokens=3, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 3
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)


def parse() -> None:
    answer = client.chat.completions.parse(**CHAT, max_tokens=60, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


def json_object() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "A JSON object with the key a and a short value."}],
        max_tokens=200,
        temperature=0,
        response_format={"type": "json_object"},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def tools() -> None:
    """A call that is asked for, and the answer to what the tool returned."""
    answer = client.chat.completions.create(
        **CHAT, max_tokens=80, tools=[TOOL], tool_choice="required"
    )
    message = answer.choices[0].message
    call = message.tool_calls[0]
    assert (call.function.name, list(json.loads(call.function.arguments))) == (
        "get_weather",
        ["city"],
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    rest = client.chat.completions.create(
        model=MODEL, messages=[*MESSAGES, message, result], max_tokens=8, tools=[TOOL]
    )
    assert rest.choices[0].finish_reason


def tools_stream() -> None:
    stream = client.chat.completions.create(
        **CHAT,
        max_tokens=80,
        stream=True,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    pieces = [call for c in stream if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert pieces[0].function.name == "get_weather"
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)).keys() == {
        "city"
    }


def errors() -> None:
    create = client.chat.completions.create
    refused(openai.NotFoundError, create, **CHAT | {"model": "no-such-model"}, max_tokens=4)
    refused(openai.BadRequestError, create, **CHAT | {"temperature": 9}, max_tokens=4)


def responses() -> None:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=TOKENS, temperature=0
    )
    assert answer.output_text


def responses_stream() -> None:
    with client.responses.stream(
        model=MODEL, input=QUESTION, max_output_tokens=TOKENS, temperature=0
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text != ""


def responses_next_turn() -> None:
    first = client.responses.create(model=MODEL, input="Hi", max_output_tokens=8)
    second = client.responses.create(
        model=MODEL, input="And?", previous_response_id=first.id, max_output_tokens=8
    )
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert second.previous_response_id == first.id


def responses_parse() -> None:
    answer = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=City, max_output_tokens=60, temperature=0
    )
    assert isinstance(answer.output_parsed, City)


if __name__ == "__main__":
    run(globals())
