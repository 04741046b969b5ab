"""The plan of a recipe as data: memory for each way to run, what fits which GPU, and time and cost there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from .estimate import GIB, Flops, Memory, Setup, Strategy, flops, memory, setup_of, trainable
from .recipe import Recipe
from .shapes import Base, Shapes, find_base, shapes_of

STUDY_ROWS = 923_590
CHARACTERS_PER_ROW = 800  # with the template's keys; assumed for the study's mix of sets
TEMPLATE_CHARACTERS = 100  # keys and introduction that the template adds to a row
SAMPLE = 5000  # rows of each file whose characters are counted
LARGEST_BATCH = 1024  # sequences; more are no use
# Shares of one GPU's speed that remain; assumed. FSDP waits for layers, QLoRA unpacks weights.
SPEED_LEFT = {"none": 1.0, "ddp": 0.95, "fsdp": 0.85}
SPEED_LEFT_QLORA = 0.75
FILLED = {True: 0.98, False: 0.5}  # places of a sequence that hold a token: packed, padded; assumed


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    title: str
    memory: int  # bytes a process can use: what CUDA reports as total, below the label's GB
    bf16: float  # FLOP/s of dense bf16 matrix products
    fp32: float  # FLOP/s of plain fp32
    utilisation: float  # share of the peak that training reaches; assumed
    price: float  # USD an hour; assumed


# Peaks: NVIDIA's A100 data sheet (312 TFLOPS bf16 and 19.5 fp32 without sparsity, both sizes) and
# H100 data sheet, SXM5 (1,979 TFLOPS bf16 with sparsity, so 989.4 without; 66.9 fp32).
# Memory: what torch.cuda reports as the total of these cards.
# Utilisation: our assumption for transformers with gradient checkpointing and sdpa attention. An H100
# waits more for its memory, whose bandwidth grew less (3.35 TB/s after 2.04) than its peak.
# Prices: about the middle of on-demand prices at specialised clouds in May 2026 (an A100 of 80 GB
# 1.5-2.5, an H100 2.5-4.0). Large clouds ask more, spot prices are half.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", "A100 40 GB", int(39.4 * GIB), 312e12, 19.5e12, 0.40, 1.30),
        Gpu("a100-80", "A100 80 GB", int(79.1 * GIB), 312e12, 19.5e12, 0.40, 2.00),
        Gpu("h100", "H100 80 GB", int(79.1 * GIB), 989.4e12, 66.9e12, 0.32, 3.00),
    )
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to a recipe; None takes the stated default."""

    gpus: tuple[int, ...] = (1, 4, 8)
    kinds: tuple[str, ...] = ("a100-80", "h100")
    rows: int | None = None
    tokens_per_row: float | None = None
    price: float | None = None  # USD an hour of one GPU
    utilisation: float | None = None
    measure: bool = True  # count the recipe's own rows where its files are here


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of the recipe's files, and the mean characters of a row without the template's keys."""

    rows: int
    characters: float


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


@dataclass(frozen=True, slots=True)
class Column:
    """Memory of one GPU for one way to run."""

    method: str
    strategy: str
    gpus: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Machine:
    """Some GPUs of one kind: the setup that runs there with its cost (None where none fits), and every way."""

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
    sample: Sample | None  # of the recipe's own files
    options: Options
    columns: tuple[Column, ...]
    machines: tuple[Machine, ...]

    def as_dict(self) -> dict[str, Any]:
        """For programs: plain values, in the units of the classes above."""
        return {
            "recipe": self.recipe.model_dump(),
            "base": asdict(self.base),
            "parameters": self.shapes.parameters,
            "trainable": self.trainable,
            "shapes": asdict(self.shapes),
            "flops_per_token": asdict(self.flops) | {"total": self.flops.total},
            "rows": asdict(self.rows)
            | {"tokens": self.rows.tokens, "measured": self.sample and asdict(self.sample)},
            "memory": [_with_total(asdict(column), column.memory) for column in self.columns],
            "machines": [_with_total(asdict(one), one.memory) for one in self.machines],
        }


def plan(recipe: Recipe, options: Options) -> Plan:
    """The plan of a recipe. Raises UserError where the base or the recipe does not allow one."""
    base = find_base(recipe.base, recipe.revision)
    shapes, setup = shapes_of(base.config), setup_of(recipe)
    sample = sample_rows(recipe.data.train) if options.measure else None
    rows = _rows(recipe, base, options, sample)
    runs = [(setup.method, way, n) for n in options.gpus for way in strategies(recipe, n)]
    if setup.method == "lora":
        several = [count for count in options.gpus if count > 1]
        runs += [("qlora", "none", 1), *(("qlora", "fsdp", count) for count in several[-1:])]
    columns = []
    for method, strategy, count in runs:
        run = replace(setup, method=method, strategy=strategy, gpus=count)
        columns.append(Column(method, strategy, count, memory(shapes, run)))
    machines = [
        _machine(recipe, shapes, setup, rows, GPUS[kind], count, options)
        for kind in options.kinds
        for count in options.gpus
    ]
    return Plan(
        recipe=recipe,
        base=base,
        shapes=shapes,
        setup=setup,
        trainable=trainable(shapes, setup),
        flops=flops(shapes, setup),
        rows=rows,
        sample=sample,
        options=options,
        columns=tuple(columns),
        machines=tuple(machines),
    )


def sample_rows(paths: Sequence[str]) -> Sample | None:
    """Rows and characters of the files; None unless all are JSON Lines files that can be read here."""
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
    return Sample(rows, characters / sampled) if sampled else None


def strategies(recipe: Recipe, gpus: int) -> tuple[Strategy, ...]:
    """The ways to use `gpus` GPUs, the recipe's own first. DeepSpeed is planned as ZeRO-3, as FSDP is."""
    if gpus == 1:
        return ("none",)
    own = recipe.distributed.strategy
    return ("fsdp", "ddp") if own in ("fsdp", "deepspeed") else ("ddp", "fsdp")


