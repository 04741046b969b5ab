"""The folder of a run: run.json, checkpoints that a kill cannot spoil, and the finished model or adapter.

run.json holds everything that decided the run; with it a folder holds one run only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kodolly_adapters.card import write_card
from kodolly_adapters.errors import OutputError
from kodolly_adapters.files import read_json, replacing, write_json
from kodolly_adapters.model_config import add_both_rotary_forms, portable_tokenizer_config
from kodolly_templates import Template, load

from .recipe import Recipe

RECORD = "run.json"
CHECKPOINTS = "checkpoints"
PREFIX = "checkpoint-"
MARK = "finished.json"  # {file: bytes} of everything a checkpoint holds
# Pickles, makers' cards and copies that the finished folder is better without.
UNWANTED = ("training_args.bin", "README.md", "optimizer.pt", "scheduler.pt")


def now() -> str:
    """The time as records have it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def unfinished(out: Path) -> dict[str, Any]:
    """The record of the unfinished run in `out`; {} where a run can begin. Raises OutputError where none can."""
    if not out.exists():
        return {}
    if not out.is_dir():
        raise OutputError(f"--out {out}: this is no folder")
    record = read_json(out / RECORD)
    if record is None and any(map(_is_content, out.iterdir())):
        raise OutputError(f"--out {out}: there is something else in it; choose a new folder")
    if record is not None and record.get("state") == "finished":
        raise OutputError(
            f"--out {out}: a finished run is in it. Choose a new folder, or remove this one"
        )
    return record or {}


def check_same_run(out: Path, before: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise OutputError naming what decided `before`, the unfinished run in `out`, and is not in `record`."""
    old = before.get("decisive", {})
    if changes := list(_differences(old, record["decisive"])) if before else []:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if changes[5:] else "")
        raise OutputError(
            f"--out {out}: an unfinished run of another recipe is in it ({shown}). "
            "Give the same recipe to go on, or choose a new folder"
        )


def finish_checkpoint(checkpoint: Path) -> None:
    """Write the mark: the last act of saving."""
    write_json(checkpoint / MARK, _sizes(checkpoint))


def finished_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that have a mark and every file of it in full, oldest step first."""
    return [path for path in _checkpoints(folder) if _is_finished(path)]


def sweep_checkpoints(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in _checkpoints(folder):
        if not _is_finished(path):
            shutil.rmtree(path)


def rotate_checkpoints(folder: Path, keep: int, best: str | None) -> None:
    """Remove the oldest finished checkpoints beyond `keep`, but never the newest nor `best`."""
    others = [path for path in finished_checkpoints(folder) if str(path) != best]
    for path in others[: -max(1, keep - (best is not None))]:
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The step after which it was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def place(
    trainer: Any, out: Path, recipe: Recipe, card: Mapping[str, Any], base_ends: Sequence[int]
) -> Path:
    """Write the trained weights and all that serving them needs; returns the folder ("model" or "adapter").

    `base_ends`: the ids at which the base ended an answer. All processes must call it: sharded weights are gathered. Only the first writes.
    """
    final = out / ("model" if recipe.method == "full" else "adapter")
    main = trainer.is_world_process_zero()
    with replacing(final) if main else nullcontext(final) as folder:
        trainer.accelerator.wait_for_everyone()
        _save_weights(trainer, folder, card["dtype"] if recipe.method == "full" else None)
        if main:
            _save_rest(trainer, recipe, folder, base_ends)
            write_card(folder, card)
    trainer.accelerator.wait_for_everyone()
    return final


def _checkpoints(folder: Path) -> list[Path]:
    paths = folder.glob(f"{PREFIX}*")
    return sorted((p for p in paths if p.name.removeprefix(PREFIX).isdigit()), key=step_of)


def _is_finished(checkpoint: Path) -> bool:
    mark = read_json(checkpoint / MARK)
    return mark is not None and mark.items() <= _sizes(checkpoint).items()


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file in it but the mark."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MARK)
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}


def _save_weights(trainer: Any, folder: Path, dtype: str | None) -> None:
    """Write model or adapter; a whole model in `dtype`, such as "float16", where it is not sharded."""
    import torch

    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if dtype:
            model = model.to(getattr(torch, dtype))
        model.save_pretrained(str(folder))


def _save_rest(trainer: Any, recipe: Recipe, folder: Path, base_ends: Sequence[int]) -> None:
    """Tokenizer, chat template and generation config, as every server of these models reads them."""
    tokenizer = trainer.processing_class
    tokenizer.save_pretrained(str(folder))
    for name in UNWANTED:
        (folder / name).unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    write_json(path, portable_tokenizer_config(read_json(path) or {}, fast=True))
    if config := read_json(folder / "config.json"):
        add_both_rotary_forms(config)
        config["eos_token_id"] = tokenizer.eos_token_id
        if tokenizer.bos_token_id is not None:
            config["bos_token_id"] = tokenizer.bos_token_id
        config.pop("_name_or_path", None)
        write_json(folder / "config.json", config)
    stops = []
    if recipe.data.format == "rows":
        template = load(folder, override=recipe.template)
        (folder / "chat_template.jinja").write_text(template.jinja(), encoding="utf-8")
        if isinstance(template, Template) and template.end.strip() in template.special_tokens:
            stops = [tokenizer.convert_tokens_to_ids(template.end.strip())]
    end = tokenizer.eos_token_id
    # A base whose ends include the tokenizer's keeps the others beside it.
    stops += [end, *(base_ends if end in base_ends else ())]
    stops = list(dict.fromkeys(stops))
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_token_id,
    }
    generation = {key: value for key, value in generation.items() if value is not None}
    write_json(folder / "generation_config.json", generation)


def _is_content(path: Path) -> bool:
    """Whether a folder that holds this is in use; what a run leaves that was refused before its first step is not."""
    return not (path.name.startswith(".") or (path.is_dir() and not any(path.iterdir())))


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Where two JSON values differ, such as "recipe.lora.r: 8 there, 4 now"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield f"{key[1:]}: {_short(old)} there, {_short(new)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
