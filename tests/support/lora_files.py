"""Directories of a base and of LoRA adapters as PEFT saves them, without torch: names and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, RANK = 8, 16, 4
LAYER = "gpt_neox.layers.0"
LINEARS = {
    f"{LAYER}.attention.query_key_value": (3 * HIDDEN, HIDDEN),
    f"{LAYER}.mlp.dense_h_to_4h": (INNER, HIDDEN),
}
EMBEDDING = "gpt_neox.embed_in"


def tensor(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


def write_base(directory: Path, *, shards: bool = False, **card: Any) -> Path:
    """A GPT-NeoX-like model directory without a chat template; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", {"model_type": "gpt_neox"})
    write_json(directory / "model_card.json", card)
    weights = {f"{name}.weight": tensor(*shape) for name, shape in LINEARS.items()}
    weights[f"{EMBEDDING}.weight"] = tensor(32, HIDDEN)
    if not shards:
        save_file(weights, directory / "model.safetensors")
        return directory
    files = {name: f"model-{i}-of-{len(weights)}.safetensors" for i, name in enumerate(weights, 1)}
    for name, file in files.items():
        save_file({name: weights[name]}, directory / file)
    write_json(directory / "model.safetensors.index.json", {"weight_map": files})
    return directory


def factors(module: str, shape: tuple[int, int], rank: int = RANK) -> dict[str, Any]:
    """The two matrices that PEFT saves for a linear layer of `shape`, (out, in)."""
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": tensor(rank, shape[1]),
        f"{name}.lora_B.weight": tensor(shape[0], rank),
    }


def write_adapter(
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    rank: int = RANK,
    **card: Any,
) -> Path:
    """An adapter of both linear layers; `config` and `tensors` go over what PEFT would write."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **(config or {})}
    write_json(directory / "adapter_config.json", told)
    plain = {k: v for m, s in LINEARS.items() for k, v in factors(m, s, rank).items()}
    save_file(plain | dict(tensors or {}), directory / "adapter_model.safetensors")
    if card:
        write_json(directory / "model_card.json", card)
    return directory


def write_tokenizer(directory: Path, *special: str) -> None:
    """A tokenizer.json that names these special tokens."""
    tokens = [{"id": i, "content": token, "special": True} for i, token in enumerate(special)]
    write_json(directory / "tokenizer.json", {"added_tokens": tokens})


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")
