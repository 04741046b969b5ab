"""openai-agents."""

from __future__ import annotations

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from flow import KEY, MODEL, QUESTION, TOKENS, URL, run

set_tracing_disabled(True)


def _client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=240)


async def chat() -> None:
    model = OpenAIChatCompletionsModel(MODEL, _client())
    agent = Agent("a", model=model, model_settings=ModelSettings(max_tokens=TOKENS))
    assert (await Runner.run(agent, QUESTION)).final_output


async def tools() -> None:
    """The agent has to call its tool, and answers with what that returned."""
    calls = []

    @function_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        calls.append(city)
        return "sunny"

    agent = Agent(
        "a",
        model=OpenAIChatCompletionsModel(MODEL, _client()),
        tools=[get_weather],
        model_settings=ModelSettings(tool_choice="required", max_tokens=120, temperature=0),
        tool_use_behavior="stop_on_first_tool",
    )
    assert (await Runner.run(agent, QUESTION, max_turns=2)).final_output == "sunny"
    assert calls


async def responses() -> None:
    model = OpenAIResponsesModel(MODEL, _client())
    agent = Agent("a", model=model, model_settings=ModelSettings(max_tokens=TOKENS))
    assert (await Runner.run(agent, QUESTION)).final_output


if __name__ == "__main__":
    run(globals())
