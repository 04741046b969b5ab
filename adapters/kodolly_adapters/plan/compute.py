"""Arithmetic of a run, and from it time and money. Only the utilisation and the price are assumed."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .gpus import Gpu
from .memory import trainable
from .setup import Setup
from .shapes import Shapes

# Shares of one GPU's speed that remain; assumed. FSDP waits for layers, QLoRA unpacks weights.
KEPT = {"none": 1.0, "ddp": 0.95, "fsdp": 0.85}
KEPT_QLORA = 0.75
FILLED = {True: 0.98, False: 0.5}  # places of a sequence that hold a token: packed, padded; assumed


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations for one token of training."""

    forward: int
    backward: int
    recomputation: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.recomputation


@dataclass(frozen=True, slots=True)
class Rows:
    """The training rows. `per_row` is tokens a row, after what is too long was cut."""

    rows: int
    per_row: float
    epochs: float
    repeat: int = 1
    max_steps: int = -1

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return round(self.rows * self.per_row * self.repeat)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes on its GPUs; evaluation and saving come on top."""

    tokens_per_second: float  # of all GPUs, real tokens
    steps: int
    tokens: int  # of the whole run
    hours: float
    price: float  # USD for all GPUs


def flops(shapes: Shapes, setup: Setup) -> Flops:
    """Two for each weight a token meets, and attention over the whole sequence, as MFU is usually counted.

    Backward: twice that in full tuning; with frozen weights once, for the inputs' gradients alone. Attention has no
    weights and costs twice either way. Checkpointing computes the layers forward a second time.
    """
    products, head = 2 * shapes.products, 2 * shapes.vocabulary * shapes.hidden
    attention = 4 * setup.length * shapes.attention * shapes.layers
    forward, weights = products + attention, products
    if setup.method != "full":
        adapter = 2 * trainable(shapes, setup)
        forward, weights = forward + adapter, 2 * adapter
    backward = products + weights + 2 * attention
    again = forward - head if setup.checkpointing else 0
    return Flops(forward, backward, again)


def cost(
    shapes: Shapes, setup: Setup, gpu: Gpu, rows: Rows, *, price: float, utilisation: float
) -> Cost:
    """Time and price of `setup` on its GPUs. `price` is USD an hour of one GPU."""
    peak = gpu.fp32 if setup.precision == "fp32" else gpu.bf16
    kept = KEPT[setup.strategy] * (KEPT_QLORA if setup.method == "qlora" else 1)
    filled = FILLED[setup.packing]
    places = peak * utilisation * kept * setup.gpus / flops(shapes, setup).total
    a_step = setup.gpus * setup.tokens * setup.accumulation * filled
    tokens = rows.tokens * rows.epochs if rows.max_steps < 0 else rows.max_steps * a_step
    steps = ceil(tokens / a_step) if rows.max_steps < 0 else rows.max_steps
    hours = tokens / (places * filled) / 3600
    return Cost(places * filled, steps, round(tokens), hours, hours * setup.gpus * price)
