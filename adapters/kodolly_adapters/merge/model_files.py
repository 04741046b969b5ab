"""Everything beside the weights: configs that every reader understands, tokenizer, chat template, card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kodolly_adapters.card import read_card, read_object, write_card
from kodolly_adapters.errors import AdapterError
from kodolly_adapters.files import sha256, write_json
from kodolly_adapters.model_config import add_both_rotary_forms, portable_tokenizer_config
from kodolly_adapters.safetensors_io import DTYPES
from kodolly_templates import Template, TemplateError, get_template, load
from kodolly_templates.tokenizer import TOKENIZER

from .adapter import WEIGHTS
from .adapter_config import adapter_folders
from .plan import Plan

TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
SPECIAL_TOKENS = (
    "special_tokens_map.json"  # of older versions; what it says goes into TOKENIZER_CONFIG
)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer on disk, or none."""

    directory: Path | None = None
    from_adapter: bool = False  # else it is the base's
    ids: Mapping[str, int] = field(default_factory=dict)  # special and added tokens, by their text
    names: Mapping[str, str] = field(
        default_factory=dict
    )  # special tokens by role: "eos_token", ...
    special_ids: Mapping[str, int] = field(default_factory=dict)  # by key: "eos_token_id", ...
    size: int = 0  # the largest id + 1; 0 where it is not known
    repairs: tuple[str, ...] = ()  # for people


def write_files(plan: Plan, out: Path, name: str) -> list[str]:
    """Write all small files into `out` for a model called `name`; returns notes for people.

    Raises AdapterError where the adapter's tokenizer does not fit the model, InputError for unreadable files.
    """
    tokenizer = _find_tokenizer(plan)
    card = _card(plan, name)
    notes = _notes(plan, tokenizer)
    write_json(out / "config.json", _config(plan, tokenizer))
    if tokenizer.directory is not None:
        _copy_tokenizer(tokenizer, tokenizer.directory, out)
    write_card(out, card)
    _write_chat_template(plan, tokenizer, card["template"], out)
    if generation := _generation(plan, tokenizer, card["template"]):
        write_json(out / GENERATION, generation)
    for notice in NOTICES:
        if (plan.base.directory / notice).is_file():
            shutil.copyfile(plan.base.directory / notice, out / notice)
    return notes


def _find_tokenizer(plan: Plan) -> TokenizerInfo:
    """The adapter's tokenizer, else the base's, else none.

    Raises AdapterError where tokenizer.json cannot be read, InputError for other files.
    """
    folders = adapter_folders(plan.adapter)
    for directory in (*folders, plan.base.directory):
        if any((directory / name).is_file() for name in VOCABULARIES):
            return _read_tokenizer(directory, directory in folders, plan.vocabulary)
    return TokenizerInfo()


