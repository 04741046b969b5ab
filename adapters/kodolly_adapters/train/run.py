"""One training run from a recipe to a finished folder; the same call goes on with an unfinished one."""

from __future__ import annotations

import math
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames

from kodolly_adapters.bases import FILES, SMALL_FILES, locate
from kodolly_adapters.card import config_sha256, read_card
from kodolly_adapters.errors import RecipeError, first_line
from kodolly_adapters.files import write_json
from kodolly_adapters.safetensors_io import checkpoint
from kodolly_adapters.terminal import Progress
from kodolly_templates import Template, TemplateError, TokenizerTemplate, load
from kodolly_templates.tokenizer import TOKENIZER

from . import model, run_folder
from .callbacks import Checkpoints, Metrics, StepProgress, Stop, peak_memory
from .dataset import pack, prepare
from .plan import Sample
from .recipe import Distributed, Recipe
from .run_folder import CHECKPOINTS, RECORD
from .shapes import load_config
from .tokenizer import add_template_tokens, check_rows_are_trained, load_tokenizer
from .trainer import Trainer, arguments, choose_validation, evaluation_size, make_schedule

MEASURED_STEPS = 20
WARM_UP = 3  # steps that are not counted: memory is still being taken, and threads start
CACHE = ".cache"  # prepared rows, in the run's folder until it is finished
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


class Run:
    """A run ready to load its weights: hardware, config, tokenizer, data and schedule.

    `train` and `validation` (None without rows) are datasets, packed where the recipe says so. Prepared data is
    kept in `cache`. Raises a UserError.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: Path,
        progress: Progress | None = None,
        revision: str | None = None,
    ) -> None:
        """`revision`: of a base on the hub, where the recipe does not say; None is the newest."""
        progress = progress or Progress("train", show=False)
        self.recipe = recipe
        self.hardware = model.find_hardware()
        self.precision = model.choose_precision(recipe.train.precision, self.hardware)
        model.check_method(recipe, self.hardware)
        optimizers = [str(name.value) for name in OptimizerNames]
        if recipe.train.optimizer not in optimizers:
            raise RecipeError(
                f"train.optimizer: transformers has no {recipe.train.optimizer!r}; it has {', '.join(optimizers)}"
            )
        dialect = recipe.dialect()
        files = FILES if recipe.start == "weights" else SMALL_FILES
        revision = recipe.revision or revision
        self.base = locate(recipe.base, revision, files=files, say=progress.say)
        # What is read is the base's folder; what is written down is the name that others can use too.
        local = recipe.model_copy(update={"base": str(self.base.folder), "revision": None})
        self.local = local
        if recipe.start == "weights":
            checkpoint(self.base.folder)  # missing, pickled or cut short: refused early
        self.config = load_config(local.base, None)
        model.check_base(recipe, self.config)
        self.use_cache = bool(getattr(self.config, "use_cache", True))  # training turns it off
        self.base_ends: list[int] = []
        context = getattr(self.config, "max_position_embeddings", None)
        if context and recipe.data.max_length > context:
            raise RecipeError(
                f"data.max_length: {recipe.data.max_length} tokens are more than the base's context of {context}"
            )
        self.tokenizer, self.repairs = load_tokenizer(local)
        template = dialect or _own_template(recipe, self.tokenizer)
        rows = self.config.get_text_config().vocab_size
        self.new_ids = add_template_tokens(self.tokenizer, template, recipe, rows)
        progress.say("encoding the rows" + ", and packing them" * recipe.data.packing)
        self.prepared = prepare(recipe, self.tokenizer, template, cache, progress)
        folder, validation = self.prepared.folder, self.prepared.validation
        backend = self.tokenizer.backend_tokenizer
        self.added_ids = self.prepared.ids_from(backend.get_vocab_size(with_added_tokens=False))
        self.train = pack(self.prepared.train, recipe, folder / "train")
        self.validation = validation and pack(validation, recipe, folder / "validation")
        self.schedule = make_schedule(
            recipe, len(self.train), validation=self.validation is not None, hardware=self.hardware
        )
        self.held_out = len(self.validation or ())  # sequences, before some are chosen
        self.evaluation = {"rows": 0, "left_out": 0}
        if self.validation is not None:
            self.validation, self.evaluation = choose_validation(
                self.validation, recipe, self.schedule, self.hardware.world
            )

    def names(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids; an id that the tokenizer leaves out has none."""
        return [token for token in self.tokenizer.convert_ids_to_tokens(list(ids)) if token]

    def record(self, started_at: str) -> dict[str, Any]:
        """run.json but for its state. Two calls that share what is "decisive" are one run."""
        files = self.prepared.files
        return {
            "decisive": {
                "recipe": self.recipe.model_dump(mode="json", exclude={"study", "notes"}),
                "base_revision": self.base.revision,
                "base_config_sha256": config_sha256(self.config),
                "data": [{"sha256": file.sha256, "bytes": file.size} for file in files],
                "tokenizer_repairs": list(self.repairs),
                "new_tokens": self.names(self.new_ids),
                "processes": self.hardware.world,
                "precision": self.precision,
            },
            "recipe": self.recipe.model_dump(mode="json"),
            "files": [file._asdict() for file in files],
            "outcomes": msgspec.to_builtins(self.prepared.outcomes),
            "sequences": {"train": len(self.train), "held_out": len(self.validation or ())},
            "schedule": asdict(self.schedule),
            "evaluation": self.evaluation,
            "precision": self.precision,
            "hardware": asdict(self.hardware) | {"machine": platform.machine()},
            "versions": {"python": platform.python_version()} | {n: version(n) for n in PACKAGES},
            "started_at": started_at,
        }


