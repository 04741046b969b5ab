"""How many steps a run has, and after which of them it looks at the held-out rows and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kodolly_adapters.errors import RecipeError

from .recipe import Train

LOOKS = 10  # evaluations a run, where the recipe says nothing


@dataclass(frozen=True, slots=True)
class Schedule:
    """All in optimiser steps. `evaluate` is None without held-out rows."""

    steps: int
    evaluate: int | None
    save: int
    batch: int  # sequences a forward pass and device
    accumulation: int


def plan(
    train: Train, sequences: int, *, held_out: bool, micro: tuple[int, int], world: int
) -> Schedule:
    """The schedule of `sequences` training sequences over `world` processes, as transformers will run it.

    `micro` is (sequences a forward pass, passes a step). Raises RecipeError where saving and evaluating do not meet,
    because the best checkpoint could then not be kept.
    """
    batch, accumulation = micro
    passes = math.ceil(math.ceil(sequences / batch) / world)
    steps = math.ceil(train.epochs * math.ceil(passes / accumulation))
    if train.max_steps > 0:
        steps = train.max_steps
    look = train.eval_steps or (train.save_steps if train.save_steps else _share(steps))
    save = train.save_steps or look
    if held_out and save % look:
        raise RecipeError(
            f"train.save_steps: {save} is no multiple of train.eval_steps, {look}: the best of the evaluated "
            "states could not be kept"
        )
    return Schedule(steps, look if held_out else None, save, batch, accumulation)


def _share(steps: int) -> int:
    return max(1, math.ceil(steps / LOOKS))
