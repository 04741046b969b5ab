"""`kodolly merge BASE ADAPTER --out DIR`: a base and its adapter become one model directory.

    kodolly merge EleutherAI/polyglot-ko-1.3b runs/first --out models/dolly-ko-1.3b
    kodolly merge base/ adapter/ --out merged --dtype bf16 --export int4

docs/merge.md says what is supported, checked and left.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from kodolly_adapters.errors import UserError

if TYPE_CHECKING:
    from .run import Result


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    chosen = _parser().parse_args(argv)
    from .places import adapter_directory, base_directory
    from .run import merge

    try:
        result = merge(
            base_directory(chosen.base),
            adapter_directory(chosen.adapter),
            Path(os.path.normpath(chosen.out)),
            dtype=chosen.dtype,
            export=chosen.export,
            check=chosen.verify,
            force=chosen.force,
            quiet=chosen.quiet,
        )
    except UserError as error:
        sys.stderr.write(f"kodolly merge: {error}\n")
        return 1
    except OSError as error:  # a full disk, most of all
        sys.stderr.write(f"kodolly merge: {error}. The same command goes on from here\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nkodolly merge: stopped. The same command goes on from here\n")
        return 130
    if not chosen.quiet:
        sys.stderr.write("".join(f"kodolly merge: {line}\n" for line in report(result)))
    sys.stdout.write(f"{result.out}\n")
    return 0


def report(result: Result) -> list[str]:
    """What happened, in lines for people."""
    lines = ["was finished already; --force makes it anew"] if result.again else []
    lines.append(f"{result.changed:,} tensors changed, {result.bytes / 1e6:,.0f} MB in all")
    if result.loss.elements:
        lines.append(
            f"rounding: its error (rms) is {result.loss.share:.2%} of what the adapter changed"
        )
    lines += [f"note: {note}" for note in result.notes]
    if result.verdict is None:
        lines.append("not verified (--no-verify)")
    else:
        lines += result.verdict.lines()
    return lines


def _parser() -> argparse.ArgumentParser:
    from .plan import Dtype, Export

    parser = argparse.ArgumentParser(
        prog="kodolly merge",
        description="Merge an adapter into its base, streamed: memory does not grow with the model.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a model directory with safetensors, or a hub name")
    add("adapter", metavar="ADAPTER", help="a PEFT adapter's folder, or a training run's")
    add("--out", metavar="DIR", required=True, help="the new model directory")
    add("--dtype", choices=get_args(Dtype), default="same",
        help="of the weights; same: each tensor keeps the base's")  # fmt: skip
    add("--export", choices=get_args(Export), default="none",
        help="quantise the linear layers, in the compressed-tensors format that vLLM reads")  # fmt: skip
    add("--no-verify", dest="verify", action="store_false",
        help="do not compare with PEFT's own merge")  # fmt: skip
    add("--force", action="store_true", help="replace what is in DIR")
    add("--quiet", action="store_true", help="no progress and no report")
    return parser
