"""LangChain: ChatOpenAI and ChatAnthropic."""

from __future__ import annotations

from typing import Any

from flow import KEY, MODEL, QUESTION, TOKENS, TOOL, URL, run
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=20)


def _model(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=f"{URL}/v1", api_key=KEY, temperature=0, max_retries=0, timeout=240,
        **options,
    )  # fmt: skip


def chat() -> None:
    assert _model(max_tokens=TOKENS).invoke(QUESTION).content


def chat_stream() -> None:
    assert "".join(chunk.content for chunk in _model(max_tokens=TOKENS).stream(QUESTION))


def structured_output() -> None:
    model = _model(max_tokens=60).with_structured_output(City, method="json_schema")
    assert isinstance(model.invoke(QUESTION), City)


def tools() -> None:
    model = _model(max_tokens=80).bind_tools([TOOL], tool_choice="required")
    assert model.invoke(QUESTION).tool_calls[0]["name"] == "get_weather"


def responses() -> None:
    assert _model(max_tokens=TOKENS, use_responses_api=True).invoke(QUESTION).text


def anthropic() -> None:
    model = ChatAnthropic(
        model_name=MODEL, base_url=URL, api_key=KEY, max_tokens=TOKENS, max_retries=0, timeout=240
    )
    assert model.invoke(QUESTION).content
    assert "".join(str(chunk.content) for chunk in model.stream(QUESTION))


if __name__ == "__main__":
    run(globals())
