"""Events of a response's stream as plain objects, and what follows from them."""

from collections.abc import AsyncIterable
from typing import Any

from pydantic import BaseModel

TEXT_DELTA = "response.output_text.delta"


async def events_of(stream: AsyncIterable[Any]) -> list[dict[str, Any]]:
    """All events of a client library's stream."""
    return [event.to_dict() async for event in stream]


def text_of(events: list[dict[str, Any]]) -> str:
    """The text that the deltas make."""
    return "".join(event["delta"] for event in events if event["type"] == TEXT_DELTA)


def plain(model: BaseModel) -> dict[str, Any]:
    """A client library's object as the JSON it came from."""
    return model.model_dump(mode="json", exclude_unset=True, by_alias=True)
