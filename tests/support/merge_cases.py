"""Tiny bases and PEFT adapters of every kind that `kodolly merge` takes, with PEFT's own answer to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tiny_models import VOCABULARY, tiny_tokenizer

if TYPE_CHECKING:
    from kodolly_adapters.merge.verify import Verdict

TARGETS = {
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
EMBEDDING = {"neox": "embed_in", "llama": "embed_tokens"}
NEW = [3, 9, 600]  # trained token rows
IDS = [[5, 17, 300, 42, 7, 9, 600, 3, 88, 120, 11, 2]]


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of adapter: keywords of LoraConfig, made from (architecture, tied); rows of a resized base."""

    options: Callable[[str, bool], dict[str, Any]]
    rows: int = VOCABULARY
    saves_embeddings: bool | str = "auto"
    # PEFT's merge changes the other end of a tied pair too; its forward pass does not.
    splits_tied: bool = False
    only: str = ""


def _targets(arch: str, *more: str) -> dict[str, Any]:
    return {"target_modules": [*TARGETS[arch], *more]}


def _tokens(arch: str, tied: bool, ids: list[int]) -> dict[str, Any]:
    chosen = {EMBEDDING[arch]: ids} if tied else {EMBEDDING[arch]: ids, "lm_head": ids}
    return _targets(arch) | {"trainable_token_indices": chosen}


VARIANTS: dict[str, Variant] = {
    "lora": Variant(lambda arch, tied: _targets(arch)),
    "rslora": Variant(lambda arch, tied: _targets(arch) | {"use_rslora": True}),
    "dora": Variant(lambda arch, tied: _targets(arch) | {"use_dora": True}),
    "patterns": Variant(
        lambda arch, tied: (
            _targets(arch)
            | {"rank_pattern": {TARGETS[arch][0]: 2}, "alpha_pattern": {TARGETS[arch][1]: 5}}
        )
    ),
    "tokens": Variant(lambda arch, tied: _tokens(arch, tied, NEW)),
    "modules_to_save": Variant(
        lambda arch, tied: _targets(arch) | {"modules_to_save": [EMBEDDING[arch], "lm_head"]}
    ),
    "head_only": Variant(lambda arch, tied: _targets(arch) | {"modules_to_save": ["lm_head"]}),
    "embedding": Variant(lambda arch, tied: _targets(arch, EMBEDDING[arch]), splits_tied=True),
    "resized": Variant(
        lambda arch, tied: _targets(arch) | {"modules_to_save": [EMBEDDING[arch], "lm_head"]},
        rows=VOCABULARY + 64,
    ),
    "new_tokens": Variant(
        lambda arch, tied: _tokens(arch, tied, [3, *range(VOCABULARY, VOCABULARY + 3)]),
        rows=VOCABULARY + 3,
        saves_embeddings=False,
    ),
    "resized_tokens": Variant(
        lambda arch, tied: _tokens(arch, tied, [VOCABULARY, VOCABULARY + 1]),
        rows=VOCABULARY + 8,
    ),
    "bias_all": Variant(lambda arch, tied: _targets(arch) | {"bias": "all"}, only="neox"),
    "bias_lora_only": Variant(
        lambda arch, tied: _targets(arch) | {"bias": "lora_only"}, only="neox"
    ),
    "lora_bias": Variant(lambda arch, tied: _targets(arch) | {"lora_bias": True}, only="neox"),
}


def make_base(directory: Path, arch: str, *, tied: bool, shard: str = "5GB") -> Path:
    """A two-layer base in fp16 with a tokenizer; files of at most `shard`."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 96, "initializer_range": 0.2,
        "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if arch == "neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common, rotary_pct=0.5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=1))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.normal_(0, 0.2)
    model.half().save_pretrained(str(directory), max_shard_size=shard)
    tiny_tokenizer().save_pretrained(str(directory))
    return directory


@dataclass(slots=True)
class Adapted:
    """An adapter on disk, PEFT's logits with it, and the weights PEFT merges, both in float32."""

    directory: Path
    logits: Any
    weights: dict[str, Any]


def make_adapter(
    directory: Path, base: Path, arch: str, variant: Variant, *, tied: bool
) -> Adapted:
    """A random adapter of `variant` saved by PEFT into `directory`."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load(base)
    if variant.rows != VOCABULARY:
        model.resize_token_embeddings(variant.rows, mean_resizing=False)
    config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **variant.options(arch, tied))
    torch.manual_seed(1)
    wrapped: Any = get_peft_model(model, config)
    for _, value in wrapped.named_parameters():
        if value.requires_grad:
            value.data += torch.randn_like(value) * 0.03
    wrapped.save_pretrained(str(directory), save_embedding_layers=variant.saves_embeddings)
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(input_ids=torch.tensor(IDS)).logits.clone()
    merged = wrapped.merge_and_unload()
    weights = {name: value.detach().clone() for name, value in merged.state_dict().items()}
    if arch == "neox":
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    return Adapted(directory, logits, weights)


def load(directory: Path) -> Any:
    """The model in `directory`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


def tensors(directory: Path) -> dict[str, Any]:
    """All tensors of a model directory, read by safetensors' own reader."""
    from safetensors.torch import load_file

    values: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        values |= load_file(path)
    return values


def verdict(base: Path, adapter: Path, out: Path) -> Verdict:
    """What the checking process of `kodolly merge` says of `out`, without a process of its own. Raises OutputError."""
    from kodolly_adapters.merge.verify import judge

    return judge(base, adapter, out, "same", "seed")
