"""`kodolly plan RECIPE`: memory, time and cost of a recipe, from its base's config alone.

docs/plan.md explains every figure and works one plan out by hand; plan.txt.jinja is the printed page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import inf

from kodolly_adapters.command import run
from kodolly_adapters.errors import OptionError

from .cli import recipe_parser, render, write_list
from .estimate import GIB, setup_of
from .plan import FILLED, LARGEST_BATCH, SPEED_LEFT, gpus, plan, row_characters
from .recipe import load, overrides

# The flags that hold a number, as plan() takes them: type, name of the value, lowest, highest, help.
NUMBERS: dict[str, tuple[type, str, float, float, str]] = {
    "rows": (int, "N", 1, inf, "training rows (default: the study's)"),
    "tokens_per_row": (float, "M", 1, inf, "mean tokens of a row"),
    "price": (float, "H", 0, inf, "USD an hour of one GPU"),
    "mfu": (float, "SHARE", 0.01, 1, "share of the GPU's peak that is reached"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = recipe_parser(
        "plan",
        "Estimate memory, time and cost of a recipe. Only the config of its base model is read.",
    )
    add = parser.add_argument
    add(
        "--gpus",
        default="1,4,8",
        metavar="N,...",
        help="numbers of GPUs to compare (default: %(default)s)",
    )
    add("--gpu", default="a100-80,h100", metavar="KIND,...",
        help=f"kinds of GPU: {', '.join(gpus())} (default: %(default)s)")  # fmt: skip
    for name, (kind, value, _, _, text) in NUMBERS.items():
        add(_flag(name), type=kind, metavar=value, help=text)
    add(
        "--json", action="store_true", help="print everything as JSON, for programs; sizes in bytes"
    )
    args = parser.parse_args(argv)
    if args.list:
        return write_list()
    if args.recipe is None:
        parser.error("give a RECIPE: a file, or a name that --list prints")
    return run("plan", lambda: _plan(args))


def duration(hours: float) -> str:
    """Two units at most: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(hours * 60)
    if minutes < 1:
        return f"{hours * 3600:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    whole, rest = divmod(minutes, 60)
    return f"{whole} h {rest:02} min" if whole < 24 else f"{whole // 24} d {whole % 24:02} h"


def _plan(args: argparse.Namespace) -> None:
    """Print the plan. Raises OptionError naming the flag at fault."""
    counts = args.gpus.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in counts):
        raise OptionError(
            f"--gpus {args.gpus}: give numbers of GPUs with commas between them, for example 1,4,8"
        )
    kinds = [part.strip() for part in args.gpu.split(",")]
    for kind in kinds:
        if kind not in gpus():
            raise OptionError(f"--gpu {kind}: no such GPU here; there are {', '.join(gpus())}")
    numbers = {name: getattr(args, name) for name in NUMBERS}
    for name, (_, _, lowest, highest, _) in NUMBERS.items():
        value = numbers[name]
        if value is not None and not lowest <= value <= highest:
            bounds = f"at least {lowest}" if highest == inf else f"from {lowest} to {highest}"
            raise OptionError(f"{_flag(name)} {value:g}: give {bounds}")
    recipe = load(args.recipe, overrides(args.set))
    answer = plan(
        recipe, list(dict.fromkeys(map(int, counts))), list(dict.fromkeys(kinds)), **numbers
    )
    if args.json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")
        return
    setup = setup_of(recipe)
    values = answer | {
        "setup": setup,
        "gib": GIB,
        "numbers": numbers,
        "characters": row_characters(recipe, answer["rows"]["measured"]),
        "largest_batch": LARGEST_BATCH,
        "speed_left": SPEED_LEFT,
        "filled": FILLED[setup["packing"]],
    }
    sys.stdout.write(render("plan.txt.jinja", values, duration=duration, table=_table))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _table(text: str, left: int = 1) -> str:
    """Lines of cells with "|" between them as aligned columns; the first `left` to the left, numbers to the right."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.strip().split("\n")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    columns = [f"{{:{'<' if at < left else '>'}{width}}}" for at, width in enumerate(widths)]
    line = "  " + "  ".join(columns)
    return "\n".join(line.format(*row).rstrip() for row in cells)
