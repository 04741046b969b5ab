"""Everything beside the weights: configs that every reader understands, tokenizer, chat template, card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import AdapterError
from kodolly_adapters.safetensors_io import DTYPES

from .plan import Plan
from .staging import sha256, write_json
from .words import CARD, TOKENIZER_FILES, Words, adapter_places, find_words, read_object

GENERATION = "generation_config.json"
FAST = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in every version of transformers
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
TOKENIZER = "tokenizer"  # a card's template: the tokenizer's own chat template
DEFAULT_THETA = 10_000.0


def write_files(plan: Plan, out: Path, name: str) -> list[str]:
    """Write all small files into `out` for a model called `name`; returns notes for people.

    Raises AdapterError where the adapter's tokenizer does not fit the model.
    """
    words = find_words(plan.base.directory, plan.adapter)
    card = _card(plan, name)
    notes = _notes(plan, words)
    write_json(out / "config.json", _config(plan, words))
    if words is not None:
        _write_tokenizer(words, out)
    write_json(out / CARD, card)
    _write_chat_template(plan, words, str(card["template"]), out)
    generation = _generation(plan, words, str(card["template"]))
    if generation:
        write_json(out / GENERATION, generation)
    for notice in NOTICES:
        if (plan.base.directory / notice).is_file():
            shutil.copyfile(plan.base.directory / notice, out / notice)
    return notes


def _notes(plan: Plan, words: Words | None) -> list[str]:
    if words is None:
        return ["neither the adapter nor the base has a tokenizer: the model has none"]
    if words.size > plan.vocabulary:
        text = f"the tokenizer knows {words.size:,} tokens, the model {plan.vocabulary:,}"
        if words.own:
            raise AdapterError(
                f"{words.directory}: {text}: its new tokens were never trained. Train with "
                "trainable token rows (lora.train_new_tokens) or a resized base"
            )
        return [text]
    return []


def _config(plan: Plan, words: Words | None) -> dict[str, Any]:
    config = dict(plan.config)
    kind = DTYPES[plan.dtype][0]
    config |= {"dtype": kind, "torch_dtype": kind}  # transformers 5 reads the one, 4 the other
    if plan.vocabulary:
        config["vocab_size"] = plan.vocabulary
        if "tie_word_embeddings" in config or not plan.tied:
            config["tie_word_embeddings"] = plan.tied
    _both_ropes(config)
    for key, value in _special_ids(words).items():
        config[key] = value
    if isinstance(config.get("pad_token_id"), int) and config["pad_token_id"] < 0:
        config["pad_token_id"] = None  # LLaMA's first uploads
    config.pop("_name_or_path", None)
    if plan.export != "none":
        from .export import quantization_config

        config["quantization_config"] = quantization_config(plan.export, plan.outputs)
    return config


def _both_ropes(config: dict[str, Any]) -> None:
    """Rotary settings in transformers 5's words and in 4's: either version alone would lose the other's."""
    neox = config.get("model_type") == "gpt_neox"
    theta_key = "rotary_emb_base" if neox else "rope_theta"
    known = config.get("rope_parameters")
    if known is None and not neox and theta_key not in config:
        return
    if known is None:
        scaling = config.get("rope_scaling") or {}
        rope = {"rope_type": scaling.get("rope_type", scaling.get("type", "default")), **scaling}
        rope["rope_theta"] = config.get(theta_key, DEFAULT_THETA)
        if neox:
            rope["partial_rotary_factor"] = config.get("rotary_pct", 0.25)
        config["rope_parameters"] = rope
    elif "rope_theta" in known:
        rope = known
        config[theta_key] = rope["rope_theta"]
        if neox:
            config["rotary_pct"] = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    if neox:
        rope = config["rope_parameters"]
        config.setdefault("rotary_emb_base", rope.get("rope_theta", DEFAULT_THETA))
        config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))


def _special_ids(words: Words | None) -> dict[str, int]:
    if words is None:
        return {}
    found = {f"{role}_id": words.named(role) for role in ("bos_token", "eos_token", "pad_token")}
    return {key: value for key, value in found.items() if value is not None}


