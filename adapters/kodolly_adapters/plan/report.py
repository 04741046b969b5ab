"""A plan as text for people: what is trained, memory, time and money, and what fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from .compute import FILLED, KEPT, KEPT_QLORA
from .fit import MOST, Way
from .gpus import GIB
from .memory import CONTEXT, FRAGMENTS, Memory
from .plan import CHARACTERS_PER_ROW, KEYS_AND_INTRODUCTION, Line, Plan

METHODS = {"full": "full tuning", "lora": "LoRA", "qlora": "QLoRA"}
STRATEGIES = {"none": "", "ddp": "DDP", "fsdp": "FSDP"}
ITEMS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "activations": "activations",
    "loss": "logits and loss",
    "communication": "gathered, buckets",
    "overhead": "overhead",
}


def text(plan: Plan) -> str:
    """The whole plan, ending in a newline."""
    parts = [_head(plan), _memory(plan), _machines(plan), _fits(plan), _assumptions(plan)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    shapes, setup, rows, work = plan.shapes, plan.setup, plan.rows, plan.flops
    yield f"{plan.recipe.name}: {METHODS[setup.method]} of {plan.base.name}"
    yield (
        f"  model       {shapes.family.name}, {shapes.layers} layers x {shapes.hidden:,}, "
        f"vocabulary {shapes.vocabulary:,}; config from {plan.base.origin}"
    )
    share = 100 * plan.trainable / shapes.parameters
    yield f"  parameters  {shapes.parameters:,}; trained {plan.trainable:,} ({share:.2f} %)"
    if setup.method != "full":
        dora = ", DoRA" if setup.dora else ""
        names = ", ".join(setup.targets or shapes.family.targets)
        yield f"  adapter     r {setup.r}{dora} on {names}"
    if setup.new_tokens:
        yield f"  new tokens  {setup.new_tokens} rows of each embedding are trained"
    yield (
        f"  data        {rows.rows:,} rows x {rows.per_row:,.0f} tokens = {rows.tokens:,} tokens "
        f"an epoch, {rows.epochs:g} epoch{'' if rows.epochs == 1 else 's'}"
    )
    yield (
        f"  arithmetic  {work.total / 1e9:,.1f} GFLOP a token: forward {work.forward / 1e9:,.1f}, "
        f"backward {work.backward / 1e9:,.1f}, recomputed {work.recomputation / 1e9:,.1f}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    setup = plan.setup
    state = "on" if setup.checkpointing else "off"
    yield (
        f"memory of one GPU in GiB, batch {setup.batch} x {setup.length:,} tokens, "
        f"gradient checkpointing {state}, {setup.precision}"
    )
    heads = [
        f"{column.gpus} {STRATEGIES[column.strategy]}".strip()
        + (" QLoRA" * (column.method == "qlora"))
        for column in plan.columns
    ]
    if setup.method == "qlora":
        heads = [head.replace(" QLoRA", "") for head in heads]
    cells = [["GPUs", *heads]]
    used = [column.memory for column in plan.columns]
    for item in fields(Memory):
        values = [getattr(memory, item.name) for memory in used]
        cells.append([ITEMS[item.name], *(_gib(value) for value in values)])
    cells.append(["total", *(_gib(memory.total) for memory in used)])
    yield from _table(cells)


def _machines(plan: Plan) -> Iterator[str]:
    yield "time and cost"
    cells = [["GPUs", "way", "batch", "GiB", "tokens/s", "steps", "time", "USD"]]
    for line in plan.lines:
        name = f"{line.gpus} x {line.gpu.title}"
        if line.setup is None or line.cost is None or line.memory is None:
            cells.append([name, "does not fit", *["-"] * 6])
            continue
        run, cost = line.setup, line.cost
        way = f"{METHODS[run.method]} {STRATEGIES[run.strategy]}".strip()
        if run.checkpointing != plan.setup.checkpointing:
            way += ", checkpointing"
        batch = f"{run.batch} x {run.accumulation}"
        numbers = [f"{cost.tokens_per_second:,.0f}", f"{cost.steps:,}", _time(cost.hours)]
        price = f"{cost.price:,.0f}" if cost.price >= 10 else f"{cost.price:.2f}"
        cells.append([name, way, batch, _gib(line.memory.total), *numbers, price])
    yield from _table(cells, left=2)


def _fits(plan: Plan) -> Iterator[str]:
    yield (
        f"largest batch a GPU that fits, in sequences of {plan.setup.length:,} tokens "
        "(checkpointing on / off)"
    )
    cells: list[list[str]] = []
    for line in plan.lines:
        ways = [
            f"{_way(way)} {_batch(way.checkpointed)} / {_batch(way.plain)}" for way in line.ways
        ]
        cells.append([f"{line.gpus} x {line.gpu.title}", ";  ".join(ways)])
    yield from _table(cells, left=2)


def _assumptions(plan: Plan) -> Iterator[str]:
    yield "assumed"
    counted, tokens = plan.measured, f"x {plan.base.tokens_per_character:g} tokens each"
    if plan.asked.rows is None:
        origin = "counted in the recipe's files" if counted else "the study's"
        yield f"  rows: {plan.rows.rows:,}, {origin}; --rows N"
    if plan.asked.tokens_per_row is None:
        size = counted.characters + KEYS_AND_INTRODUCTION if counted else CHARACTERS_PER_ROW
        yield f"  tokens a row: {size:,.0f} characters {tokens}; --tokens-per-row M"
    kinds: dict[str, Line] = {line.gpu.title: line for line in plan.lines}
    use = ", ".join(f"{title} {100 * line.utilisation:.0f} %" for title, line in kinds.items())
    yield f"  share of the peak reached (MFU, with recomputation): {use}; --mfu SHARE"
    yield (
        f"  of that: DDP {100 * KEPT['ddp']:.0f} %, FSDP {100 * KEPT['fsdp']:.0f} %, "
        f"QLoRA {100 * KEPT_QLORA:.0f} %; places of a sequence filled "
        f"{100 * FILLED[plan.setup.packing]:.0f} %"
    )
    money = ", ".join(f"{title} {line.price:.2f}" for title, line in kinds.items())
    yield f"  USD an hour of one GPU: {money}; --price H"
    yield (
        f"  overhead: {CONTEXT / GIB:.0f} GiB and {100 * FRAGMENTS:.0f} %; FlashAttention 2 is there; "
        "evaluation and saving not counted"
    )


def _way(way: Way) -> str:
    return f"{METHODS[way.method]} {STRATEGIES[way.strategy]}".strip()


def _batch(size: int) -> str:
    return f"{MOST}+" if size >= MOST else str(size) if size else "none"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}"


def _time(hours: float) -> str:
    """Two units at most: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(hours * 60)
    if minutes < 1:
        return f"{hours * 3600:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    whole, rest = divmod(minutes, 60)
    if whole < 24:
        return f"{whole} h {rest:02} min"
    return f"{whole // 24} d {whole % 24:02} h"


def _table(cells: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Aligned columns; the first `left` to the left, numbers to the right."""
    columns = max(len(row) for row in cells)
    widths = [
        max((len(row[at]) for row in cells if at < len(row)), default=0) for at in range(columns)
    ]
    for row in cells:
        padded = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield ("  " + "  ".join(padded)).rstrip()
