"""A complete tiny embedding model with random weights: a BERT of two layers in a sentence-transformers directory."""

from __future__ import annotations

import json
from pathlib import Path

from support.tiny_models import VOCABULARY, tiny_tokenizer

SIZE = 64  # numbers of a vector
LONGEST = 32  # tokens of a text


def make_tiny_encoder(
    directory: Path, *, pooling: str = "mean_tokens", normalize: bool = True
) -> Path:
    """Fills `directory` and returns it. `pooling`: as in sentence-transformers' pooling_mode_NAME."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=128,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(directory)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _write(directory / "modules.json", modules)
    (directory / "1_Pooling").mkdir()
    _write(directory / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    _write(directory / "sentence_bert_config.json", {"max_seq_length": LONGEST})
    return directory


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")
