"""anthropic-sdk-python."""

from __future__ import annotations

import anthropic
from flow import CITY, KEY, MESSAGES, MODEL, TOKENS, URL, refused, run

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=240)
GREEDY = {"temperature": 0}
TOOLS = [{"name": "get_weather", "description": "Weather of a city.", "input_schema": CITY}]


def message() -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=TOKENS, messages=MESSAGES, system="Be short.", extra_body=GREEDY
    )
    assert answer.content[0].text
    assert 0 < answer.usage.output_tokens <= TOKENS
    assert answer.usage.input_tokens > 0


def message_stream() -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=TOKENS, messages=MESSAGES, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == text != ""
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert final.usage.input_tokens > 0


def prefill() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "The capital of"}]
    answer = client.messages.create(model=MODEL, max_tokens=8, messages=begun, extra_body=GREEDY)
    assert answer.content[0].text


def stop_sequence() -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=60, messages=MESSAGES, stop_sequences=["a"], extra_body=GREEDY
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "a")


def tools() -> None:
    """A call that is asked for, and the answer to what the tool returned."""
    first = client.messages.create(
        model=MODEL,
        max_tokens=80,
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "any"},
        extra_body=GREEDY,
    )
    call = next(block for block in first.content if block.type == "tool_use")
    assert (first.stop_reason, call.name, list(call.input)) == ("tool_use", "get_weather", ["city"])
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(
        model=MODEL, max_tokens=8, messages=turns, tools=TOOLS
    ).stop_reason


def tools_stream() -> None:
    with client.messages.stream(
        model=MODEL,
        max_tokens=80,
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "tool", "name": "get_weather"},
        extra_body=GREEDY,
    ) as stream:
        final = stream.get_final_message()
    call = next(block for block in final.content if block.type == "tool_use")
    assert (final.stop_reason, list(call.input)) == ("tool_use", ["city"])


def count_tokens() -> None:
    few = client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens
    many = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Be short.")
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=MESSAGES)
    assert answer.usage.input_tokens == few != many.input_tokens


def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]


def errors() -> None:
    create, body = client.messages.create, {"model": MODEL, "messages": MESSAGES}
    refused(anthropic.NotFoundError, create, **body | {"model": "no-such-model"}, max_tokens=4)
    refused(anthropic.BadRequestError, create, **body, max_tokens=-1)


if __name__ == "__main__":
    run(globals())