def _read_tokenizer(directory: Path, from_adapter: bool, rows: int) -> TokenizerInfo:
    """`special_ids` are those for which the model has one of its `rows` of embeddings."""
    config, older = (read_object(directory / name) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS))
    # The order of transformers, which goes on with a token that is in no vocabulary; this does not.
    order = (config, older) if "added_tokens_decoder" in config else (older, config)
    candidates = {
        role: [text for file in order if (text := _text(file.get(role)))] for role in ROLES
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
        added_tokens = tokenizer.get_added_tokens_decoder()
        ids |= {token.content: number for number, token in added_tokens.items()}
        size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        for text in {text for texts in candidates.values() for text in texts}:
            if (number := tokenizer.token_to_id(text)) is not None:
                ids[text] = number
    usable = {r: [t for t in texts if t in ids or not size] for r, texts in candidates.items()}
    names = {role: texts[0] for role, texts in usable.items() if texts}
    repairs = [
        f"{role} {texts[0]!r} is in no vocabulary; {repr(names[role]) if role in names else 'none'} is used"
        for role, texts in candidates.items()
        if texts and names.get(role) != texts[0]
    ]
    if "eos_token" not in names:
        repairs.append(f"{directory}: names no end token; answers end where {GENERATION} says")
    special = {
        f"{role}_id": ids[text]
        for role, text in names.items()
        if role != "unk_token" and text in ids and (ids[text] < rows or not rows)
    }
    return TokenizerInfo(directory, from_adapter, ids, names, special, size, tuple(repairs))


def _text(token: Any) -> str:
    """A token as the configs write it: a string, or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _copy_tokenizer(tokenizer: TokenizerInfo, directory: Path, out: Path) -> None:
    """Copy a tokenizer into `out`, with a tokenizer_config.json that every version of transformers reads alike."""
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, out / name)
    fast = (out / "tokenizer.json").is_file()
    config = read_object(directory / SPECIAL_TOKENS) | read_object(directory / TOKENIZER_CONFIG)
    config = {k: v for k, v in config.items() if k not in ROLES or k in tokenizer.names}
    config |= tokenizer.names
    write_json(out / TOKENIZER_CONFIG, portable_tokenizer_config(config, fast=fast))


def _notes(plan: Plan, tokenizer: TokenizerInfo) -> list[str]:
    if tokenizer.directory is None:
        return ["neither the adapter nor the base has a tokenizer: the model has none"]
    if tokenizer.size <= plan.vocabulary:
        return [*tokenizer.repairs]
    text = f"the tokenizer knows {tokenizer.size:,} tokens, the model {plan.vocabulary:,}"
    if tokenizer.from_adapter:
        raise AdapterError(
            f"{tokenizer.directory}: {text}: its new tokens were never trained. Train with "
            "trainable token rows (lora.train_new_tokens) or a resized base"
        )
    return [*tokenizer.repairs, text]


def _config(plan: Plan, tokenizer: TokenizerInfo) -> dict[str, Any]:
    config = dict(plan.config)
    dtype = DTYPES[plan.dtype][0]
    config |= {"dtype": dtype, "torch_dtype": dtype}  # for transformers 5, for 4
    if plan.vocabulary:
        config["vocab_size"] = plan.vocabulary
        if "tie_word_embeddings" in config or not plan.tied:
            config["tie_word_embeddings"] = plan.tied
    add_both_rotary_forms(config)
    config |= tokenizer.special_ids
    if isinstance(config.get("pad_token_id"), int) and config["pad_token_id"] < 0:
        config["pad_token_id"] = None  # LLaMA's first uploads have -1
    config.pop("_name_or_path", None)
    return config


def _generation(plan: Plan, tokenizer: TokenizerInfo, template: str) -> dict[str, Any]:
    """The base's generation settings with the stop ids of the tokenizer and the template.

    Sampling settings of the base stay; an adapter's own file wins over all.
    """
    for folder in adapter_folders(plan.adapter):
        if own := read_object(folder / GENERATION):
            return own
    settings = read_object(plan.base.directory / GENERATION)
    settings.pop("transformers_version", None)
    special = tokenizer.special_ids
    try:
        texts = [text.strip() for text in get_template(template).stop]
    except TemplateError:  # the tokenizer's own chat template
        texts = []
    stops = [tokenizer.ids[text] for text in texts if text in tokenizer.ids]
    if "eos_token_id" in special:
        stops.append(special["eos_token_id"])
    base_stops = settings.get("eos_token_id", plan.config.get("eos_token_id"))
    for stop in [base_stops] if isinstance(base_stops, int) else base_stops or []:
        # Some early uploads name a wrong stop id, which would end answers at an ordinary token. So, with a
        # tokenizer and another stop id at hand, the base's is kept only if it is a special or added token.
        if not tokenizer.directory or not stops or stop in tokenizer.ids.values():
            stops.append(int(stop))
    if stops := list(dict.fromkeys(stops)):
        settings["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        settings["pad_token_id"] = special.get("pad_token_id", stops[-1])
    if "bos_token_id" in special:
        settings["bos_token_id"] = special["bos_token_id"]
    return settings


def _write_chat_template(plan: Plan, tokenizer: TokenizerInfo, template: str, out: Path) -> None:
    """The adapter's own template; else the one it was trained with; else what the tokenizer has."""
    for folder in adapter_folders(plan.adapter):
        if (folder / CHAT_TEMPLATE).is_file():
            shutil.copyfile(folder / CHAT_TEMPLATE, out / CHAT_TEMPLATE)
            return
    if template == TOKENIZER or tokenizer.directory is None:
        return
    try:
        chat_template = load(out)
    except TemplateError as error:
        raise AdapterError(f"{plan.adapter}: template {template}: {error}") from None
    if isinstance(chat_template, Template):
        (out / CHAT_TEMPLATE).write_text(chat_template.jinja(), encoding="utf-8")
        config = read_object(out / TOKENIZER_CONFIG)
        config.pop("chat_template", None)  # it would contradict chat_template.jinja
        write_json(out / TOKENIZER_CONFIG, config)


def _card(plan: Plan, name: str) -> dict[str, Any]:
    base_card = read_card(plan.base.directory)
    card: dict[str, Any] = {}
    for folder in reversed(adapter_folders(plan.adapter)):
        card |= read_card(folder)
    base_name = str(card.get("base") or plan.adapter_config.base_model_name_or_path)
    if not base_name or Path(base_name).is_absolute():  # a path where the adapter was trained
        base_name = str(base_card.get("name") or plan.base.directory.name)
    source = card.get("source")
    return {
        **card,
        "name": name,
        "base": base_name,
        "architecture": next(iter(plan.config.get("architectures") or []), ""),
        "template": str(card.get("template") or base_card.get("template") or TOKENIZER),
        "license": card.get("license") or base_card.get("license") or "unknown",
        "source": {
            **(source if isinstance(source, Mapping) else {}),
            "adapter_sha256": sha256(plan.adapter / WEIGHTS),
        },
        "created_by": "kodolly merge",
        "dtype": DTYPES[plan.dtype][0],
        "vocab_size": plan.vocabulary,
        "quantization": "none",
        "metrics": card.get("metrics") or {},
    }
