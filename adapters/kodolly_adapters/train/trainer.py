"""TRL's SFTTrainer, set up from a recipe, with the few places where it would go wrong put right.

- Logits are computed for learned tokens only. On a CPU TRL computes all of them, twice.
- A GPT-NeoX checkpoint is read back with its head, whose name on disk is another.
- The loss on validation rows is a mean over tokens, not over batches.
- Steps, evaluations and checkpoints are timed apart, so that tokens a second are those of training.
- No telemetry, and no model card in every checkpoint.
"""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import TrainerState
from trl import SFTConfig, SFTTrainer

from kodolly_adapters.errors import BaseError, RecipeError

from .callbacks import Clock, peak_memory
from .encode import IGNORED
from .model import Hardware
from .recipe import Distributed, Recipe

OLD_HEAD, HEAD = "embed_out.weight", "lm_head.weight"  # GPT-NeoX's head on disk, and its name now
# Keys of a recipe's [train] that SFTConfig has under the same name.
SAME_NAMES = {"max_steps", "learning_rate", "weight_decay", "max_grad_norm", "seed"}
EVALUATIONS = 10  # a run, where the recipe does not say
# Training on a sequence takes at least as long as evaluating two: a pass forward, and one backward.
FORWARD_PASSES = 2
# On scaled-dot-product attention a packed micro-batch is one sequence whose cost grows with its square.
DENSE_TOKENS = 2048
# DeepSpeed's optimiser states and gradients in shards; "auto" is filled in from the arguments below.
ZERO_2 = Path(__file__).with_name("zero2.json")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps of the optimiser a run has, and after how many of them it evaluates and saves."""

    steps: int
    evaluate: int | None  # None without validation rows
    save: int
    batch: int  # sequences a forward pass and device
    accumulation: int  # passes a step

    @property
    def evaluations(self) -> int:
        """How many there are; transformers adds one after the last step."""
        return math.ceil(self.steps / self.evaluate) if self.evaluate else 0


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over sequences that have their labels already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        # TRL's fused head needs Triton, and a plain layer: PEFT's trained rows have no bias attribute.
        self._fused = self.accelerator.device.type == "cuda" and hasattr(head, "bias")
        self._eval_sums = [0.0, 0.0]  # (loss summed over tokens, tokens) of an evaluation
        self.clock = Clock()
        self.model.register_load_state_dict_pre_hook(_rename_head)

    @property
    def tokens(self) -> int:
        """Real tokens of the run so far, all processes together."""
        return int(self._total_train_tokens)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The cross entropy of learned tokens: the mean over all passes of a step, or over the batch."""
        shifted = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        learned = shifted != IGNORED
        if self._fused:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            rest = {name: value for name, value in inputs.items() if name != "labels"}
            # Without a cache transformers keeps packed rows apart; with one it silently would not.
            logits = model(**rest, use_cache=False, logits_to_keep=learned).logits.float()
            target = shifted[learned]
            total = functional.cross_entropy(logits, target, reduction="sum")
            count = target.numel() if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            self._count(inputs, logits, target)
        if not self.model.training:
            tokens = float(learned.sum())
            self._eval_sums[0] += float(loss.detach()) * tokens
            self._eval_sums[1] += tokens
        return loss

    def _count(self, inputs: dict[str, Any], logits: Any, target: Any) -> None:
        """Add to TRL's own metrics of this pass: tokens, and the share of them that came first."""
        ids = inputs["input_ids"]
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum()
        hits = (logits.detach().argmax(-1) == target).sum()
        mine = torch.stack([real, hits, torch.full_like(hits, len(target))])
        tokens, right, learned = self.accelerator.gather(mine[None]).sum(0).tolist()
        if self.model.training:
            self._total_train_tokens += tokens
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["mean_token_accuracy"].append(right / max(learned, 1))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one step, which begins here."""
        self.clock.begin_step(self.tokens)
        return super().get_batch_samples(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add time and memory to what is logged after a step ("loss") or an evaluation ("eval_loss")."""
        if "loss" in logs:
            logs |= self.clock.end_step(self.tokens)
        if logs.keys() & {"loss", "eval_loss"}:
            logs |= peak_memory()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' evaluation, timed."""
        with self.clock.time("eval"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.time("save"):
            super()._save_checkpoint(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' loop; its loss, a mean over batches, becomes one over tokens."""
        self._eval_sums = [0.0, 0.0]
        output = super().evaluation_loop(*args, **kwargs)
        mine = torch.tensor([self._eval_sums], dtype=torch.float64)
        total, tokens = self.accelerator.gather(mine.to(self.accelerator.device)).sum(0).tolist()
        if "eval_loss" in output.metrics and tokens:
            output.metrics["eval_loss"] = total / tokens
        return output

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train to the end of the recipe, from the start or from a checkpoint's folder."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(f"{resume_from_checkpoint}/trainer_state.json")
            counts = (int(record.get("num_tokens", 0)) for record in state.log_history)
            self._total_train_tokens = max(counts, default=0)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the output folder has one of our own."""

    def _send_telemetry(self) -> None:
        """None: what somebody trains is nobody else's business."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that does not fill the model. transformers would warn and go on with noise."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = [key for key in load_result.missing_keys if key not in tied]
        for key in [*missing, *load_result.unexpected_keys]:
            raise BaseError(f"the checkpoint does not fit the model: {key}")


def micro_batches(recipe: Recipe, *, flash: bool) -> tuple[int, int]:
    """(sequences a forward pass, passes a step): the recipe's effective batch, in shapes that are fast.

    A packed batch is flattened into one sequence with a block-diagonal mask. Without FlashAttention the mask is
    dense, so a long one is computed in pieces; the loss is a mean over the tokens of all pieces either way.
    """
    batch, accumulation = recipe.train.batch_size, recipe.train.accumulation
    if not recipe.data.packing or flash:
        return batch, accumulation
    most = max(1, DENSE_TOKENS // recipe.data.max_length)
    size = max(part for part in range(1, min(batch, most) + 1) if batch % part == 0)
    return size, accumulation * (batch // size)


def make_schedule(
    recipe: Recipe, sequences: int, *, validation: bool, hardware: Hardware
) -> Schedule:
    """The schedule of `sequences` training sequences, as transformers will run it.

    Raises RecipeError where saving and evaluating do not meet: the best checkpoint could then not be kept.
    """
    train = recipe.train
    batch, accumulation = micro_batches(recipe, flash=hardware.flash)
    passes = math.ceil(math.ceil(sequences / batch) / hardware.world)
    steps = math.ceil(train.epochs * math.ceil(passes / accumulation))
    if train.max_steps > 0:
        steps = train.max_steps
    evaluate = train.eval_steps or train.save_steps or max(1, math.ceil(steps / EVALUATIONS))
    save = train.save_steps or evaluate
    if validation and save % evaluate:
        raise RecipeError(
            f"train.save_steps: {save} is no multiple of train.eval_steps, {evaluate}: the best of the "
            "evaluated states could not be kept"
        )
    return Schedule(steps, evaluate if validation else None, save, batch, accumulation)


def evaluation_size(sequences: int, recipe: Recipe, schedule: Schedule, world: int) -> int:
    """How many of the held-out `sequences` an evaluation reads, so that all of them together take train.eval_share of
    the run at most; one batch at least."""
    share, size = recipe.train.eval_share, schedule.batch * world
    if share == 1 or not schedule.evaluations:
        return sequences
    trained = schedule.steps * size * schedule.accumulation
    budget = trained * FORWARD_PASSES * share / (1 - share) / schedule.evaluations
    return min(sequences, max(size, int(budget) // size * size))


def choose_validation(
    dataset: Any, recipe: Recipe, schedule: Schedule, world: int
) -> tuple[Any, dict[str, int]]:
    """(the sequences that every evaluation reads, drawn once; {"rows", "left_out"} of them)."""
    size = evaluation_size(len(dataset), recipe, schedule, world)
    drawn = sorted(random.Random(recipe.train.seed).sample(range(len(dataset)), size))
    chosen = dataset.select(drawn) if size < len(dataset) else dataset
    rows = _rows(chosen)
    return chosen, {"rows": rows, "left_out": _rows(dataset) - rows}


def _rows(dataset: Any) -> int:
    """The rows of a dataset, of which a packed sequence holds several."""
    packed = "seq_lengths" in dataset.column_names
    return sum(map(len, dataset["seq_lengths"])) if packed else len(dataset)


def arguments(
    recipe: Recipe, schedule: Schedule, precision: str, hardware: Hardware, folder: Path
) -> Any:
    """The SFTConfig of a run whose checkpoints go to `folder`."""
    train = recipe.train
    validation = schedule.evaluate is not None
    wandb = "wandb" in train.report_to
    if wandb and importlib.util.find_spec("wandb") is None:
        raise RecipeError('train.report_to: "wandb" needs it: pip install wandb')
    return SFTConfig(
        output_dir=str(folder),
        run_name=recipe.name,
        num_train_epochs=train.epochs,
        lr_scheduler_type=train.scheduler,
        warmup_steps=round(train.warmup_ratio * schedule.steps),
        optim=train.optimizer,
        per_device_train_batch_size=schedule.batch,
        per_device_eval_batch_size=schedule.batch,
        gradient_accumulation_steps=schedule.accumulation,
        activation_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing=None,  # the old name of the same; TRL sets it
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=hardware.device == "cpu",
        dataloader_pin_memory=hardware.device == "cuda",
        data_seed=train.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number ends the run (callbacks.Metrics)
        eval_strategy="steps" if validation else "no",
        eval_steps=schedule.evaluate,
        save_steps=schedule.save,
        load_best_model_at_end=validation,
        prediction_loss_only=True,  # so TRL never asks compute_loss for outputs
        restore_callback_states_from_checkpoint=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=["wandb"] * wandb,  # TensorBoard's is made by the run, which knows its folder
        disable_tqdm=True,
        log_level="error",
        ddp_find_unused_parameters=False,
        **train.model_dump(include=SAME_NAMES),
        **recipe.data.model_dump(include={"max_length", "packing"}),
        **_distributed(recipe.distributed, hardware),
    )


def _distributed(chosen: Distributed, hardware: Hardware) -> dict[str, Any]:
    """The arguments of DDP, FSDP or DeepSpeed. Raises RecipeError for what would silently be something else."""
    sharded = chosen.strategy in ("fsdp", "deepspeed")
    gpus = len(hardware.names) if hardware.device == "cuda" else 0
    place = f'distributed.strategy: "{chosen.strategy}"'
    if chosen.strategy == "none" and chosen.config:
        raise RecipeError('distributed.config: give distributed.strategy "fsdp" or "deepspeed" too')
    if sharded and hardware.device == "cpu":
        raise RecipeError(
            f'{place} needs GPUs: on CPUs accelerate would train with "ddp" and not say so'
        )
    if hardware.world == 1 and (gpus > 1 or sharded):
        raise RecipeError(
            f"{place} in one process with {gpus} GPUs: start it as torchrun --nproc-per-node {max(gpus, 2)} "
            "-m kodolly_adapters.train ..., or show it one GPU by CUDA_VISIBLE_DEVICES=0"
        )
    config = _read(chosen.config) if chosen.config else None
    if chosen.strategy == "fsdp":
        return {"fsdp": True, "fsdp_config": config or {}}
    if chosen.strategy == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            raise RecipeError(f"{place} needs it: pip install deepspeed")
        return {"deepspeed": config or str(ZERO_2)}
    return {"ddp_backend": "gloo"} if hardware.world > 1 and hardware.device == "cpu" else {}


def _read(name: str) -> dict[str, Any]:
    """A JSON object, or an accelerate YAML's fsdp_config or deepspeed_config. Raises RecipeError naming the file."""
    import yaml

    try:
        values = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"distributed.config: {name}: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"distributed.config: {name}: not an object")
    inner = values.get("fsdp_config") or values.get("deepspeed_config")
    if isinstance(inner, dict):
        return {key.removeprefix("fsdp_"): value for key, value in inner.items()}
    return values


def _rename_head(module: Any, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before loading a state: GPT-NeoX's head gets the name the model has for it."""
    own = dict(module.named_parameters())
    if prefix + OLD_HEAD in state and HEAD in own and OLD_HEAD not in own:
        state[prefix + HEAD] = state.pop(prefix + OLD_HEAD)
