"""model_card.json: the facts about a model directory or adapter (base, data, template, license, metrics)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import InputError
from kodolly_adapters.files import write_json

CARD = "model_card.json"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} where there is no such file. Raises InputError if it holds anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"not a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise InputError(str(path), "not a JSON object")
    return value


def read_card(directory: Path) -> dict[str, Any]:
    """The card in `directory`; {} where there is none. Raises InputError where it is no JSON object."""
    return read_object(directory / CARD)


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Write the card of `directory` atomically. Raises OSError."""
    write_json(directory / CARD, card)


def config_sha256(config: Any) -> str:
    """A hash of a transformers config; it does not depend on the version of transformers.

    Training writes the hash of its base's config into the card (source.base_config_sha256), and the merge compares
    it with the base at hand.
    """
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()
    values = {k: v for k, v in values.items() if k not in {"transformers_version", "_name_or_path"}}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
