"""What a model's card says about serving it: defaults, aliases, the owner, vLLM's parsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodolly.engines.model_files import read_object
from kodolly.errors import SettingsError
from kodolly.protocol.wire import Defaults, ModelName

CARD = "model_card.json"
MAX_ALIASES = 64


class _Serving(BaseModel):
    """The fields of a card that are read here; it has many others."""

    model_config = ConfigDict(extra="ignore", strict=True)

    defaults: Defaults | None = None
    aliases: list[ModelName] = Field(default_factory=list, max_length=MAX_ALIASES)
    owner: str | None = Field(default=None, min_length=1, max_length=256)
    tool_parser: str | None = None
    reasoning_parser: str | None = None


@dataclass(frozen=True)
class ServingCard:
    """The same, checked. `parsers`: kind ("tool", "reasoning") -> name, `none` or None."""

    defaults: Defaults | None = None
    aliases: tuple[str, ...] = ()
    owner: str | None = None
    parsers: Mapping[str, str | None] = field(default_factory=dict)


def read_serving_card(directory: Path) -> ServingCard:
    """What the card in a model directory says; nothing without one. Raises SettingsError."""
    return serving_card(read_object(directory / CARD), str(directory / CARD))


def serving_card(card: Mapping[str, Any], where: str) -> ServingCard:
    """The same for a card that was read already. `where`: names it in an error."""
    try:
        serving = _Serving.model_validate(card)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{where}: {name}: {first['msg']}") from error
    return ServingCard(
        serving.defaults,
        tuple(serving.aliases),
        serving.owner,
        {"tool": serving.tool_parser, "reasoning": serving.reasoning_parser},
    )


def checked_aliases(aliases: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Other names of a model, each once. `names`: those it is served by.

    Raises SettingsError for one that is a served name, or no name at all.
    """
    unique = tuple(dict.fromkeys(alias.strip() for alias in aliases))
    if len(unique) > MAX_ALIASES:
        raise SettingsError(f"--model-aliases: at most {MAX_ALIASES} names, not {len(unique)}")
    for alias in unique:
        if alias in names:
            raise SettingsError(f"--model-aliases: {alias!r} is served under that name already")
        if not alias or len(alias) > 512 or not alias.isprintable():
            raise SettingsError(f"--model-aliases: {alias!r} is no name for a model")
    return unique
