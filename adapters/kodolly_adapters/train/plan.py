"""The plan of a recipe as plain values: memory for each way to run, what fits which GPU, and time and cost there."""

from __future__ import annotations

import functools
import json
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Any

from .estimate import GIB, Setup, Strategy, flops, memory, setup_of, trainable
from .recipe import Recipe
from .shapes import Base, Shapes, find_base, shapes_of

STUDY_ROWS = 923_590
CHARACTERS_PER_ROW = 800  # with the template's keys; assumed for the study's mix of sets
TEMPLATE_CHARACTERS = 100  # keys and introduction that the template adds to a row
SAMPLE = 5000  # rows of each file whose characters are counted
LARGEST_BATCH = 1024  # sequences; more are no use
# Shares of one GPU's speed that remain; assumed. FSDP waits for layers, QLoRA unpacks weights.
SPEED_LEFT = {"none": 1.0, "ddp": 0.95, "fsdp": 0.85, "qlora": 0.75}
FILLED = {True: 0.98, False: 0.5}  # places of a sequence that hold a token: packed, padded; assumed


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU, from gpus.toml, which says where each figure comes from."""

    name: str
    title: str
    memory: int  # bytes a process can use
    bf16: float  # FLOP/s of dense bf16 matrix products
    fp32: float  # FLOP/s of plain fp32
    utilisation: float  # share of the peak that training reaches
    price: float  # USD an hour


@functools.cache
def gpus() -> dict[str, Gpu]:
    """The GPUs that a plan can be made for, by name."""
    text = resources.files(__package__).joinpath("gpus.toml").read_text(encoding="utf-8")
    return {
        name: Gpu(name, memory=int(values.pop("memory_gib") * GIB), **values)
        for name, values in tomllib.loads(text).items()
    }


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to a recipe; None takes what the recipe and gpus.toml say."""

    gpus: tuple[int, ...] = (1, 4, 8)
    kinds: tuple[str, ...] = ("a100-80", "h100")
    rows: int | None = None
    tokens_per_row: float | None = None
    price: float | None = None  # USD an hour of one GPU
    utilisation: float | None = None


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


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run on some GPUs, and the largest batch with and without gradient checkpointing (0: none)."""

    method: str
    strategy: Strategy
    checkpointed: int
    plain: int


def plan(recipe: Recipe, options: Options) -> dict[str, Any]:
    """The plan as `--json` prints it: sizes in bytes, arithmetic in FLOP a token, prices in USD.

    Raises UserError where the base or the recipe does not allow one.
    """
    base = find_base(recipe.base, recipe.revision)
    shapes, setup = shapes_of(base.config), setup_of(recipe)
    sample = sample_rows(recipe.data.train)
    rows, work = _rows(recipe, base, options, sample), flops(shapes, setup)
    runs = [(setup.method, way, n) for n in options.gpus for way in strategies(recipe, n)]
    if setup.method == "lora":
        several = [count for count in options.gpus if count > 1]
        runs += [("qlora", "none", 1), *(("qlora", "fsdp", count) for count in several[-1:])]
    columns = []
    for method, strategy, count in runs:
        run = replace(setup, method=method, strategy=strategy, gpus=count)
        size = memory(shapes, run).as_dict()
        columns.append({"method": method, "strategy": strategy, "gpus": count, "memory": size})
    return {
        "recipe": recipe.model_dump(),
        "base": asdict(base),
        "parameters": shapes.parameters,
        "trainable": trainable(shapes, setup),
        "shapes": asdict(shapes),
        "flops_per_token": asdict(work) | {"total": work.total},
        "rows": asdict(rows) | {"tokens": rows.tokens, "measured": sample},
        "memory": columns,
        "machines": [
            _machine(recipe, shapes, setup, rows, gpus()[kind], count, options)
            for kind in options.kinds
            for count in options.gpus
        ],
    }


def sample_rows(paths: Sequence[str]) -> dict[str, Any] | None:
    """{"rows", "characters": mean of a row without the template's keys} of the files.

    None unless all are JSON Lines files that can be read here.
    """
    rows = sampled = characters = 0
    for path in map(Path, paths):
        if path.suffix != ".jsonl" or not path.is_file():
            return None
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                rows += bool(line.strip())
                if number < SAMPLE and (size := _characters(line)):
                    sampled += 1
                    characters += size
    return {"rows": rows, "characters": characters / sampled} if sampled else None


def row_characters(recipe: Recipe, sample: dict[str, Any] | None) -> float:
    """Characters of a row with the template's keys; the study's where there is no sample."""
    if sample is None:
        return float(CHARACTERS_PER_ROW)
    keys = TEMPLATE_CHARACTERS if recipe.data.format == "rows" else 0
    return float(sample["characters"] + keys)


def strategies(recipe: Recipe, count: int) -> tuple[Strategy, ...]:
    """The ways to use `count` GPUs, the recipe's own first. DeepSpeed is planned as ZeRO-3, as FSDP is."""
    if count == 1:
        return ("none",)
    own = recipe.distributed.strategy
    return ("fsdp", "ddp") if own in ("fsdp", "deepspeed") else ("ddp", "fsdp")


def cost(shapes: Shapes, setup: Setup, gpu: Gpu, rows: Rows) -> Cost:
    """Time and price of `setup` on its GPUs, which are `gpu`."""
    peak = gpu.fp32 if setup.precision == "fp32" else gpu.bf16
    left = SPEED_LEFT[setup.strategy] * (SPEED_LEFT["qlora"] if setup.method == "qlora" else 1)
    filled = FILLED[setup.packing]
    places = peak * gpu.utilisation * left * setup.gpus / flops(shapes, setup).total  # a second
    a_step = setup.gpus * setup.tokens * setup.accumulation * filled
    tokens = rows.tokens * rows.epochs if rows.max_steps < 0 else rows.max_steps * a_step
    steps = ceil(tokens / a_step) if rows.max_steps < 0 else rows.max_steps
    hours = tokens / (places * filled) / 3600
    return Cost(places * filled, steps, round(tokens), hours, hours * setup.gpus * gpu.price)


def fits(shapes: Shapes, setup: Setup, gpu: Gpu) -> bool:
    """Whether the setup's fullest moment is within one GPU's memory."""
    return memory(shapes, setup).total <= gpu.memory


def largest(shapes: Shapes, setup: Setup, gpu: Gpu) -> int:
    """The largest batch (sequences a GPU) that fits: 0 for none, LARGEST_BATCH at most."""
    sizes = range(1, LARGEST_BATCH + 1)
    return bisect_left(sizes, True, key=lambda n: not fits(shapes, replace(setup, batch=n), gpu))


def ways(
    shapes: Shapes, setup: Setup, gpu: Gpu, count: int, order: Sequence[Strategy]
) -> Iterator[Way]:
    """The recipe's own method by each strategy of `order`, then the methods that need less memory."""
    cheaper = {"full": ("full", "lora", "qlora"), "lora": ("lora", "qlora")}
    for method in cheaper.get(setup.method, (setup.method,)):
        for strategy in order if method == setup.method else order[:1]:
            run = replace(setup, method=method, gpus=count, strategy=strategy)
            batches = [largest(shapes, replace(run, checkpointing=c), gpu) for c in (True, False)]
            yield Way(method, strategy, *batches)


def choose(
    shapes: Shapes, setup: Setup, gpu: Gpu, count: int, order: Sequence[Strategy]
) -> Setup | None:
    """The recipe as written by the first strategy that fits; else changed as little as possible; else None.

    Tried in turn: the batch, half of it with twice the accumulation down to one, checkpointing, then QLoRA for LoRA.
    """
    for method in [setup.method, *(["qlora"] if setup.method == "lora" else [])]:
        for checkpointing in dict.fromkeys([setup.checkpointing, True]):
            for strategy in order:
                run = replace(
                    setup, method=method, gpus=count, strategy=strategy, checkpointing=checkpointing
                )
                while not fits(shapes, run, gpu) and run.batch % 2 == 0:
                    run = replace(run, batch=run.batch // 2, accumulation=run.accumulation * 2)
                if fits(shapes, run, gpu):
                    return run
    return None


def _characters(line: bytes) -> int:
    """Characters of the texts that a template writes; 0 for a line that is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0
    if not isinstance(row, dict):
        return 0
    parts: list[Any] = [row.get(key) for key in ("instruction", "context", "response", "text")]
    for message in row.get("messages") or []:
        if isinstance(message, dict):
            parts += [message.get("content"), message.get("context")]
    return sum(len(part) for part in parts if isinstance(part, str))


def _rows(recipe: Recipe, base: Base, options: Options, sample: dict[str, Any] | None) -> Rows:
    """What the options say, else what the recipe's files hold, else the study's rows."""
    data, train = recipe.data, recipe.train
    rows = options.rows or (sample["rows"] if sample else STUDY_ROWS)
    per_row = options.tokens_per_row or row_characters(recipe, sample) * base.tokens_per_character
    return Rows(
        min(rows, data.max_rows or rows),
        min(per_row, data.max_length) if data.format == "rows" else per_row,
        train.epochs,
        data.repeat,
        train.max_steps,
    )


def _machine(
    recipe: Recipe, shapes: Shapes, setup: Setup, rows: Rows, gpu: Gpu, count: int, options: Options
) -> dict[str, Any]:
    """`count` GPUs of one kind: the setup that runs there with its cost (None where none fits), and every way."""
    order = strategies(recipe, count)
    rented = replace(
        gpu,
        price=gpu.price if options.price is None else options.price,
        utilisation=options.utilisation or gpu.utilisation,
    )
    run = choose(shapes, setup, gpu, count, order)
    return {
        "gpu": asdict(gpu),
        "gpus": count,
        "price": rented.price,
        "utilisation": rented.utilisation,
        "setup": run and asdict(run),
        "memory": run and memory(shapes, run).as_dict(),
        "cost": run and asdict(cost(shapes, run, rented, rows)),
        "ways": [asdict(way) for way in ways(shapes, setup, gpu, count, order)],
    }
