"""`kodolly plan RECIPE`: memory, time and cost of a recipe, from its base's config alone.

docs/plan.md explains every figure and works one plan out by hand; plan.txt.jinja is the printed page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import resources
from typing import Any

from kodolly_adapters.command import run
from kodolly_adapters.errors import OptionError

from .cli import recipe_parser, write_list
from .estimate import GIB, setup_of
from .plan import FILLED, LARGEST_BATCH, SPEED_LEFT, Options, gpus, plan, row_characters
from .recipe import Recipe, load, overrides

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
    "total": "total",
}


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        return write_list()
    if args.recipe is None:
        parser.error("give a RECIPE: a file, or a name that --list prints")
    return run("plan", lambda: _plan(args))


def as_text(recipe: Recipe, options: Options, answer: dict[str, Any]) -> str:
    """The plan for people, ending in a newline. `answer` is plan()'s."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {"n": "{:,.0f}".format, "giga": lambda flops: f"{flops / 1e9:,.1f}"}
    setup, machines = setup_of(recipe), answer["machines"]
    page = resources.files(__package__).joinpath("plan.txt.jinja").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        **answer,
        setup=setup,
        options=options,
        methods=METHODS,
        memory_table=_memory_table(answer["memory"], setup.method),
        cost_table=_table([COSTS, *(_cost(m, setup.checkpointing) for m in machines)], left=2),
        batch_table=_table([[_name(m), ";  ".join(map(_way, m["ways"]))] for m in machines], 2),
        characters=row_characters(recipe, answer["rows"]["measured"]),
        kinds=list({machine["gpu"]["name"]: machine for machine in machines}.values()),
        speed_left=SPEED_LEFT,
        filled=FILLED[setup.packing],
    )


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
    return f"{whole} h {rest:02} min" if whole < 24 else f"{whole // 24} d {whole % 24:02} h"


def _memory_table(columns: Sequence[dict[str, Any]], method: str) -> str:
    heads = []
    for column in columns:
        qlora = "QLoRA" if column["method"] == "qlora" != method else ""
        heads.append(" ".join(f"{column['gpus']} {STRATEGIES[column['strategy']]} {qlora}".split()))
    cells = [
        [title, *(gib(column["memory"][item]) for column in columns)]
        for item, title in ITEMS.items()
    ]
    return _table([["GPUs", *heads], *cells])


COSTS = ["GPUs", "way", "batch", "GiB", "tokens/s", "steps", "time", "USD"]


def _cost(machine: dict[str, Any], checkpointing: bool) -> list[str]:
    """A line under COSTS; `checkpointing` is the recipe's."""
    setup, cost = machine["setup"], machine["cost"]
    if setup is None:
        return [_name(machine), "does not fit", *["-"] * 6]
    more = ", checkpointing" if setup["checkpointing"] != checkpointing else ""
    return [
        _name(machine),
        _method(setup) + more,
        f"{setup['batch']} x {setup['accumulation']}",
        gib(machine["memory"]["total"]),
        f"{cost['tokens_per_second']:,.0f}",
        f"{cost['steps']:,}",
        duration(cost["hours"]),
        f"{cost['price']:,.0f}" if cost["price"] >= 10 else f"{cost['price']:.2f}",
    ]


def _name(machine: dict[str, Any]) -> str:
    return f"{machine['gpus']} x {machine['gpu']['title']}"


def _method(way: dict[str, Any]) -> str:
    return f"{METHODS[way['method']]} {STRATEGIES[way['strategy']]}".strip()


def _way(way: dict[str, Any]) -> str:
    batches = (way["checkpointed"], way["plain"])
    sizes = [f"{size}+" if size >= LARGEST_BATCH else str(size or "none") for size in batches]
    return f"{_method(way)} {' / '.join(sizes)}"


def _table(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def _plan(args: argparse.Namespace) -> None:
    options, recipe = _options(args), load(args.recipe, overrides(args.set))
    answer = plan(recipe, options)
    if args.json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(recipe, options, answer))


def _options(args: argparse.Namespace) -> Options:
    """The flags. Raises OptionError naming the one at fault."""
    counts = args.gpus.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in counts):
        raise OptionError(f"--gpus {args.gpus}: numbers of GPUs with commas, for example 1,4,8")
    kinds = [part.strip() for part in args.gpu.split(",")]
    for kind in kinds:
        if kind not in gpus():
            raise OptionError(f"--gpu {kind}: no such GPU here; there are {', '.join(gpus())}")
    for flag, value, lowest in (
        ("--rows", args.rows, 1),
        ("--tokens-per-row", args.tokens_per_row, 1),
        ("--price", args.price, 0),
    ):
        if value is not None and not value >= lowest:
            raise OptionError(f"{flag} {value:g}: give at least {lowest}")
    if args.mfu is not None and not 0.01 <= args.mfu <= 1:
        raise OptionError(f"--mfu {args.mfu:g}: give from 0.01 to 1")
    return Options(
        gpus=tuple(dict.fromkeys(map(int, counts))),
        kinds=tuple(dict.fromkeys(kinds)),
        rows=args.rows,
        tokens_per_row=args.tokens_per_row,
        price=args.price,
        utilisation=args.mfu,
    )


def _parser() -> argparse.ArgumentParser:
    parser = recipe_parser(
        "plan", "What a recipe needs of memory, time and money, from its base's config alone."
    )
    add = parser.add_argument
    add("--gpus", default="1,4,8", metavar="N,...", help="how many GPUs (default: %(default)s)")
    add("--gpu", default="a100-80,h100", metavar="KIND,...",
        help=f"which: {', '.join(gpus())} (default: %(default)s)")  # fmt: skip
    add("--rows", type=int, metavar="N", help="training rows (default: the study's)")
    add("--tokens-per-row", type=float, metavar="M", help="mean tokens of a row")
    add("--price", type=float, metavar="H", help="USD an hour of one GPU")
    add("--mfu", type=float, metavar="SHARE", help="share of the GPU's peak that is reached")
    add("--json", action="store_true", help="everything, for programs; sizes in bytes")
    return parser