def cost(
    shapes: Shapes, setup: Setup, gpu: Gpu, rows: Rows, *, price: float, utilisation: float
) -> Cost:
    """Time and price of `setup` on its GPUs. `price` is USD an hour of one GPU."""
    peak = gpu.fp32 if setup.precision == "fp32" else gpu.bf16
    left = SPEED_LEFT[setup.strategy] * (SPEED_LEFT_QLORA if setup.method == "qlora" else 1)
    filled = FILLED[setup.packing]
    places = peak * utilisation * left * setup.gpus / flops(shapes, setup).total  # a second
    a_step = setup.gpus * setup.tokens * setup.accumulation * filled
    tokens = rows.tokens * rows.epochs if rows.max_steps < 0 else rows.max_steps * a_step
    steps = ceil(tokens / a_step) if rows.max_steps < 0 else rows.max_steps
    hours = tokens / (places * filled) / 3600
    return Cost(places * filled, steps, round(tokens), hours, hours * setup.gpus * price)


def fits(shapes: Shapes, setup: Setup, gpu: Gpu) -> bool:
    """Whether the setup's fullest moment is within one GPU's memory."""
    return memory(shapes, setup).total <= gpu.memory


def largest(shapes: Shapes, setup: Setup, gpu: Gpu) -> int:
    """The largest batch (sequences a GPU) that fits: 0 for none, LARGEST_BATCH at most."""
    low, high = 0, LARGEST_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        if fits(shapes, replace(setup, batch=middle), gpu):
            low = middle
        else:
            high = middle - 1
    return low


def ways(
    shapes: Shapes, setup: Setup, gpu: Gpu, gpus: int, order: Sequence[Strategy]
) -> Iterator[Way]:
    """The recipe's own method by each strategy of `order`, then the methods that need less memory."""
    cheaper = {"full": ("full", "lora", "qlora"), "lora": ("lora", "qlora")}
    for method in cheaper.get(setup.method, (setup.method,)):
        for strategy in order if method == setup.method else order[:1]:
            run = replace(setup, method=method, gpus=gpus, strategy=strategy)
            batches = [largest(shapes, replace(run, checkpointing=c), gpu) for c in (True, False)]
            yield Way(method, strategy, *batches)


def choose(
    shapes: Shapes, setup: Setup, gpu: Gpu, gpus: int, order: Sequence[Strategy]
) -> Setup | None:
    """The recipe as written by the first strategy that fits; else changed as little as possible; else None.

    Tried in turn: the batch, half of it with twice the accumulation down to one, checkpointing, then QLoRA for LoRA.
    """
    for method in [setup.method, *(["qlora"] if setup.method == "lora" else [])]:
        for checkpointing in dict.fromkeys([setup.checkpointing, True]):
            for strategy in order:
                run = replace(
                    setup, method=method, gpus=gpus, strategy=strategy, checkpointing=checkpointing
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


def _rows(recipe: Recipe, base: Base, options: Options, sample: Sample | None) -> Rows:
    """What the options say, else what the recipe's files hold, else the study's rows."""
    data, train = recipe.data, recipe.train
    rows, characters = STUDY_ROWS, float(CHARACTERS_PER_ROW)
    if sample is not None:
        keys = TEMPLATE_CHARACTERS if data.format == "rows" else 0
        rows, characters = sample.rows, sample.characters + keys
    rows = rows if options.rows is None else options.rows
    per_row = options.tokens_per_row or characters * base.tokens_per_character
    return Rows(
        min(rows, data.max_rows or rows),
        min(per_row, data.max_length) if data.format == "rows" else per_row,
        train.epochs,
        data.repeat,
        train.max_steps,
    )


def _machine(
    recipe: Recipe, shapes: Shapes, setup: Setup, rows: Rows, gpu: Gpu, gpus: int, options: Options
) -> Machine:
    order = strategies(recipe, gpus)
    price = gpu.price if options.price is None else options.price
    utilisation = gpu.utilisation if options.utilisation is None else options.utilisation
    run = choose(shapes, setup, gpu, gpus, order)
    return Machine(
        gpu=gpu,
        gpus=gpus,
        price=price,
        utilisation=utilisation,
        setup=run,
        memory=memory(shapes, run) if run else None,
        cost=cost(shapes, run, gpu, rows, price=price, utilisation=utilisation) if run else None,
        ways=tuple(ways(shapes, setup, gpu, gpus, order)),
    )


def _with_total(values: dict[str, Any], memory: Memory | None) -> dict[str, Any]:
    if memory is not None:
        values["memory"]["total"] = memory.total
    return values
