"""The base's tokenizer, with the traps of the study's models taken out; each repair is told.

Polyglot and Pythia: token_type_ids, which generation refuses. Polyglot's first uploads: a padding token that is
misspelt, and would silently become a new row. decapoda's LLaMA: empty names for its own marks, so that no answer
ever ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import BaseError

from .recipe import Recipe

UNKNOWN = ("", "<unk>")  # names under which an upload has lost LLaMA's end
ENDS = ("<|endoftext|>", "</s>")  # what GPT-NeoX's and LLaMA's tokenizers call the end of a text
LLAMA_MARKS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer fit for training, and what had to be repaired in it."""

    tokenizer: Any
    repairs: tuple[str, ...]


def load_tokenizer(recipe: Recipe) -> Words:
    """The base's fast tokenizer: an end token, a padding token, and no token the base does not know.

    Raises BaseError where there is none, or none that can mark the end of an answer.
    """
    tokenizer = _open(recipe, {})
    repairs: list[str] = []
    if fixes := _strangers(recipe, tokenizer):
        tokenizer = _open(recipe, fixes)
        repairs += [
            f"{role} {old!r} is in no vocabulary; {fixes[role]!r} is used"
            for role, old in _named(_config(recipe)).items()
            if role in fixes
        ]
    repairs += _fix_llama(tokenizer)
    _need_end(recipe, tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id is None:
        tokenizer.pad_token = (
            tokenizer.eos_token
        )  # labels mark the padding, so the end is still learned
        repairs.append(f"no padding token; {tokenizer.eos_token!r} is used")
    if "token_type_ids" in tokenizer.model_input_names:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names
        repairs.append("token_type_ids, which the model does not read, are left out")
    return Words(tokenizer, tuple(repairs))


def _open(recipe: Recipe, fixes: Mapping[str, str | None]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            recipe.base, revision=recipe.revision, trust_remote_code=False, **fixes
        )
    except Exception as error:  # noqa: BLE001 - its readers raise whatever the file made them raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseError(f"base {recipe.base}: no tokenizer: {first}") from None
    if not tokenizer.is_fast:
        raise BaseError(
            f"base {recipe.base}: its tokenizer has no tokenizer.json, which the response mask needs"
        )
    return tokenizer


def _strangers(recipe: Recipe, tokenizer: Any) -> dict[str, str | None]:
    """Named tokens that the vocabulary does not hold, and what to call instead: {role: token or None}."""
    text = _file(recipe, "tokenizer.json")
    if text is None:
        return {}
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(text))
    end = next((token for token in ENDS if known.token_to_id(token) is not None), None)
    named = _named(_config(recipe))
    lost = [role for role, token in named.items() if token and known.token_to_id(token) is None]
    fixes: dict[str, str | None] = {
        role: end if role in {"eos_token", "pad_token"} else None for role in lost
    }
    if "pad_token" in fixes and "eos_token" not in fixes:
        fixes["pad_token"] = tokenizer.eos_token or end
    return fixes


def _fix_llama(tokenizer: Any) -> list[str]:
    """Give LLaMA's marks their names where the upload lost them, by the ids they have had all along."""
    if tokenizer.convert_ids_to_tokens([0, 1, 2]) != list(LLAMA_MARKS.values()):
        return []
    wrong = {
        role: getattr(tokenizer, role)
        for role, token in LLAMA_MARKS.items()
        if (getattr(tokenizer, role) or "") in UNKNOWN and token != getattr(tokenizer, role)
    }
    if "eos_token" not in wrong:
        return []
    for role in wrong:
        setattr(tokenizer, role, LLAMA_MARKS[role])
    tokenizer.add_bos_token = True  # as LLaMA was trained; it was off for want of a name
    tokenizer.update_post_processor()
    pairs = ", ".join(f"{role} {old!r} is {LLAMA_MARKS[role]!r}" for role, old in wrong.items())
    return [f"LLaMA's marks have lost their names: {pairs}"]


def _need_end(recipe: Recipe, tokenizer: Any) -> None:
    """Refuse a tokenizer without an end. Pythia's is its unknown token too: byte-level BPE knows every text."""
    end = tokenizer.eos_token
    if (end or "") in UNKNOWN or tokenizer.eos_token_id is None:
        raise BaseError(
            f"base {recipe.base}: its tokenizer names no end token (eos_token {end!r}), so no answer could "
            'end. Name one in tokenizer_config.json, for example "eos_token": "</s>"'
        )


def _config(recipe: Recipe) -> dict[str, Any]:
    place = _file(recipe, "tokenizer_config.json")
    mapped = _file(recipe, "special_tokens_map.json")
    read = [json.loads(p.read_text(encoding="utf-8")) for p in (mapped, place) if p is not None]
    return {key: value for part in read for key, value in part.items()}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """{role: token} of the named marks, written as text or as {"content": ...}."""
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    found = {role: config.get(role) for role in roles}
    plain = {r: t.get("content") if isinstance(t, dict) else t for r, t in found.items()}
    return {role: token for role, token in plain.items() if isinstance(token, str)}


def _file(recipe: Recipe, name: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        recipe.base,
        name,
        revision=recipe.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)
