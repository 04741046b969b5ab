"""`kodolly train RECIPE --out DIR`: a tuned model or adapter from a recipe and Dolly rows.

The same command goes on after a kill. docs/train.md explains every key of a recipe.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.bases import is_hub_id, locate
from kodolly_adapters.command import GOES_ON, require, run
from kodolly_adapters.terminal import Progress

from .recipe import Recipe, built_in, load, naming, overrides


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = recipe_parser("train", "Train a model, or an adapter for one, by a recipe.")
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder for the run; the folder of an unfinished run resumes it",
    )
    add(
        "--dry-run", action="store_true", help="prepare the rows, print what would happen, and exit"
    )
    add("--quiet", action="store_true", help="print no progress")
    args = parser.parse_args(argv)
    if args.list:
        return write_list()
    if args.recipe is None or (args.out is None and not args.dry_run):
        parser.error("give a RECIPE, and --out DIR")
    return run("train", lambda: _train(args), repeat=GOES_ON, show=_is_main())


def recipe_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The arguments of every command that reads a recipe."""
    parser = argparse.ArgumentParser(prog=f"kodolly {command}", description=description)
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a TOML file, or the name of a built-in recipe")
    add("--list", action="store_true", help="print the built-in recipes and exit")
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="change one key of the recipe, for example train.batch_size=2")  # fmt: skip
    return parser


def write_list() -> int:
    """Print the built-in recipes for --list, one a line; returns the exit status."""
    sys.stdout.write("".join(f"{name}\n" for name in built_in()))
    return 0


def render(page: str, values: Mapping[str, Any], **filters: Callable[..., str]) -> str:
    """The text of `page`, a Jinja file beside this module. A name that has no value is an error."""
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    jinja.filters |= {"n": "{:,.0f}".format, "n1": "{:,.1f}".format, **filters}
    source = resources.files(__package__).joinpath(page).read_text(encoding="utf-8")
    return jinja.from_string(source).render(values)


def _train(args: argparse.Namespace) -> int:
    changes = overrides(args.set)
    recipe = load(args.recipe, changes)
    with naming(args.recipe, changes):
        require("torch", "trl")
        check_inputs(recipe)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        with Progress("train", unit="row", show=_is_main() and not args.quiet) as progress:
            progress.say("loading torch, transformers and TRL")
            quiet_libraries()
            from .run import Run, train

            if args.dry_run:
                with tempfile.TemporaryDirectory() as cache:
                    run = Run(recipe, Path(cache), progress)
                    sys.stdout.write(render("dry_run.txt.jinja", {"run": run}))
                return 0
            progress.say(_summary(train(recipe, args.out, progress)))
    if _is_main():
        sys.stdout.write(f"{args.out}\n")
    return 0


def check_inputs(recipe: Recipe) -> None:
    """Raise a UserError for a template, a file of rows or a base's folder that is not there, before any slow import."""
    from .rows import check_start

    recipe.dialect()
    for split in ("train", "validation"):
        check_start(getattr(recipe.data, split), split, recipe.data.format)
    if not is_hub_id(recipe.base):
        locate(recipe.base)


def _is_main() -> bool:
    """Whether this is the first of torchrun's processes, the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def _summary(metrics: dict[str, Any]) -> str:
    evaluation = f", held-out loss {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
    best = f" (step {metrics['best_step']})" if metrics.get("best_step") else ""
    return (
        f"{metrics['steps']:,} steps, {metrics['tokens']:,} tokens, "
        f"loss {metrics.get('train_loss', float('nan')):.4f}{evaluation}{best}, {metrics['seconds']:,.0f} s: "
        f"{metrics['step_seconds']:,.0f} in steps ({metrics['tokens_per_second']:,.0f} tokens/s), "
        f"{metrics['eval_seconds']:,.0f} in evaluations"
    )


def quiet_libraries() -> None:
    """Let libraries report errors only: what a person should know is said here."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("trl", "peft", "accelerate", "datasets", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
