"""`kodolly merge BASE ADAPTER --out DIR`: a base and its adapter become one model directory.

    kodolly merge EleutherAI/polyglot-ko-1.3b runs/first --out models/dolly-ko-1.3b
    kodolly merge base/ adapter/ --check merged/      is it exactly that adapter's merge? what changed?

docs/merge.md says what is supported and checked, and what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from kodolly_adapters.command import GOES_ON, run, say
from kodolly_adapters.errors import AdapterError, BaseError, first_line

from .adapter_config import CONFIG
from .plan import Dtype

# Files of a model that are fetched from the hub.
FETCHED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "LICENSE*"]


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.adapter is None and not options.check:
        parser.error("ADAPTER is needed to merge")
    if options.check:
        return run("merge", lambda: _check(options))
    return run("merge", lambda: _merge(options), repeat=GOES_ON)


def _merge(options: argparse.Namespace) -> None:
    from .run import merge

    result = merge(
        _base_directory(options.base),
        _adapter_directory(options.adapter),
        Path(os.path.normpath(options.out)),
        dtype=options.dtype,
        check=options.verify,
        force=options.force,
        quiet=options.quiet,
    )
    lines = ["was finished already; --force makes it anew"] if result.already_there else []
    lines.append(f"{result.changed:,} tensors changed, {result.bytes / 1e6:,.0f} MB in all")
    if result.loss.elements:
        share = result.loss.share
        lines.append(f"rounding: its error (rms) is {share:.2%} of what the adapter changed")
    lines += [f"note: {note}" for note in result.notes]
    lines += result.verdict.lines() if result.verdict else ["not verified (--no-verify)"]
    for line in [] if options.quiet else lines:
        say("merge", line)
    sys.stdout.write(f"{result.out}\n")


def _check(options: argparse.Namespace) -> int:
    from .check import compare, report

    comparison = compare(
        _base_directory(options.base),
        _base_directory(options.check),
        _adapter_directory(options.adapter) if options.adapter else None,
        quiet=options.quiet,
    )
    if options.json:
        sys.stdout.write(json.dumps(asdict(comparison), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(report(comparison)) + "\n")
    return 1 if comparison.wrong else 0


def _base_directory(name: str) -> Path:
    """The folder of a base; a hub name is taken from the cache, or fetched. Raises BaseError."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BaseError(f"BASE {name}: there is no such directory")
    from huggingface_hub import snapshot_download

    reason = ""
    for from_cache in (True, False):
        try:
            folder = snapshot_download(name, allow_patterns=FETCHED, local_files_only=from_cache)
            return Path(folder)
        except Exception as error:  # noqa: BLE001 - its kinds of error change
            reason = first_line(error)
    raise BaseError(f"BASE {name}: no such directory, and it cannot be fetched: {reason}")


def _adapter_directory(name: str) -> Path:
    """The folder with the adapter's config: ADAPTER itself, or adapter/ of a training run's folder."""
    path = Path(name)
    if not path.is_dir():
        raise AdapterError(f"ADAPTER {name}: there is no such directory")
    if not (path / CONFIG).is_file() and (path / "adapter" / CONFIG).is_file():
        return path / "adapter"
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly merge",
        description="Merge an adapter into its base. The weights are streamed, so the memory needed does not grow with the model.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a model directory with safetensors, or a hub name")
    add("adapter", metavar="ADAPTER", nargs="?",
        help="folder of a PEFT adapter or of a training run; may be left out with --check")  # fmt: skip
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", metavar="DIR", help="the new model directory")
    action.add_argument("--check", metavar="MERGED",
        help="write nothing; compare MERGED with what the merge of ADAPTER into BASE gives, and report what differs")  # fmt: skip
    add("--dtype", choices=get_args(Dtype), default="same",
        help="data type of the merged weights; same: each tensor keeps the dtype it has in BASE")  # fmt: skip
    add("--no-verify", dest="verify", action="store_false",
        help="do not compare with PEFT's own merge")  # fmt: skip
    add("--force", action="store_true", help="replace what is in DIR")
    add("--json", action="store_true", help="with --check: print the report as one line of JSON")
    add("--quiet", action="store_true", help="no progress and no report")
    return parser
