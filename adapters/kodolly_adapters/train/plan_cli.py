"""`kodolly plan RECIPE`: memory, time and cost of a recipe, from its base's config alone.

    kodolly plan polyglot-ko-12.8b-lora
    kodolly plan my.toml --gpus 2 --gpu a100-40 --rows 50000 --tokens-per-row 300 --price 1.10
    kodolly plan polyglot-ko-5.8b-lora --set train.batch_size=16 --json

docs/plan.md explains every figure and works one plan out by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from kodolly_adapters.errors import UserError

from .estimate import CONTEXT, FRAGMENTS, GIB, Memory
from .plan import (
    CHARACTERS_PER_ROW,
    FILLED,
    GPUS,
    LARGEST_BATCH,
    SPEED_LEFT,
    SPEED_LEFT_QLORA,
    TEMPLATE_CHARACTERS,
    Machine,
    Options,
    Plan,
    Way,
    plan,
)
from .recipe import built_in, load, overrides

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


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        sys.stdout.write("".join(f"{name}\n" for name in built_in()))
        return 0
    if args.recipe is None:
        parser.error("give a RECIPE: a file, or a name that --list prints")
    try:
        options, changes = _options(args), overrides(args.set)
    except ValueError as error:
        sys.stderr.write(f"kodolly plan: {error}\n")
        return 2
    try:
        answer = plan(load(args.recipe, changes), options)
    except UserError as error:
        sys.stderr.write(f"kodolly plan: {error}\n")
        return 1
    if args.json:
        sys.stdout.write(json.dumps(answer.as_dict(), ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(answer))
    return 0


def as_text(plan: Plan) -> str:
    """The plan for people, ending in a newline."""
    parts = [_head(plan), _memory(plan), _machines(plan), _batches(plan), _assumptions(plan)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def gib(size: int) -> str:
    """Bytes as GiB, such as "35.8"."""
    return f"{size / GIB:,.1f}"


def duration(hours: float) -> str:
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
        yield f"  adapter     r {setup.r}{dora} on {', '.join(setup.targets or shapes.family.targets)}"
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
    yield (
        f"memory of one GPU in GiB, batch {setup.batch} x {setup.length:,} tokens, "
        f"gradient checkpointing {'on' if setup.checkpointing else 'off'}, {setup.precision}"
    )
    heads = [f"{column.gpus} {STRATEGIES[column.strategy]}".strip() for column in plan.columns]
    if setup.method != "qlora":
        is_qlora = [column.method == "qlora" for column in plan.columns]
        heads = [head + " QLoRA" * qlora for head, qlora in zip(heads, is_qlora, strict=True)]
    memories = [column.memory for column in plan.columns]
    cells = [["GPUs", *heads]]
    for item in fields(Memory):
        cells.append([ITEMS[item.name], *(gib(getattr(one, item.name)) for one in memories)])
    yield from _table([*cells, ["total", *(gib(one.total) for one in memories)]])


def _machines(plan: Plan) -> Iterator[str]:
    yield "time and cost"
    cells = [["GPUs", "way", "batch", "GiB", "tokens/s", "steps", "time", "USD"]]
    for machine in plan.machines:
        name = f"{machine.gpus} x {machine.gpu.title}"
        if machine.setup is None or machine.cost is None or machine.memory is None:
            cells.append([name, "does not fit", *["-"] * 6])
            continue
        run, cost = machine.setup, machine.cost
        way = f"{METHODS[run.method]} {STRATEGIES[run.strategy]}".strip()
        if run.checkpointing != plan.setup.checkpointing:
            way += ", checkpointing"
        figures = [f"{cost.tokens_per_second:,.0f}", f"{cost.steps:,}", duration(cost.hours)]
        price = f"{cost.price:,.0f}" if cost.price >= 10 else f"{cost.price:.2f}"
        batch = f"{run.batch} x {run.accumulation}"
        cells.append([name, way, batch, gib(machine.memory.total), *figures, price])
    yield from _table(cells, left=2)


def _batches(plan: Plan) -> Iterator[str]:
    yield (
        f"largest batch a GPU that fits, in sequences of {plan.setup.length:,} tokens "
        "(checkpointing on / off)"
    )
    cells = [
        [f"{machine.gpus} x {machine.gpu.title}", ";  ".join(map(_way, machine.ways))]
        for machine in plan.machines
    ]
    yield from _table(cells, left=2)


def _way(way: Way) -> str:
    name = f"{METHODS[way.method]} {STRATEGIES[way.strategy]}".strip()
    return f"{name} {_batch(way.checkpointed)} / {_batch(way.plain)}"


def _batch(size: int) -> str:
    return f"{LARGEST_BATCH}+" if size >= LARGEST_BATCH else str(size) if size else "none"


def _assumptions(plan: Plan) -> Iterator[str]:
    yield "assumed"
    sample = plan.sample
    if plan.options.rows is None:
        origin = "counted in the recipe's files" if sample else "the study's"
        yield f"  rows: {plan.rows.rows:,}, {origin}; --rows N"
    if plan.options.tokens_per_row is None:
        size = sample.characters + TEMPLATE_CHARACTERS if sample else CHARACTERS_PER_ROW
        each = f"{plan.base.tokens_per_character:g} tokens each"
        yield f"  tokens a row: {size:,.0f} characters x {each}; --tokens-per-row M"
    kinds: dict[str, Machine] = {machine.gpu.title: machine for machine in plan.machines}
    use = ", ".join(f"{title} {100 * one.utilisation:.0f} %" for title, one in kinds.items())
    yield f"  share of the peak reached (MFU, with recomputation): {use}; --mfu SHARE"
    yield (
        f"  of that: DDP {100 * SPEED_LEFT['ddp']:.0f} %, FSDP {100 * SPEED_LEFT['fsdp']:.0f} %, "
        f"QLoRA {100 * SPEED_LEFT_QLORA:.0f} %; places of a sequence filled "
        f"{100 * FILLED[plan.setup.packing]:.0f} %"
    )
    money = ", ".join(f"{title} {one.price:.2f}" for title, one in kinds.items())
    yield f"  USD an hour of one GPU: {money}; --price H"
    yield (
        f"  overhead: {CONTEXT / GIB:.0f} GiB and {100 * FRAGMENTS:.0f} %; FlashAttention 2 is there; "
        "evaluation and saving not counted"
    )


def _table(cells: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Aligned columns; the first `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(padded)).rstrip()


def _options(args: argparse.Namespace) -> Options:
    """The flags. Raises ValueError naming the one at fault."""
    counts = args.gpus.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in counts):
        raise ValueError(f"--gpus {args.gpus}: numbers of GPUs with commas, for example 1,4,8")
    kinds = [part.strip() for part in args.gpu.split(",")]
    for kind in kinds:
        if kind not in GPUS:
            raise ValueError(f"--gpu {kind}: no such GPU here; there are {', '.join(GPUS)}")
    return Options(
        gpus=tuple(dict.fromkeys(map(int, counts))),
        kinds=tuple(dict.fromkeys(kinds)),
        rows=_number("--rows", args.rows, lowest=1),
        tokens_per_row=_number("--tokens-per-row", args.tokens_per_row, lowest=1),
        price=_number("--price", args.price, lowest=0),
        utilisation=_number("--mfu", args.mfu, lowest=0.01, highest=1),
    )


def _number(flag: str, value: Any, lowest: float, highest: float | None = None) -> Any:
    """`value` unchanged where it is within the limits or not given."""
    if value is None or (value >= lowest and (highest is None or value <= highest)):
        return value
    limits = f"from {lowest:g} to {highest:g}" if highest is not None else f"at least {lowest:g}"
    raise ValueError(f"{flag} {value:g}: give {limits}")


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="kodolly plan",
        description="What a recipe needs of memory, time and money, from its base's config alone.",
    )
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a recipe file, or a built-in recipe's name")
    add("--list", action="store_true", help="the built-in recipes, and end")
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="change one key of the recipe, for example train.batch_size=2")  # fmt: skip
    add("--gpus", default=",".join(map(str, default.gpus)), metavar="N,...",
        help="how many GPUs (default: %(default)s)")  # fmt: skip
    add("--gpu", default=",".join(default.kinds), metavar="KIND,...",
        help=f"which: {', '.join(GPUS)} (default: %(default)s)")  # fmt: skip
    add("--rows", type=int, metavar="N", help="training rows (default: the study's)")
    add("--tokens-per-row", type=float, metavar="M", help="mean tokens of a row")
    add("--price", type=float, metavar="H", help="USD an hour of one GPU")
    add("--mfu", type=float, metavar="SHARE", help="share of the GPU's peak that is reached")
    add("--json", action="store_true", help="everything, for programs; sizes in bytes")
    return parser
