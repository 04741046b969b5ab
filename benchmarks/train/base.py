"""A small GPT-NeoX with a Korean tokenizer, and made-up Korean rows, for the training benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.convert.rows import instructions

END = "<|endoftext|>"
VOCABULARY = 4_000


def rows(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Dolly rows with the length distribution of Korean Alpaca."""
    made = instructions(Random(seed), 2 * count)
    found = [
        {
            "instruction": row["instruction"],
            "context": row.get("input", ""),
            "response": row["output"],
            "category": "open_qa",
        }
        for row in made
        if row["instruction"].strip() and row["output"].strip()
    ]
    return found[:count]


def write_rows(path: Path, made: Sequence[dict[str, str]]) -> Path:
    """JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def make(
    folder: Path,
    texts: Sequence[str],
    hidden: int = 256,
    layers: int = 6,
    vocabulary: int = VOCABULARY,
) -> Path:
    """A model directory with random weights; its tokenizer has learned `texts`."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    words = _tokenizer(texts, vocabulary)
    config = GPTNeoXConfig(
        vocab_size=-(-len(words) // 64) * 64,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=2048,
        rotary_pct=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(1)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=END, model_max_length=2048
    )
