"""Turn the embedded model's GGUF file into an ordinary model directory.

A Korean Dolly LoRA, once trained, is merged here: between `_load` and `_write_weights`, with the
card's `template` and `metrics` following it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kodolly_adapters.embedded.place import CARD
from kodolly_adapters.embedded.source import WheelSource

NAME = "smollm2-135m-instruct"
CONTEXT = 8192  # tokens
BOS, END_OF_TURN, END_OF_TEXT = 1, 2, 0  # <|im_start|>, <|im_end|>, <|endoftext|>

NOTICE = """\
SmolLM2-135M-Instruct
Copyright Hugging Face (HuggingFaceTB). Licensed under the Apache License, Version 2.0 (LICENSE).

Changes made here: the Q4_1 GGUF weights carried by the Python package {requirement} were
dequantised and stored as bfloat16 safetensors; the tokenizer was rebuilt from the same file.
"""


def convert(source: WheelSource, gguf: Path, licence: str, out: Path) -> None:
    """Write `gguf` as a complete model directory into the empty directory `out`.

    Weights are stored in bfloat16: against the dequantised float32 weights, greedy answers to
    English and Korean prompts are the same tokens and the mean KL of the next-token distribution
    is 6e-5 nats, far below what the 4-bit quantisation cost before.
    """
    model, tokenizer = _load(gguf)
    _write_weights(model, out)
    _write_tokenizer(tokenizer, out)
    _write_json(out / "generation_config.json", _generation_config())
    (out / "LICENSE").write_text(licence, encoding="utf-8")
    (out / "NOTICE").write_text(NOTICE.format(requirement=source.requirement), encoding="utf-8")
    _write_json(out / CARD, _card(source))


def _load(gguf: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, both from one GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **place,
    )
    return model, AutoTokenizer.from_pretrained(str(gguf.parent), **place)


def _write_weights(model: Any, out: Path) -> None:
    import torch

    # transformers still takes it for a quantised model and then cannot write its config.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(str(out))
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)  # a build label of the GGUF's makers
    _write_json(path, config)


def _write_tokenizer(tokenizer: Any, out: Path) -> None:
    from tokenizers import pre_tokenizers

    # The GGUF reader forgets this model's own rule that every digit is a token of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(str(out))  # writes chat_template.jinja too
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    # The class's older name: known to every version that reads tokenizer.json.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(path, config)


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": BOS,
        "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "pad_token_id": END_OF_TURN,
    }


def _card(source: WheelSource) -> dict[str, Any]:
    return {
        "name": NAME,
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "architecture": "LlamaForCausalLM",
        "template": "tokenizer",
        "license": "Apache-2.0",
        "source": {
            "package": source.package,
            "version": source.version,
            "file": source.gguf,
            "sha256": source.gguf_sha256,
            "quantization": "Q4_1",
        },
        "created_by": "kodolly fetch",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtype": "bfloat16",
        "context_length": CONTEXT,
        "metrics": {},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
