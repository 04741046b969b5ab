"""The config of a recipe's base: from a folder, from the built-in table, or from the hub's cache."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import BaseError

TOKENS_PER_CHARACTER = 1.0  # of Korean, for a tokenizer nobody measured; --tokens-per-row is better


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as far as a plan knows it: no weights, no tokenizer."""

    name: str
    config: dict[str, Any]  # as in config.json
    tokens_per_character: float
    origin: str  # where the config came from


def find(name: str, revision: str | None = None) -> Base:
    """The base called `name`: a folder with a config.json, a built-in name, or a name on the hub.

    Raises BaseError saying what to do where none of them has it.
    """
    if Path(name).is_dir():
        return Base(
            name, _read(Path(name) / "config.json"), TOKENS_PER_CHARACTER, "its config.json"
        )
    if (known := table().get(name)) is not None:
        return Base(name, known["config"], known["tokens_per_character"], "built-in table")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseError(f"{name}: no such folder; give one that holds the base's config.json")
    return Base(name, _fetch(name, revision), TOKENS_PER_CHARACTER, "the hub")


def table() -> dict[str, dict[str, Any]]:
    """The built-in table (bases.toml): name -> {"config", "tokens_per_character"}."""
    place = resources.files(__package__).joinpath("bases.toml")
    return tomllib.loads(place.read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseError(f"{path}: {error.strerror}; a base's folder holds a config.json") from None
    except ValueError as error:
        raise BaseError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise BaseError(f"{path}: not a JSON object")
    return values


def _fetch(name: str, revision: str | None) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise BaseError(
            f"{name}: {first} Without a network: put the base's config.json into a folder and give "
            "--set base=FOLDER; no weights are needed"
        ) from None
    values: dict[str, Any] = config.to_dict()
    return values
