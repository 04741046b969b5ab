"""The tokenizer that goes with the merged model: where it comes from, and the ids the model must have rows for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.card import read_object
from kodolly_adapters.errors import AdapterError
from kodolly_adapters.files import write_json
from kodolly_adapters.model_config import portable_tokenizer_config

CONFIG = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
COPIED = (
    *VOCABULARIES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
ROLES = ("bos_token", "eos_token", "pad_token")
RUN = "run.json"  # what `kodolly train` leaves beside its adapter/


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer on disk."""

    directory: Path
    from_adapter: bool  # else it is the base's
    ids: Mapping[str, int]  # of special and added tokens
    special_ids: Mapping[str, int]  # "eos_token_id" and its like, where the tokenizer names one
    size: int  # the largest id + 1; 0 where it is not known


def adapter_folders(adapter: Path) -> list[Path]:
    """Where files of the adapter may be: its folder, and the training run's around it."""
    around = adapter.resolve().parent
    return [adapter, around] if (around / RUN).is_file() else [adapter]


def find_tokenizer(base: Path, adapter: Path) -> TokenizerInfo | None:
    """The adapter's tokenizer, else the base's; None where neither has one.

    Raises AdapterError where tokenizer.json cannot be read, InputError for other files.
    """
    folders = adapter_folders(adapter)
    for directory in (*folders, base):
        if any((directory / name).is_file() for name in VOCABULARIES):
            return _read(directory, directory in folders)
    return None


def _read(directory: Path, from_adapter: bool) -> TokenizerInfo:
    config = read_object(directory / "special_tokens_map.json") | read_object(directory / CONFIG)
    names = {key: text for key in config if key.endswith("_token") if (text := _text(config[key]))}
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
        for text in names.values():
            if (number := tokenizer.token_to_id(text)) is not None:
                ids[text] = number
    special = {f"{role}_id": ids[names[role]] for role in ROLES if names.get(role) in ids}
    return TokenizerInfo(directory, from_adapter, ids, special, size)


def _text(token: Any) -> str:
    """A token as the configs write it: a string, or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def copy_tokenizer(tokenizer: TokenizerInfo, out: Path) -> None:
    """Copy its files into `out`; its config becomes one that every version of transformers reads."""
    for name in COPIED:
        if (tokenizer.directory / name).is_file():
            shutil.copyfile(tokenizer.directory / name, out / name)
    fast = (out / "tokenizer.json").is_file()
    config = portable_tokenizer_config(read_object(tokenizer.directory / CONFIG), fast=fast)
    write_json(out / CONFIG, config)
