"""The base before training: Polyglot's architecture, small, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kodolly_adapters.embedded.korean.tokenizer import END_ID, VOCABULARY, train_tokenizer

CONTEXT = 1024  # tokens
HIDDEN, LAYERS, HEADS = 256, 6, 4


def config() -> dict[str, Any]:
    """config.json of a GPT-NeoX as Polyglot's: parallel residual, half of each head rotary, untied.

    Rotary settings stand in both spellings: transformers before 5 reads only the older one.
    """
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * HIDDEN,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "rotary_pct": 0.5,
        "rotary_emb_base": 10000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000,
            "partial_rotary_factor": 0.5,
        },
        "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "use_cache": True,
        "dtype": "float16",  # of the files, as Polyglot's; training itself is in float32
    }


def write_base(texts: Iterable[str], out: Path) -> None:
    """Make `out` a model directory without weights: config.json and a tokenizer learned from `texts`."""
    out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(texts, out, context=CONTEXT)
    text = json.dumps(config(), ensure_ascii=False, indent=2) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
