"""The finished folder: weights, tokenizer, chat template, stop ids and model card, placed at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kodolly_templates import Template, load

from .manifest import write
from .recipe import Recipe
from .setup import Run

# Pickles, makers' cards and copies that the folder is better without.
UNWANTED = ("training_args.bin", "README.md", "optimizer.pt", "scheduler.pt")
OWN_TOKENIZER_KEYS = ("is_local", "local_files_only", "backend")  # of the loader, not the tokenizer


def folder_name(recipe: Recipe) -> str:
    """ "model" for full training, "adapter" for the rest."""
    return "model" if recipe.method == "full" else "adapter"


def place(trainer: Any, run: Run, out: Path, card: Mapping[str, Any]) -> Path:
    """Write the trained weights and all that serving them needs; returns the folder.

    All processes must call it: sharded weights are gathered. Only the first writes.
    """
    final = out / folder_name(run.recipe)
    part = out / f".{final.name}.part"
    main = trainer.is_world_process_zero()
    if main:
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    _save_weights(trainer, run, part)
    if main:
        _complete(trainer, run, part, card)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    trainer.accelerator.wait_for_everyone()
    return final


def _save_weights(trainer: Any, run: Run, part: Path) -> None:
    import torch

    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(part))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if run.recipe.method == "full":
            model.to(getattr(torch, run.stored_dtype)).save_pretrained(str(part))
        else:
            model.save_pretrained(str(part))


def _complete(trainer: Any, run: Run, part: Path, card: Mapping[str, Any]) -> None:
    tokenizer, recipe = run.tokenizer, run.recipe
    tokenizer.save_pretrained(str(part))
    for name in UNWANTED:
        (part / name).unlink(missing_ok=True)
    _fix_tokenizer_config(part / "tokenizer_config.json")
    if (part / "config.json").is_file():
        _fix_config(part / "config.json", run)
    if recipe.data.format == "rows":
        (part / "chat_template.jinja").write_text(
            load(part, override=recipe.template).jinja(), encoding="utf-8"
        )
    write(part / "generation_config.json", generation_config(trainer.model, run))
    write(part / "model_card.json", card)
    for path in part.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600


def generation_config(model: Any, run: Run) -> dict[str, Any]:
    """Stop ids: the template's end where that is one token, the tokenizer's, and those the base had beside it."""
    tokenizer, template = run.tokenizer, run.template
    end = tokenizer.eos_token_id
    before = getattr(model.generation_config, "eos_token_id", None)
    known = before if isinstance(before, list) else [before]
    stops = [end, *(token for token in known if end in known and token is not None)]
    if run.recipe.data.format == "rows" and isinstance(template, Template):
        special = [t for t in template.special_tokens if t == template.end.strip()]
        stops = [*(tokenizer.convert_tokens_to_ids(t) for t in special), *stops]
    unique = list(dict.fromkeys(stops))
    found = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": unique if len(unique) > 1 else unique[0],
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _fix_tokenizer_config(path: Path) -> None:
    """Let every transformers since 4.57 read it: the class has its older name there."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in OWN_TOKENIZER_KEYS:
        config.pop(key, None)
    if config.get("tokenizer_class") in ("TokenizersBackend", None):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if names := config.get("model_input_names"):
        config["model_input_names"] = [name for name in names if name != "token_type_ids"]
    write(path, config)


def _fix_config(path: Path, run: Run) -> None:
    """What serving needs: the base's use_cache, which training turns off, and the tokenizer's marks.

    Rotary settings stand under both names: versions before 5 take 0.25 for Polyglot's 0.5.
    """
    tokenizer = run.tokenizer
    config = json.loads(path.read_text(encoding="utf-8"))
    rotary = config.get("rope_parameters") or {}
    if config.get("model_type") == "gpt_neox" and "partial_rotary_factor" in rotary:
        config["rotary_pct"] = rotary["partial_rotary_factor"]
        config["rotary_emb_base"] = rotary.get("rope_theta", 10000)
    config["eos_token_id"] = tokenizer.eos_token_id
    if tokenizer.bos_token_id is not None:
        config["bos_token_id"] = tokenizer.bos_token_id
    config["use_cache"] = run.use_cache
    config.pop("_name_or_path", None)
    write(path, config)
