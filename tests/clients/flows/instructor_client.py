"""instructor."""

from __future__ import annotations

import instructor
import openai
from flow import KEY, MESSAGES, MODEL, URL, run
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=240)


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=20)


def _create(mode: instructor.Mode) -> None:
    made = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=MODEL, messages=MESSAGES, response_model=City, max_tokens=80, temperature=0,
        max_retries=0,
    )  # fmt: skip
    assert isinstance(made, City)


def json_schema() -> None:
    _create(instructor.Mode.JSON_SCHEMA)


def tools() -> None:
    _create(instructor.Mode.TOOLS)


if __name__ == "__main__":
    run(globals())