def train(recipe: Recipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train by `recipe` into `out`, or go on with the unfinished run there; returns the final metrics.

    `progress` counts rows and shows what a person should know; the steps are shown where it is.
    Raises a UserError, or KeyboardInterrupt when a signal asked for the end.
    """
    progress = progress or Progress("train", show=False)
    started = time.monotonic()
    before = run_folder.unfinished(out)
    begun = before.get("decisive", {}).get("base_revision")  # an unfinished run keeps its base
    run = Run(recipe, out / CACHE, progress, begun)
    main, folder = run.hardware.main, out.resolve() / CHECKPOINTS
    args = arguments(recipe, run.schedule, run.precision, run.hardware, folder)
    record = run.record(before.get("started_at") or run_folder.now())
    with args.main_process_first(local=False):
        if main:
            for repair in run.repairs:
                progress.say(f"tokenizer: {repair}")
            table = run.prepared.outcomes.table()
            progress.say(f"{len(run.train):,} sequences of these rows\n{table}")
            if left_out := run.evaluation["left_out"]:
                progress.say(
                    f"an evaluation reads {run.evaluation['rows']:,} held-out rows; {left_out:,} are left out, or it "
                    f"would take more than {recipe.train.eval_share:.0%} of the time (train.eval_share)"
                )
            progress.say(f"loading {recipe.base}")
            run_folder.check_same_run(out, before, record)
            folder.mkdir(parents=True, exist_ok=True)
            run_folder.sweep_checkpoints(folder)
    set_seed(recipe.train.seed)
    stop = Stop()
    with _with_libraries():
        trainer = make_trainer(run, args, out, stop, show=progress.show and main)
        if run.new_ids:
            names = ", ".join(map(repr, run.names(run.new_ids)))
            progress.say(f"the base was not trained on {names}: their rows are trained as well")
        if main:  # only now: a recipe that was refused until here leaves no run behind
            write_json(out / RECORD, record | {"state": "unfinished"})
        finished = run_folder.finished_checkpoints(folder)
        if finished:
            progress.say(f"going on after step {run_folder.step_of(finished[-1])}")
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(finished[-1]) if finished else None)
    if stop.requested:
        step = trainer.state.global_step
        raise KeyboardInterrupt(f"stopped after step {step}, with a checkpoint")
    metrics = _metrics(trainer, time.monotonic() - started)
    trainer.model.config.use_cache = run.use_cache
    card = _card(run, record["decisive"], trainer.model, metrics)
    final = run_folder.place(trainer, out, recipe, card, run.base_ends)
    if main:
        end = {"state": "finished", "metrics": metrics, "output": final.name}
        write_json(out / RECORD, record | end | {"finished_at": run_folder.now()})
        shutil.rmtree(out / CACHE)
    return metrics


def measure(
    recipe: Recipe, taken: Mapping[str, Sample], progress: Progress | None = None
) -> dict[str, Any]:
    """Twenty steps, an evaluation and a checkpoint of `recipe` in this process, on samples of its rows by split; thrown away.

    Returns the whole run's "steps", "step_seconds", "tokens_per_second", "seconds" (steps, evaluations, checkpoints) and
    "memory" (bytes: of the GPU, or of this process), with "device", "precision" and "peak" (FLOP/s of a plain product).
    """
    progress = progress or Progress("plan", show=False)
    stop = Stop()
    with TemporaryDirectory() as name, _with_libraries(), stop.listening():
        folder = Path(name)
        data: dict[str, Any] = {"max_rows": None, "repeat": 1}
        for split, one in taken.items():
            path = folder / f"{split}.jsonl"
            path.write_bytes(b"".join(one.lines))
            data |= {split: [str(path)]}
        every = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), MEASURED_STEPS)
        small = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update=data),
                "train": recipe.train.model_copy(
                    update={**every, "report_to": [], "early_stopping": None}
                ),
                "distributed": Distributed(),
            }
        )
        run = Run(small, folder / CACHE, progress)
        args = arguments(small, run.schedule, run.precision, run.hardware, folder / CHECKPOINTS)
        set_seed(recipe.train.seed)
        progress.say(f"measuring {MEASURED_STEPS} steps on {run.hardware.names[0]}")
        trainer = make_trainer(run, args, folder, stop, show=False)
        trainer.remove_callback(Metrics)
        trainer.train()
    if stop.requested:
        raise KeyboardInterrupt
    clock, steps = trainer.clock, trainer.clock.step_seconds[WARM_UP:]
    rows = min(taken["train"].rows, recipe.data.max_rows or taken["train"].rows)
    times = rows / len(taken["train"].lines)
    sequences = round(len(run.train) * times * recipe.data.repeat)
    held_out = len(run.validation or ())
    whole = make_schedule(recipe, sequences, validation=held_out > 0, hardware=run.hardware)
    step = sum(steps) / len(steps)
    tokens = clock.tokens / len(clock.step_seconds)
    seconds = whole.steps * step + math.ceil(whole.steps / whole.save) * clock.seconds["save"]
    if held_out:
        if own := taken.get("validation"):
            times = own.rows / len(own.lines)
        size = evaluation_size(round(run.held_out * times), recipe, whole, 1)
        seconds += whole.evaluations * size * clock.seconds["eval"] / held_out
    peak = peak_memory()
    return {
        "device": run.hardware.names[0],
        "precision": run.precision,
        "peak": _product_rate(run.hardware.device, run.precision),
        "steps": whole.steps,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "seconds": seconds,
        "memory": peak.get("peak_gpu_bytes", peak["peak_memory_bytes"]),
    }


def _product_rate(device: str, precision: str) -> float:
    """FLOP/s that the device reaches in a large matrix product."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 8192 if device == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which waits for the GPU
        seconds.append(time.perf_counter() - begun)
    return float(2 * size**3 / min(seconds))


def make_trainer(run: Run, args: Any, out: Path, stop: Any, *, show: bool) -> Any:
    """The trainer of a run before its first step: weights loaded, adapter and callbacks in place."""

    recipe = run.recipe
    net = model.load_model(run.local, run.config, run.precision, run.hardware)
    run.base_ends = model.ends_of(net)  # before transformers adds the tokenizer's
    if recipe.method != "full":
        untrained = model.untrained_rows(net, run.added_ids)
        check_rows_are_trained(recipe, run.tokenizer, untrained)
        run.new_ids = tuple(sorted({*run.new_ids, *untrained}))
    model.grow(net, run.tokenizer, run.new_ids, recipe.train.seed)
    if recipe.method != "full":
        revision = run.base.revision or recipe.revision
        net = model.wrap(net, recipe.model_copy(update={"revision": revision}), run.new_ids)
    trainer = Trainer(
        model=net,
        args=args,
        train_dataset=run.train,
        eval_dataset=run.validation,
        processing_class=run.tokenizer,
    )
    try:
        trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except (ImportError, ValueError) as error:  # it needs a package that is not here
        raise RecipeError(f"train.optimizer: {first_line(error)}") from None
    trainer.remove_callback(PrinterCallback)
    if recipe.train.early_stopping and run.validation is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.train.early_stopping))
    trainer.add_callback(stop)
    trainer.add_callback(StepProgress(trainer.clock, show=show))
    trainer.add_callback(Metrics(out / "metrics.jsonl", recipe.name))
    trainer.add_callback(Checkpoints(recipe.train.keep))
    if "tensorboard" in recipe.train.report_to and run.hardware.main:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(out / "tensorboard"))))
    return trainer


