"""pydantic-ai: agents on chat completions and on responses."""

from __future__ import annotations

from typing import Any

from flow import KEY, MODEL, QUESTION, TOKENS, URL, run
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
LIMIT: Any = {"max_tokens": TOKENS, "temperature": 0}
ROOM: Any = {"max_tokens": 80, "temperature": 0}


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=20)


def chat() -> None:
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), model_settings=LIMIT)
    assert agent.run_sync(QUESTION).output


def structured_output() -> None:
    """By a tool, which is this library's own way."""
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), output_type=City, model_settings=ROOM)
    assert isinstance(agent.run_sync(QUESTION).output, City)


def native_output() -> None:
    """By a response format."""
    model = OpenAIChatModel(MODEL, provider=provider)
    agent = Agent(model, output_type=NativeOutput(City), model_settings=ROOM)
    assert isinstance(agent.run_sync(QUESTION).output, City)


def responses() -> None:
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), model_settings=LIMIT)
    assert agent.run_sync(QUESTION).output


if __name__ == "__main__":
    run(globals())
