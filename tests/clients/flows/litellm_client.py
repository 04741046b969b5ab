"""litellm, the library."""

from __future__ import annotations

from typing import Any

import litellm
from flow import KEY, MESSAGES, MODEL, QUESTION, TOKENS, TOOL, URL, run

litellm.telemetry = False
CHAT: dict[str, Any] = {
    "model": f"hosted_vllm/{MODEL}",
    "messages": MESSAGES,
    "api_base": f"{URL}/v1",
    "api_key": KEY,
    "max_tokens": TOKENS,
    "temperature": 0,
    "num_retries": 0,
}


def chat() -> None:
    assert litellm.completion(**CHAT).choices[0].message.content


def chat_stream() -> None:
    stream = litellm.completion(**CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def tools() -> None:
    answer = litellm.completion(**CHAT | {"max_tokens": 80}, tools=[TOOL], tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def responses() -> None:
    answer = litellm.responses(
        model=f"openai/{MODEL}", input=QUESTION, api_base=f"{URL}/v1", api_key=KEY,
        max_output_tokens=TOKENS,
    )  # fmt: skip
    assert answer.output


def anthropic() -> None:
    answer = litellm.completion(**CHAT | {"model": f"anthropic/{MODEL}", "api_base": URL})
    assert answer.choices[0].message.content


if __name__ == "__main__":
    run(globals())