def _generation(plan: Plan, words: Words | None, template: str) -> dict[str, Any]:
    """The base's generation settings with the stop ids of the tokenizer and the template.

    Sampling settings of the base stay; an adapter's own file wins over all.
    """
    for place in adapter_places(plan.adapter):
        if own := read_object(place / GENERATION):
            return own
    settings = read_object(plan.base.directory / GENERATION)
    settings.pop("transformers_version", None)
    ids = _special_ids(words)
    stops = [*_template_stops(words, template)]
    if "eos_token_id" in ids:
        stops.append(ids["eos_token_id"])
    for stop in _listed(settings.get("eos_token_id", plan.config.get("eos_token_id"))):
        # A wrong id of an early upload is worse than none: with a tokenizer, only marks can stop.
        if words is None or not stops or stop in words.ids.values():
            stops.append(stop)
    stops = list(dict.fromkeys(stops))
    if stops:
        settings["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        settings["pad_token_id"] = ids.get("pad_token_id", stops[-1])
    if "bos_token_id" in ids:
        settings["bos_token_id"] = ids["bos_token_id"]
    return settings


def _template_stops(words: Words | None, template: str) -> Iterable[int]:
    """Ids of those stops of the dialect that are one token: `### End` where it was added as one."""
    if words is None or template == TOKENIZER:
        return []
    from kodolly_templates import get_template
    from kodolly_templates.errors import TemplateError

    try:
        stops = get_template(template).stop
    except TemplateError:
        return []
    return dict.fromkeys(words.ids[s.strip()] for s in stops if s.strip() in words.ids)


def _listed(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(item) for item in value] if isinstance(value, list) else []


def _write_tokenizer(words: Words, out: Path) -> None:
    for name in TOKENIZER_FILES:
        if (words.directory / name).is_file():
            shutil.copyfile(words.directory / name, out / name)
    config = read_object(words.directory / "tokenizer_config.json")
    if (words.directory / "tokenizer.json").is_file():
        config["tokenizer_class"] = FAST
    names = config.get("model_input_names", ["input_ids", "attention_mask"])
    # GPT-NeoX's and LLaMA's forward know no token_type_ids, which old tokenizers make.
    config["model_input_names"] = [name for name in names if name != "token_type_ids"]
    for key in ("is_local", "local_files_only", "name_or_path", "auto_map"):
        config.pop(key, None)
    write_json(out / "tokenizer_config.json", config)


def _write_chat_template(plan: Plan, words: Words | None, template: str, out: Path) -> None:
    """The adapter's own template; else the dialect it was trained with; else what the tokenizer has."""
    for place in adapter_places(plan.adapter):
        if (place / "chat_template.jinja").is_file():
            shutil.copyfile(place / "chat_template.jinja", out / "chat_template.jinja")
            return
    if template == TOKENIZER or words is None:
        return
    from kodolly_templates import Template, load
    from kodolly_templates.errors import TemplateError

    try:
        found = load(out)
        if isinstance(found, Template):
            (out / "chat_template.jinja").write_text(found.jinja(), encoding="utf-8")
            config = read_object(out / "tokenizer_config.json")
            config.pop("chat_template", None)  # the base's, for other keys
            write_json(out / "tokenizer_config.json", config)
    except TemplateError as error:
        raise AdapterError(f"{plan.adapter}: template {template}: {error}") from None


def _card(plan: Plan, name: str) -> dict[str, Any]:
    base_card = read_object(plan.base.directory / CARD)
    card: dict[str, Any] = {}
    for place in reversed(adapter_places(plan.adapter)):
        card |= read_object(place / CARD)
    base_name = str(card.get("base") or plan.settings.base)
    if not base_name or Path(base_name).is_absolute():  # a path is of the machine that trained
        base_name = str(base_card.get("name") or plan.base.directory.name)
    source = card.get("source")
    weights = plan.adapter / "adapter_model.safetensors"
    return {
        **card,
        "name": name,
        "base": base_name,
        "architecture": next(iter(plan.config.get("architectures") or []), ""),
        "template": card.get("template") or base_card.get("template") or TOKENIZER,
        "license": card.get("license") or base_card.get("license") or "unknown",
        "source": {
            **(source if isinstance(source, Mapping) else {}),
            "adapter_sha256": sha256(weights),
        },
        "created_by": "kodolly merge",
        "dtype": DTYPES[plan.dtype][0],
        "vocab_size": plan.vocabulary,
        "quantization": plan.export,
        "metrics": card.get("metrics") or {},
    }
