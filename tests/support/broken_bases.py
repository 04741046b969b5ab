"""Toy bases in the shapes that people bring: tokenizer, configs and embeddings that do not agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tiny_models import VOCABULARY, make_tiny_llama, make_tiny_neox
from support.tuning_rows import tokenizer as tokenizer_of_kind

MAKERS = {"neox": make_tiny_neox, "llama": make_tiny_llama}
ADDED = VOCABULARY  # the id of the first token that is added to the tokenizer


def make_broken_base(shape: str, family: str, directory: Path) -> Path:
    """A base of `family` ("neox", "llama") in a shape of SHAPES; returns its directory."""
    MAKERS[family](directory)
    SHAPES[shape](directory)
    return directory


def set_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    values = json.loads(path.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def _save(base: Path, rows: int = VOCABULARY, *, tied: bool = False, last: float = 1.0) -> None:
    """Weights that LoRA can teach within seconds; the rows of added tokens are scaled by `last`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, vocab_size=rows, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.05, generator=source)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[ADDED:] *= last
    model.save_pretrained(base)


def _add(base: Path, **roles: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens(roles)
    tokenizer.save_pretrained(base)


def _added_pad(base: Path) -> None:
    """[PAD] was added to the tokenizer; the model has no row for it."""
    _save(base)
    _add(base, pad_token="[PAD]")


def _added_pad_in_config(base: Path) -> None:
    """The same, and config.json names the id: transformers cannot even build such a LLaMA."""
    _added_pad(base)
    set_json(base / "config.json", pad_token_id=ADDED)


def _added_pad_tied(base: Path) -> None:
    """The same, and one matrix is input and output."""
    _save(base, tied=True)
    _add(base, pad_token="[PAD]")


def _added_end(base: Path) -> None:
    """<eos> was added and the model resized: its rows are almost zero, and every file names it."""
    _save(base, ADDED + 1, last=1e-3)
    _add(base, eos_token="<eos>")
    set_json(base / "config.json", eos_token_id=ADDED)
    set_json(base / "generation_config.json", eos_token_id=ADDED)


def _added_end_at_random(base: Path) -> None:
    """The same, but its rows are as transformers 4 made them, at random, and the configs name the old end."""
    _save(base, ADDED + 1)
    _add(base, eos_token="<eos>")
    set_json(base / "config.json", initializer_range=0.05)


def _early_polyglot(base: Path) -> None:
    """Two files name two ends; one of them, and the padding, are in no vocabulary. Rows to spare."""
    _save(base, VOCABULARY + 64)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    set_json(base / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>>",
             model_input_names=names, chat_template=None)  # fmt: skip
    marks = {"eos_token": "<eos>", "pad_token": "<pad>"}
    (base / "special_tokens_map.json").write_text(json.dumps(marks))
    set_json(base / "generation_config.json", eos_token_id=0)


def _lost_names(base: Path) -> None:
    """decapoda's LLaMA: special tokens named "", ids in config.json that are others."""
    tokenizer = tokenizer_of_kind("llama")
    _save(base, len(tokenizer))
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").unlink()
    set_json(
        base / "tokenizer_config.json", bos_token="", eos_token="", unk_token="", pad_token=None
    )
    set_json(base / "config.json", bos_token_id=0, eos_token_id=1, pad_token_id=-1)
    set_json(base / "generation_config.json", bos_token_id=0, eos_token_id=1, pad_token_id=0)


def _other_ids(base: Path) -> None:
    """Tokenizer, config.json and generation_config.json name three ends and two beginnings; two are plain letters."""
    _save(base)
    set_json(base / "tokenizer_config.json", bos_token="<|im_start|>", eos_token="<|im_end|>")
    set_json(base / "config.json", bos_token_id=40, eos_token_id=41, pad_token_id=41)
    set_json(base / "generation_config.json", bos_token_id=0, eos_token_id=42, pad_token_id=42)


SHAPES: dict[str, Callable[[Path], None]] = {
    "added-pad": _added_pad,
    "added-pad-in-config": _added_pad_in_config,
    "added-pad-tied": _added_pad_tied,
    "added-end": _added_end,
    "added-end-at-random": _added_end_at_random,
    "early-polyglot": _early_polyglot,
    "lost-names": _lost_names,
    "other-ids": _other_ids,
}
