"""The tokenizer that goes with the merged model: where it comes from, and the ids the model must know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import AdapterError

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
CARD = "model_card.json"
RUN = "run.json"  # what `kodolly train` leaves beside its adapter/


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer on disk. `ids` are of its named tokens and all added ones; `size` the largest id + 1."""

    directory: Path
    own: bool  # the adapter's, not the base's
    config: dict[str, Any]
    ids: Mapping[str, int]
    size: int

    def named(self, role: str) -> int | None:
        """The id of "eos_token" and its like; None where the tokenizer names none, or one it has not."""
        value = self.config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        return self.ids.get(text) if isinstance(text, str) else None


def adapter_places(adapter: Path) -> list[Path]:
    """Where files of the adapter may be: its folder, and the training run's around it."""
    around = adapter.resolve().parent
    return [adapter, around] if (around / RUN).is_file() else [adapter]


def find_words(base: Path, adapter: Path) -> Words | None:
    """The adapter's tokenizer, else the base's; None where neither has one. Raises AdapterError."""
    owned = adapter_places(adapter)
    for directory in (*owned, base):
        if any((directory / name).is_file() for name in VOCABULARIES):
            return _read(directory, directory in owned)
    return None


def _read(directory: Path, own: bool) -> Words:
    config = {
        **read_object(directory / "special_tokens_map.json"),
        **read_object(directory / "tokenizer_config.json"),
    }
    ids = {
        str(entry["content"]): int(number)
        for number, entry in (config.get("added_tokens_decoder") or {}).items()
        if isinstance(entry, dict) and "content" in entry
    }
    size = 0
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 - the library raises no narrower kind
            raise AdapterError(f"{directory / 'tokenizer.json'}: {error}") from None
        added = tokenizer.get_added_tokens_decoder()
        ids |= {token.content: number for number, token in added.items()}
        size = max([tokenizer.get_vocab_size(with_added_tokens=False) - 1, *added], default=-1) + 1
        for role in [key for key in config if key.endswith("_token")]:
            value = config[role]
            text = value.get("content") if isinstance(value, dict) else value
            if not isinstance(text, str) or not text:
                continue
            if (number := tokenizer.token_to_id(text)) is not None:
                ids[text] = number
    own_config = read_object(directory / "tokenizer_config.json")
    merged = {**own_config, **{k: v for k, v in config.items() if k.endswith("_token")}}
    return Words(directory, own, merged, ids, size)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} where there is none. Raises AdapterError for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: no JSON object")
    return value
