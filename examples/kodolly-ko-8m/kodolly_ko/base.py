"""The base before training: a small model of Polyglot's architecture, and a tokenizer of Polyglot's kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

END = "<|endoftext|>"  # begins, ends and pads
SPECIALS = ("<|unused0|>", "<|unused1|>", END)  # Polyglot's: <|endoftext|> is number 2
END_ID = 2
VOCABULARY = 6000  # tokens
CONTEXT = 1024  # tokens
HIDDEN, LAYERS, HEADS = 256, 6, 4


def write_base(texts: Iterable[str], out: Path) -> None:
    """Make `out` a model directory without weights: config.json and a tokenizer learned from `texts`."""
    out.mkdir(parents=True, exist_ok=True)
    _train_tokenizer(texts).save(str(out / "tokenizer.json"))
    _write(out / "tokenizer_config.json", _tokenizer_config())
    _write(out / "config.json", _config())  # last: it says that the directory is whole


def _train_tokenizer(texts: Iterable[str]) -> Any:
    """Byte-level BPE: decoding the tokens of any text gives that text; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        # GPT-NeoX refuses token_type_ids, so the tokenizer makes none.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _config() -> dict[str, Any]:
    """config.json of a GPT-NeoX like Polyglot: parallel residual, half of each head rotary, untied embeddings.

    The rotary settings are under the keys of transformers 5 and of 4, which reads only the older ones.
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
        "dtype": "float16",  # of the files, as with Polyglot; training itself is in float32
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
