"""Which modules of an architecture LoRA adapts, and where its embeddings are.

For GPT-NeoX and LLaMA this is written down here; any other decoder is built on the meta device, where a model
of any size takes no memory, and examined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kodolly_adapters.errors import BaseError


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one architecture's modules in transformers 5.

    `targets` are the last parts of the names of all linear layers but the head. `embeddings` are the full
    names of the (input, output) embeddings; in GPT-NeoX's files the output is called embed_out instead.
    `layer_pattern` is the full name of the list of layers, `layer_class` the class of one layer.
    """

    name: str  # the config's model_type
    targets: tuple[str, ...]
    embeddings: tuple[str, str]
    layer_pattern: str
    layer_class: str


GPT_NEOX = Family(
    name="gpt_neox",
    targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    embeddings=("gpt_neox.embed_in", "lm_head"),
    layer_pattern="gpt_neox.layers",
    layer_class="GPTNeoXLayer",
)
LLAMA = Family(
    name="llama",
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    embeddings=("model.embed_tokens", "lm_head"),
    layer_pattern="model.layers",
    layer_class="LlamaDecoderLayer",
)
KNOWN = {family.name: family for family in (GPT_NEOX, LLAMA)}


def of(config: Any) -> Family:
    """The family of a config: a mapping (config.json) or a transformers PretrainedConfig.

    Imports torch only for a family that is not in KNOWN. Raises BaseError where transformers has no decoder of
    this kind, or where it has no linear layers to adapt.
    """
    values = config if isinstance(config, Mapping) else config.to_dict()
    kind = values.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise BaseError("the base's config.json names no model_type, so its layers are unknown")
    return KNOWN.get(kind) or look(on_meta(values), kind)


def on_meta(values: Mapping[str, Any]) -> Any:
    """A causal language model of this config on the meta device: shapes without weights.

    Raises BaseError where transformers cannot build one without remote code.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = values.get("model_type")
    own = {key: value for key, value in values.items() if key not in {"model_type", "auto_map"}}
    try:
        config = AutoConfig.for_model(kind, **own)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # noqa: BLE001 transformers raises many kinds for a config it cannot use
        first = str(error).strip().split("\n")[0][:200]
        raise BaseError(f"transformers cannot build a {kind} decoder: {first}") from None
    return model


def look(model: Any, kind: str) -> Family:
    """The family of a model, read from its modules. Raises BaseError if its only linear layer is the head."""
    import torch

    names = {module: name for name, module in model.named_modules(remove_duplicate=True)}
    entry, head = model.get_input_embeddings(), model.get_output_embeddings()
    if entry is None or head is None:
        raise BaseError(f"{kind} has no input and output embeddings: it is no decoder of text")
    linear = [n for m, n in names.items() if isinstance(m, torch.nn.Linear) and m is not head]
    last = names[head].rpartition(".")[2]
    targets = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    targets.pop(last, None)  # PEFT matches by the last part: it would adapt the head as well
    if not targets:
        raise BaseError(f"{kind} has no linear layers that LoRA could adapt; train it in full")
    pattern, layer = _layers(model, linear)
    return Family(kind, tuple(targets), (names[entry], names[head]), pattern, layer)


def _layers(model: Any, linear: list[str]) -> tuple[str, str]:
    """(name, class of a member) of the longest list of modules with linear layers; ("", "") without one."""
    import torch

    lists = [
        (len(module), name, type(module[0]).__name__)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and any(inner.startswith(f"{name}.") for inner in linear)
    ]
    if not lists:
        return "", ""
    _, name, layer = max(lists, key=lambda entry: entry[0])
    return name, layer