def _own_template(recipe: Recipe, tokenizer: Any) -> Template | TokenizerTemplate:
    """The base's chat template, read as a worker will read it beside the trained weights."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            return load(folder, TOKENIZER)
        except TemplateError:
            raise RecipeError(
                f'template = "{TOKENIZER}": the tokenizer of {recipe.base} has no chat template. '
                'Choose a dialect, such as "dolly-ko"'
            ) from None


@contextmanager
def _with_libraries() -> Iterator[None]:
    """Let TRL and PEFT use names that transformers will drop, and say what helps where a GPU is full."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"train.batch_size: {first_line(error)} Halve it and double train.accumulation, "
                "lower data.max_length, or ask `kodolly plan` which settings fit this GPU"
            ) from None


def _metrics(trainer: Any, seconds: float) -> dict[str, Any]:
    """Figures of the whole run; those in seconds, a second and bytes are this process's."""
    state, clock = trainer.state, trainer.clock
    losses = [record["loss"] for record in state.log_history if "loss" in record]
    last = losses[-max(1, len(losses) // 10) :]
    values = {
        "steps": state.global_step,
        "tokens": trainer.tokens,
        "train_loss": sum(last) / len(last) if last else None,  # of the last tenth
        "eval_loss": state.best_metric,
        "best_step": state.best_global_step,
        "seconds": round(seconds, 1),
        "train_seconds": state.log_history[-1].get("train_runtime"),
        "tokens_per_second": round(clock.rate, 1),
        **{f"{kind}_seconds": round(spent, 2) for kind, spent in clock.seconds.items()},
        **peak_memory(),
    }
    return {key: value for key, value in values.items() if value is not None}


def _card(run: Run, decisive: dict[str, Any], net: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """model_card.json, as the workers read it."""
    recipe, base = run.recipe, read_card(run.base.folder)
    stored = str(getattr(run.config, "dtype", None) or "float32")  # "float16" for Polyglot
    return {
        "name": recipe.name,
        "base": recipe.base,
        "architecture": (run.config.architectures or [type(net).__name__])[0],
        "template": recipe.template
        if recipe.data.format == "rows"
        else base.get("template", "tokenizer"),
        "license": base.get("license", "that of the base and of the data"),
        "source": {
            "recipe": recipe.name,
            "method": recipe.method,
            "start": recipe.start,
            "base_revision": run.base.revision,
            "base_config_sha256": decisive["base_config_sha256"],
            "data_sha256": [file.sha256 for file in run.prepared.files],
        },
        "created_by": "kodolly train",
        "created_at": run_folder.now(),
        "dtype": stored.removeprefix("torch.") if recipe.method == "full" else "float32",
        "context_length": getattr(run.config, "max_position_embeddings", None),
        "new_tokens": run.names(run.new_ids),
        "metrics": metrics,
    }
