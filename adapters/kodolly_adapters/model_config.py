"""Makes config.json and tokenizer_config.json mean the same to transformers 4 and transformers 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_THETA = 10_000.0  # transformers' default, for configs without the key
FAST = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in every version of transformers


def add_both_rotary_forms(config: dict[str, Any]) -> None:
    """Write the rotary settings of `config` under the keys of transformers 5 and of 4; each reads only its own."""
    neox = config.get("model_type") == "gpt_neox"
    theta_key = "rotary_emb_base" if neox else "rope_theta"
    rope = config.get("rope_parameters")
    if rope is None:
        if not neox and theta_key not in config:
            return
        scaling = config.get("rope_scaling") or {}
        rope = {"rope_type": scaling.get("rope_type", scaling.get("type", "default")), **scaling}
        rope["rope_theta"] = config.get(theta_key, DEFAULT_THETA)
        if neox:
            rope["partial_rotary_factor"] = config.get("rotary_pct", 0.25)
        config["rope_parameters"] = rope
    elif "rope_theta" in rope:
        config[theta_key] = rope["rope_theta"]
        if neox:
            config["rotary_pct"] = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    if neox:
        config.setdefault("rotary_emb_base", rope.get("rope_theta", DEFAULT_THETA))
        config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))


def portable_tokenizer_config(config: Mapping[str, Any], *, fast: bool) -> dict[str, Any]:
    """tokenizer_config.json without keys that only the machine or version that saved it can use.

    `fast`: the tokenizer is to be read from tokenizer.json.
    """
    local = ("is_local", "local_files_only", "name_or_path", "auto_map", "backend")
    portable = {key: value for key, value in config.items() if key not in local}
    if fast:
        portable["tokenizer_class"] = FAST
    names = portable.get("model_input_names", ["input_ids", "attention_mask"])
    # Old tokenizers return token_type_ids, which GPT-NeoX and LLaMA do not accept.
    portable["model_input_names"] = [name for name in names if name != "token_type_ids"]
    return portable
