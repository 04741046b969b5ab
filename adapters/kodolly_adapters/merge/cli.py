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
from functools import partial
from pathlib import Path
from typing import get_args

from kodolly_adapters.bases import locate
from kodolly_adapters.card import read_object
from kodolly_adapters.command import GOES_ON, run, say
from kodolly_adapters.errors import AdapterError

from .adapter_config import CONFIG
from .plan import Dtype


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
    adapter = _adapter_directory(options.adapter)
    base = _base_directory(options.base, adapter, quiet=options.quiet)
    if not options.quiet:
        say("merge", "loading torch")
    from .run import merge

    result = merge(
        base,
        adapter,
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
    adapter = _adapter_directory(options.adapter) if options.adapter else None
    base = _base_directory(options.base, adapter, quiet=options.quiet)
    merged = _base_directory(options.check, None, quiet=options.quiet)
    if not options.quiet:
        say("merge", "loading torch")
    from .check import compare, report

    comparison = compare(base, merged, adapter, quiet=options.quiet)
    if options.json:
        sys.stdout.write(json.dumps(asdict(comparison), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(report(comparison)) + "\n")
    return 1 if comparison.wrong else 0


def _base_directory(name: str, adapter: Path | None, *, quiet: bool) -> Path:
    """The folder of a base; a hub name is fetched, at the commit that `adapter` was trained on. Raises BaseError."""
    config = read_object(adapter / CONFIG) if adapter else {}
    same = config.get("base_model_name_or_path") == name
    revision = config.get("revision") if same else None
    say_it = (lambda _: None) if quiet else partial(say, "merge")
    return locate(name, str(revision) if revision else None, say=say_it).folder


def _adapter_directory(name: str) -> Path:
    """The folder with the adapter's config: ADAPTER itself, or adapter/ of a training run's folder."""
    path = Path(name)
    if not path.is_dir():
        raise AdapterError(f"ADAPTER {name}: there is no such directory")
    if not (path / CONFIG).is_file() and (path / "adapter" / CONFIG).is_file():
        return path / "adapter"
    if not (path / CONFIG).is_file():
        raise AdapterError(f"{path}: holds no {CONFIG}")
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
