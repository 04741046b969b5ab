"""Checkpoints of a real model's exact shape with random weights, and an adapter for them, streamed to disk."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POOL = 1 << 22  # random values drawn once; each tensor begins somewhere else among them
RANK = 16
ALPHA = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """A Polyglot-Ko model's sizes, as its config has them. `rotary` is rotary_pct."""

    name: str
    layers: int
    hidden: int
    heads: int
    inner: int
    rotary: float
    vocabulary: int = 30_080

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor, in the order of the layers."""
        hidden = self.hidden
        yield "gpt_neox.embed_in.weight", (self.vocabulary, hidden)
        for number in range(self.layers):
            layer = f"gpt_neox.layers.{number}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{layer}.{norm}.weight", (hidden,)
                yield f"{layer}.{norm}.bias", (hidden,)
            for module, out, width in self.targets():
                yield f"{layer}.{module}.weight", (out, width)
                yield f"{layer}.{module}.bias", (out,)
        yield "gpt_neox.final_layer_norm.weight", (hidden,)
        yield "gpt_neox.final_layer_norm.bias", (hidden,)
        yield "embed_out.weight", (self.vocabulary, hidden)

    def targets(self) -> list[tuple[str, int, int]]:
        """(module, rows, columns) of a layer's linear layers."""
        return [
            ("attention.query_key_value", 3 * self.hidden, self.hidden),
            ("attention.dense", self.hidden, self.hidden),
            ("mlp.dense_h_to_4h", self.inner, self.hidden),
            ("mlp.dense_4h_to_h", self.hidden, self.inner),
        ]

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(math.prod(shape) for _, shape in self.tensors())


SHAPES = {
    "tiny": Shape("tiny", 2, 128, 2, 512, 0.5, 640),
    "1.3b": Shape("polyglot-ko-1.3b", 24, 2048, 16, 8192, 0.5),
    "5.8b": Shape("polyglot-ko-5.8b", 28, 4096, 16, 16384, 0.25),
}


def write_base(shape: Shape, out: Path, shard: int) -> None:
    """A sharded fp16 model directory in `out`, files of about `shard` bytes. Memory: a few MiB."""
    out.mkdir(parents=True, exist_ok=True)
    pool = (np.random.default_rng(0).standard_normal(POOL, np.float32) * 0.02).astype(np.float16)
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, size in shape.tensors():
        filled = sum(2 * math.prod(s) for _, s in groups[-1])
        if filled and filled + 2 * math.prod(size) > shard:
            groups.append([])
        groups[-1].append((name, size))
    places: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        places |= {name: file for name, _ in group}
        _write_file(out / file, group, "F16", pool)
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps(_config(shape)))


def write_adapter(shape: Shape, out: Path) -> None:
    """A PEFT LoRA adapter of rank RANK on the family's four targets, fp32."""
    out.mkdir(parents=True, exist_ok=True)
    pool = np.random.default_rng(1).standard_normal(POOL, np.float32) * np.float32(0.02)
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for number in range(shape.layers):
        for module, rows, columns in shape.targets():
            stem = f"base_model.model.gpt_neox.layers.{number}.{module}"
            tensors.append((f"{stem}.lora_A.weight", (RANK, columns)))
            tensors.append((f"{stem}.lora_B.weight", (rows, RANK)))
    _write_file(out / "adapter_model.safetensors", tensors, "F32", pool)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"EleutherAI/{shape.name}",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        "bias": "none",
    }
    (out / "adapter_config.json").write_text(json.dumps(config))


def _write_file(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], dtype: str, pool: np.ndarray
) -> None:
    start, entries = 0, {}
    for name, shape in tensors:
        end = start + math.prod(shape) * pool.itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    head += b" " * (-len(head) % 8)
    draw = np.random.default_rng(len(tensors))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, shape in tensors:
            left = math.prod(shape)
            while left:
                first = int(draw.integers(0, POOL // 2))
                block = pool[first : first + min(left, POOL // 2)]
                file.write(block.tobytes())
                left -= len(block)
        file.flush()
        os.fsync(file.fileno())


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "hidden_act": "gelu",
        "rotary_pct": shape.rotary,
        "rotary_emb_base": 10_000,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
