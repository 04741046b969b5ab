"""One training run from a recipe to a finished folder; the same call goes on with an unfinished one."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import RecipeError, UserError

from . import checkpoints, keys, manifest, model, outputs
from .recipe import Recipe
from .setup import Report, Run, set_up

CACHE = ".cache"  # prepared rows, in the run's folder until it is finished
Say = Callable[[str], None]


class Interrupted(Exception):
    """The run was asked to end early, and did, with a checkpoint."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    say: Say = lambda text: None,
    report: Report = lambda done, total: None,
    show: bool = False,
) -> dict[str, Any]:
    """Train by `recipe` into `out`, or go on with the unfinished run there; returns the final metrics.

    `say` is told what a person should know, `report` the rows prepared so far; `show` draws the progress.
    Raises a UserError, or Interrupted when a signal asked for the end.
    """
    from transformers import set_seed

    from .callbacks import Stop
    from .trainer import arguments

    began = time.monotonic()
    manifest.check_free(out)
    started = manifest.started(out)
    run = set_up(recipe, out / CACHE, report)
    folder = out.resolve() / checkpoints.FOLDER
    args = arguments(recipe, run.schedule, run.precision, run.machine, folder)
    with args.main_process_first(local=False):
        if run.machine.main:
            _begin(run, out, folder, started, say)
    set_seed(recipe.train.seed)
    stop = Stop()
    try:
        with _without_old_names():
            trainer = _trainer(run, args, out, stop, show=show and run.machine.main)
    except UserError:
        if run.machine.main and not checkpoints.finished(folder):
            manifest.release(out)
        raise
    last = next(reversed(checkpoints.finished(folder)), None)
    if last is not None:
        say(f"going on after step {checkpoints.step_of(last)}")
    with stop.listening(), _without_old_names(), _memory_told():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stop.asked:
        raise Interrupted(f"stopped after step {trainer.state.global_step}, with a checkpoint")
    metrics = _metrics(trainer, time.monotonic() - began)
    final = outputs.place(trainer, run, out, _card(run, trainer.model, metrics))
    if run.machine.main:
        result = {"state": "finished", "metrics": metrics, "output": final.name}
        result |= {"finished_at": manifest.now()}
        manifest.write(out / manifest.NAME, _record(run, started) | result)
        shutil.rmtree(out / CACHE)
    return metrics


def _begin(run: Run, out: Path, folder: Path, started: str, say: Say) -> None:
    """Claim the folder, and clear away what a killed run left half written. Raises OutputError."""
    for repair in run.repairs:
        say(f"tokenizer: {repair}")
    say(f"{len(run.train):,} sequences of these rows\n{run.prepared.fates.table()}")
    manifest.check(out, run.decisive)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.sweep(folder)
    manifest.write(out / manifest.NAME, _record(run, started) | {"state": "unfinished"})


def _trainer(run: Run, args: Any, out: Path, stop: Any, *, show: bool) -> Any:
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    from .callbacks import Marks, Metrics, Progress
    from .trainer import Trainer

    recipe = run.recipe
    net = model.load_model(recipe, run.config, run.precision, run.machine)
    keys.grow(net, run.tokenizer, run.new_tokens, recipe.train.seed)
    if recipe.method != "full":
        net = model.wrap(net, recipe, run.new_tokens)
    keys.check_trained(net, run.tokenizer, run.new_tokens)
    trainer = Trainer(
        model=net,
        args=args,
        train_dataset=run.train,
        eval_dataset=run.held_out,
        processing_class=run.tokenizer,
    )
    _check_optimizer(trainer)
    trainer.remove_callback(PrinterCallback)
    if recipe.train.early_stopping and run.held_out is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.train.early_stopping))
    trainer.add_callback(stop)
    trainer.add_callback(Progress(lambda: trainer.tokens, show=show))
    trainer.add_callback(Metrics(out / "metrics.jsonl", recipe.name))
    wait = trainer.accelerator.wait_for_everyone
    trainer.add_callback(Marks(out.resolve() / checkpoints.FOLDER, recipe.train.keep, wait))
    if "tensorboard" in recipe.train.report_to and run.machine.main:
        trainer.add_callback(_tensorboard(out))
    return trainer


def _check_optimizer(trainer: Any) -> None:
    """Raise RecipeError where the optimizer needs a package that is not here."""
    try:
        trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except (ImportError, ValueError) as error:
        raise RecipeError(f"train.optimizer: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def _without_old_names() -> Iterator[None]:
    """Let TRL and PEFT use names that transformers will drop: that is between their versions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
        yield


@contextmanager
def _memory_told() -> Iterator[None]:
    """Turn a GPU that is full into an error that says what helps."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            f"train.batch_size: {str(error).splitlines()[0]} Halve it and double train.accumulation, lower "
            "data.max_length, or ask `kodolly plan` which settings fit this GPU"
        ) from None


def _tensorboard(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(out / "tensorboard")))


def _metrics(trainer: Any, seconds: float) -> dict[str, Any]:
    """What the run came to. `seconds` and the rate are this process's; all else is the whole run's."""
    history = trainer.state.log_history
    losses = [record["loss"] for record in history if "loss" in record]
    last = losses[-max(1, len(losses) // 10) :]
    rates = [r for r in history if "train_runtime" in r]
    found = {
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens,
        "train_loss": sum(last) / len(last) if last else None,  # of the last tenth
        "eval_loss": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "seconds": round(seconds, 1),
        "train_seconds": rates[-1]["train_runtime"] if rates else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _record(run: Run, started: str) -> dict[str, Any]:
    """run.json but for its state: what decided the run, and where, when and how it ran."""
    return {
        "decisive": run.decisive,
        "recipe": run.recipe.model_dump(mode="json"),
        "files": [file._asdict() for file in run.prepared.files],
        "fates": run.prepared.fates.as_dict(),
        "sequences": {"train": len(run.train), "held_out": len(run.held_out or ())},
        "schedule": asdict(run.schedule),
        "precision": run.precision,
        "hardware": run.machine.described(),
        "versions": manifest.versions(),
        "started_at": started,
    }


def _card(run: Run, net: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """model_card.json, as the workers read it."""
    recipe, known = run.recipe, _base_card(run.recipe.base)
    full = recipe.method == "full"
    plain = known.get("template", "tokenizer")
    return {
        "name": recipe.name,
        "base": recipe.base,
        "architecture": (run.config.architectures or [type(net).__name__])[0],
        "template": recipe.template if recipe.data.format == "rows" else plain,
        "license": known.get("license", "that of the base and of the data"),
        "source": {
            "recipe": recipe.name,
            "method": recipe.method,
            "start": recipe.start,
            "base_config_sha256": run.decisive["base_config_sha256"],
            "data_sha256": [file.sha256 for file in run.prepared.files],
        },
        "created_by": "kodolly train",
        "created_at": manifest.now(),
        "dtype": run.stored_dtype if full else "float32",
        "context_length": getattr(run.config, "max_position_embeddings", None),
        "new_tokens": run.decisive["new_tokens"],
        "metrics": metrics,
    }


def _base_card(base: str) -> dict[str, Any]:
    path = Path(base) / "model_card.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known if isinstance(known, dict) else {}
