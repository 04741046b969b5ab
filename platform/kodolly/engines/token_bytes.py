"""How much text one token of a tokenizer can stand for: long texts need not be tokenized to be refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Most bytes of text that NFC turns into one byte: a Korean syllable of three letters, nine bytes, into three.
NFC_SHRINKS = 4
HARMLESS = {"ByteLevel", "Digits", "Metaspace"}  # pre-tokenizers that remove nothing


def longest_token_of(directory: Path) -> int | None:
    """`longest_token` of a model directory; None also without a tokenizer.json that can be read."""
    try:
        tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        return longest_token(tokenizer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the tokenizer was made from other files: only this shortcut is missing


def longest_token(tokenizer: dict[str, Any]) -> int | None:
    """The most bytes of text that one token can stand for; None where that has no bound.

    `tokenizer`: the content of a tokenizer.json. There is a bound for BPE that falls back to bytes, as long
    as nothing before it removes text.
    """
    model = tokenizer.get("model") or {}
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    splitters = list(_parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    is_byte_level = any(part.get("type") == "ByteLevel" for part in splitters)
    if model.get("type") != "BPE" or not (is_byte_level or model.get("byte_fallback")):
        return None
    if not all(map(_keeps_text, normalizers)) or not all(map(_keeps_all, splitters)):
        return None
    added = tokenizer.get("added_tokens") or []
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # such a token takes any amount of white space along
    # A character of a byte-level token is one byte.
    sizes = [len(token) if is_byte_level else len(token.encode()) for token in model["vocab"]]
    sizes += [len(token["content"].encode()) for token in added]
    shrinks = any(part.get("type") == "NFC" for part in normalizers)
    return max(sizes, default=1) * (NFC_SHRINKS if shrinks else 1)


def _parts(step: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """A step of a tokenizer, or the steps of which it is a sequence."""
    if step is not None and step.get("type") == "Sequence":
        for part in step[name]:
            yield from _parts(part, name)
    elif step is not None:
        yield step


def _keeps_text(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer's text has as many bytes as before, but for what NFC composes."""
    if normalizer.get("type") == "Replace":
        pattern = normalizer["pattern"].get("String")
        return pattern is not None and len(pattern.encode()) <= len(normalizer["content"].encode())
    return normalizer.get("type") in ("NFC", "NFD", "Prepend")


def _keeps_all(splitter: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer removes nothing from the text."""
    if splitter.get("type") in ("Split", "Punctuation"):
        return splitter.get("behavior") != "Removed"
    return splitter.get("type") in HARMLESS
