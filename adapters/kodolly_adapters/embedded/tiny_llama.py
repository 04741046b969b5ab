"""A LLaMA of a few million random weights, with the Korean model's tokenizer: a base to try a full training on."""

from __future__ import annotations

import shutil
from pathlib import Path

from kodolly_adapters.card import write_card
from kodolly_adapters.embedded.fetch import Say, packaged
from kodolly_adapters.files import read_json

NAME = "tiny-llama"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "LICENSE", "NOTICE")
SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


def build(fresh: Path, say: Say) -> None:
    """Write the model into the empty directory `fresh`; the same weights each time."""
    say("writing random weights; needs torch, which takes some seconds to load")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = read_json(packaged() / "config.json") or {}
    ids = {key: config[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE, **ids)).save_pretrained(str(fresh))
    for name in TOKENIZER:
        shutil.copyfile(packaged() / name, fresh / name)
    write_card(
        fresh,
        {
            "name": NAME,
            "base": "random",
            "architecture": "LlamaForCausalLM",
            "template": "dolly-ko",
            "license": "Apache-2.0",
            "source": {"weights": "random", "tokenizer": packaged().name},
            "created_by": "kodolly fetch",
            "dtype": "float32",
            "context_length": SHAPE["max_position_embeddings"],
            "metrics": {},
        },
    )
