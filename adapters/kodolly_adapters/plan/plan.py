"""A plan: everything `kodolly plan` says about a recipe, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kodolly_adapters.train.recipe import Recipe

from .bases import Base, find
from .compute import Cost, Flops, Rows, cost, flops
from .data import Measured, measured
from .fit import Way, chosen, ways
from .gpus import GPUS, Gpu
from .memory import Memory, memory, trainable
from .setup import Setup, setup_of, strategies
from .shapes import Shapes, shapes_of

STUDY_ROWS = 923_590
CHARACTERS_PER_ROW = 800  # with the template's keys; assumed for the study's mix of sets
KEYS_AND_INTRODUCTION = 100  # characters that the template adds to a row


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line adds to a recipe; None takes the stated default."""

    gpus: tuple[int, ...] = (1, 4, 8)
    kinds: tuple[str, ...] = ("a100-80", "h100")
    rows: int | None = None
    tokens_per_row: float | None = None
    price: float | None = None
    utilisation: float | None = None
    measure: bool = True  # count the recipe's own rows where its files are here


@dataclass(frozen=True, slots=True)
class Column:
    """Memory of one GPU for one way to run."""

    method: str
    strategy: str
    gpus: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Line:
    """One machine: the setup that runs there with its cost, None where none fits, and every way."""

    gpu: Gpu
    gpus: int
    price: float
    utilisation: float
    setup: Setup | None
    memory: Memory | None
    cost: Cost | None
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole answer."""

    recipe: Recipe
    base: Base
    shapes: Shapes
    setup: Setup
    trainable: int
    flops: Flops
    rows: Rows
    measured: Measured | None  # of the recipe's own files
    asked: Asked
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def described(self) -> dict[str, Any]:
        """For machines: plain values, bytes and seconds' units as in the classes above."""
        return {
            "recipe": self.recipe.model_dump(),
            "base": asdict(self.base),
            "parameters": self.shapes.parameters,
            "trainable": self.trainable,
            "shapes": asdict(self.shapes),
            "flops_per_token": asdict(self.flops) | {"total": self.flops.total},
            "rows": asdict(self.rows)
            | {"tokens": self.rows.tokens, "measured": self.measured and asdict(self.measured)},
            "memory": [_with_total(asdict(column), column.memory) for column in self.columns],
            "machines": [_with_total(asdict(line), line.memory) for line in self.lines],
        }


def plan(recipe: Recipe, asked: Asked) -> Plan:
    """The plan of a recipe. Raises UserError where the base or the recipe does not allow one."""
    base = find(recipe.base, recipe.revision)
    shapes, setup = shapes_of(base.config), setup_of(recipe)
    counted = measured(recipe.data.train) if asked.measure else None
    rows = _rows(recipe, base, asked, counted)
    several = [count for count in asked.gpus if count > 1]
    runs = [(setup.method, way, n) for n in asked.gpus for way in strategies(recipe, n)]
    if setup.method == "lora":
        runs.append(("qlora", "none", 1))
        runs += [("qlora", "fsdp", count) for count in several[-1:]]
    columns = []
    for method, strategy, count in runs:
        run = replace(setup, method=method, strategy=strategy, gpus=count)
        columns.append(Column(method, strategy, count, memory(shapes, run)))
    return Plan(
        recipe=recipe,
        base=base,
        shapes=shapes,
        setup=setup,
        trainable=trainable(shapes, setup),
        flops=flops(shapes, setup),
        rows=rows,
        measured=counted,
        asked=asked,
        columns=tuple(columns),
        lines=tuple(
            _line(recipe, shapes, setup, rows, GPUS[kind], count, asked)
            for kind in asked.kinds
            for count in asked.gpus
        ),
    )


def _rows(recipe: Recipe, base: Base, asked: Asked, counted: Measured | None) -> Rows:
    """What was asked for, else what the recipe's files hold, else the study's rows."""
    data, train = recipe.data, recipe.train
    rows, characters = STUDY_ROWS, float(CHARACTERS_PER_ROW)
    if counted is not None:
        keys = KEYS_AND_INTRODUCTION if data.format == "rows" else 0
        rows, characters = counted.rows, counted.characters + keys
    rows = rows if asked.rows is None else asked.rows
    per_row = asked.tokens_per_row or characters * base.tokens_per_character
    return Rows(
        min(rows, data.max_rows or rows),
        min(per_row, data.max_length) if data.format == "rows" else per_row,
        train.epochs,
        data.repeat,
        train.max_steps,
    )


def _line(
    recipe: Recipe, shapes: Shapes, setup: Setup, rows: Rows, gpu: Gpu, count: int, asked: Asked
) -> Line:
    order = strategies(recipe, count)
    price = gpu.price if asked.price is None else asked.price
    utilisation = gpu.utilisation if asked.utilisation is None else asked.utilisation
    run = chosen(shapes, setup, gpu, count, order)
    return Line(
        gpu=gpu,
        gpus=count,
        price=price,
        utilisation=utilisation,
        setup=run,
        memory=memory(shapes, run) if run else None,
        cost=cost(shapes, run, gpu, rows, price=price, utilisation=utilisation) if run else None,
        ways=tuple(ways(shapes, setup, gpu, count, order)),
    )


def _with_total(values: dict[str, Any], used: Memory | None) -> dict[str, Any]:
    if used is not None:
        values["memory"]["total"] = used.total
    return values
