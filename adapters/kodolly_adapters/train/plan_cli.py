"""`kodolly plan RECIPE`: memory, time and cost of a recipe, from its base's config alone.

docs/plan.md explains every figure and works one plan out by hand; plan.txt.jinja is the printed page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path

from kodolly_adapters.command import require, run, say
from kodolly_adapters.errors import OptionError
from kodolly_adapters.terminal import Progress

from .cli import check_inputs, quiet_libraries, recipe_parser, render, write_list
from .estimate import GIB, Values, setup_of
from .plan import (
    FILLED,
    LARGE,
    LARGEST_BATCH,
    SPEED_LEFT,
    Sample,
    compare,
    gpus,
    plan,
    row_characters,
    sample,
)
from .recipe import Recipe, load, naming, overrides

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
        "--measure",
        action="store_true",
        help="run twenty steps on this machine, and print what they took beside what is planned",
    )
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
    changes = overrides(args.set)
    recipe = load(args.recipe, changes)
    with naming(args.recipe, changes):
        taken = _sample(recipe.data.train)
        answer = plan(
            recipe,
            list(dict.fromkeys(map(int, counts))),
            list(dict.fromkeys(kinds)),
            taken=taken,
            **numbers,
        )
        if args.measure:
            answer["this_machine"] = compare(recipe, answer, _measure(recipe, taken), args.mfu)
    if args.json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")
        return
    setup = setup_of(recipe)
    values = answer | {
        "setup": setup,
        "here": answer.get("this_machine"),
        "gib": GIB,
        "numbers": numbers,
        "characters": row_characters(recipe, answer["rows"]["measured"]),
        "largest_batch": LARGEST_BATCH,
        "speed_left": SPEED_LEFT,
        "filled": FILLED[setup["packing"]],
    }
    sys.stdout.write(render("plan.txt.jinja", values, duration=duration, table=_table))


def _sample(paths: Sequence[str]) -> Sample | None:
    """The sample of the recipe's files; says so where reading them takes a while."""
    size = sum(Path(path).stat().st_size for path in paths if Path(path).is_file())
    if size > LARGE:
        say("plan", f"reading {', '.join(paths)} ({size / 1e9:,.1f} GB)")
    return sample(paths)


def _measure(recipe: Recipe, taken: Sample | None) -> Values:
    """Twenty steps of the recipe. Raises OptionError where its rows are not here."""
    samples = {"train": taken}
    if recipe.data.validation:
        samples["validation"] = _sample(recipe.data.validation)
    for split, rows in samples.items():
        if rows is None or not rows.lines:
            raise OptionError(
                f"--measure needs rows to train on: data.{split} is {', '.join(getattr(recipe.data, split))}, and "
                "not all of these are JSON Lines or Parquet files that are here"
            )
    require("torch", "trl")
    check_inputs(recipe)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process takes one GPU
    say("plan", "loading torch, transformers and TRL")
    quiet_libraries()
    from .run import measure

    with Progress("plan", unit="row") as progress:
        return measure(recipe, {key: rows for key, rows in samples.items() if rows}, progress)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _table(text: str, left: int = 1) -> str:
    """Lines of cells with "|" between them as aligned columns; the first `left` to the left, numbers to the right."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.strip().split("\n")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    columns = [f"{{:{'<' if at < left else '>'}{width}}}" for at, width in enumerate(widths)]
    line = "  " + "  ".join(columns)
    return "\n".join(line.format(*row).rstrip() for row in cells)
