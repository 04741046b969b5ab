"""What a run is on the GPUs: the part of a recipe that decides memory and time, and the GPUs it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kodolly_adapters.errors import RecipeError
from kodolly_adapters.train.recipe import Recipe

Strategy = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a recipe. `batch` is sequences of `length` tokens that one GPU computes at a time."""

    method: str  # "full", "lora" or "qlora"
    precision: str  # "bf16" or "fp32": of the arithmetic
    r: int
    dora: bool
    dropout: float
    targets: tuple[str, ...]
    new_tokens: int
    optimizer: str
    batch: int
    accumulation: int
    length: int
    packing: bool
    checkpointing: bool
    gpus: int = 1
    strategy: Strategy = "none"

    @property
    def tokens(self) -> int:
        """Tokens that one GPU computes at a time."""
        return self.batch * self.length

    @property
    def width(self) -> int:
        """Bytes of one number of the arithmetic."""
        return 4 if self.precision == "fp32" else 2


def setup_of(recipe: Recipe) -> Setup:
    """The recipe as it is written, on one GPU. fp16 is planned as bf16: both take two bytes.

    Raises RecipeError for a template that is not known.
    """
    train, lora = recipe.train, recipe.lora
    return Setup(
        method=recipe.method,
        precision="fp32" if train.precision == "fp32" else "bf16",
        r=lora.r,
        dora=lora.dora,
        dropout=lora.dropout,
        targets=tuple(lora.targets),
        new_tokens=_new_tokens(recipe) if lora.train_new_tokens else 0,
        optimizer=train.optimizer,
        batch=train.batch_size,
        accumulation=train.accumulation,
        length=recipe.data.max_length,
        packing=recipe.data.packing,
        checkpointing=train.gradient_checkpointing,
    )


def strategies(recipe: Recipe, gpus: int) -> tuple[Strategy, ...]:
    """The ways to use `gpus` GPUs, the recipe's own first. DeepSpeed is planned as ZeRO-3, as FSDP is."""
    if gpus == 1:
        return ("none",)
    own = recipe.distributed.strategy
    return ("fsdp", "ddp") if own in ("fsdp", "deepspeed") else ("ddp", "fsdp")


def _new_tokens(recipe: Recipe) -> int:
    from kodolly_templates import TemplateError, get_template
    from kodolly_templates.tokenizer import TOKENIZER

    if recipe.template == TOKENIZER:  # the base's own, whose tokens it has already
        return 0
    try:
        return len(get_template(recipe.template).special_tokens)
    except TemplateError as error:
        raise RecipeError(f"template: {error}") from None
