"""`kodolly plan RECIPE`: memory, time and cost of a recipe, from its base's config alone.

    kodolly plan polyglot-ko-12.8b-lora
    kodolly plan my.toml --gpus 2 --gpu a100-40 --rows 50000 --tokens-per-row 300 --price 1.10
    kodolly plan polyglot-ko-5.8b-lora --set train.batch_size=16 --json

docs/plan.md shows the plan of every built-in recipe and works two out by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from kodolly_adapters.errors import UserError
from kodolly_adapters.train.recipe import built_in, load, overrides

from .flags import counts, kinds, number
from .gpus import GPUS
from .plan import Asked, plan
from .report import text


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(argv)
    if chosen.list:
        sys.stdout.write("".join(f"{name}\n" for name in built_in()))
        return 0
    if chosen.recipe is None:
        parser.error("give a RECIPE: a file, or a name that --list prints")
    try:
        asked, changes = _asked(chosen), overrides(chosen.set)
    except ValueError as error:
        sys.stderr.write(f"kodolly plan: {error}\n")
        return 2
    try:
        answer = plan(load(chosen.recipe, changes), asked)
    except UserError as error:
        sys.stderr.write(f"kodolly plan: {error}\n")
        return 1
    if chosen.json:
        sys.stdout.write(json.dumps(answer.described(), ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(text(answer))
    return 0


def _asked(chosen: argparse.Namespace) -> Asked:
    """The flags. Raises ValueError naming the one at fault."""
    return Asked(
        gpus=counts(chosen.gpus),
        kinds=kinds(chosen.gpu),
        rows=number("--rows", chosen.rows, lowest=1),
        tokens_per_row=number("--tokens-per-row", chosen.tokens_per_row, lowest=1),
        price=number("--price", chosen.price, lowest=0),
        utilisation=number("--mfu", chosen.mfu, lowest=0.01, highest=1),
    )


def _parser() -> argparse.ArgumentParser:
    default = Asked()
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
