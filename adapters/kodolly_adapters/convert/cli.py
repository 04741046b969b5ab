"""`kodolly convert SOURCE... --out DIR`: public Korean sets to Dolly rows.

    kodolly convert ko_dataset.json KorQuAD_v1.0_train.json KorQuAD_2.1_train_00.zip --out rows
    kodolly convert downloads/ --out rows --format parquet --rule duplicate=drop

docs/convert.md explains every flag, source and rule.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from kodolly_adapters import command
from kodolly_adapters.errors import OptionError

from .cleaning.rules import all_rules, modes_of
from .cleaning.tokens import counter
from .options import Options
from .sources import BY_NAME, SOURCES


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    flags = parser.parse_args(argv)
    if flags.list_rules or flags.list_sources:
        sys.stdout.write(_rules() if flags.list_rules else _sources())
        return 0
    if not flags.sources or flags.out is None:
        parser.error("give at least one SOURCE, and --out DIR")
    return command.run("convert", lambda: _convert(flags), repeat=command.GOES_ON)


def _convert(flags: argparse.Namespace) -> None:
    from kodolly_adapters.terminal import Progress

    from .run import convert

    if flags.source and flags.source not in BY_NAME:
        names = ", ".join(BY_NAME)
        raise OptionError(f"--source {flags.source}: there is no such source; there are {names}")
    convert(
        flags.sources,
        flags.out,
        _options(flags),
        source=BY_NAME[flags.source] if flags.source else None,
        jobs=flags.jobs,
        engine=flags.engine,
        restart=flags.restart,
        force=flags.force,
        progress=Progress("convert", show=not flags.quiet),
    )
    sys.stdout.write(f"{flags.out}\n")


def _options(flags: argparse.Namespace) -> Options:
    """The options that the flags set. Raises OptionError naming the wrong flag."""
    rules: dict[str, str] = {}
    for text in flags.rule:
        name, equals, rules[name] = text.partition("=")
        if not equals:
            raise OptionError(f"--rule {text}: write NAME=MODE, for example duplicate=drop")
    try:
        modes_of(rules)
    except OptionError as error:
        raise OptionError(f"--rule: {error}") from None
    for flag, is_wrong, advice in (
        ("validation", not 0 <= flags.validation < 1, "give a share from 0 to below 1"),
        ("near_threshold", not 0 < flags.near_threshold <= 1, "give a share above 0, up to 1"),
        ("window_tokens", flags.window_tokens < 0, "must not be negative"),
        ("min_chars", flags.min_chars < 0, "must not be negative"),
        ("max_chars", flags.max_chars < 0, "must not be negative"),
        ("jobs", flags.jobs is not None and flags.jobs < 1, "must be at least 1"),
        ("history", flags.history < 0, "must not be negative"),
        ("history", flags.history and flags.conversations, "leave it out with --conversations"),
    ):
        if is_wrong:
            value = getattr(flags, flag)
            raise OptionError(f"--{flag.replace('_', '-')} {value}: {advice}")
    counter(flags.tokenizer)  # raises OptionError if it cannot be read
    values = {one.name: getattr(flags, one.name) for one in fields(Options) if one.name != "rules"}
    return Options(rules=rules, **values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly convert", description="Convert public Korean data sets to Dolly rows."
    )
    add = parser.add_argument
    flags = tomllib.loads(Path(__file__).with_name("flags.toml").read_text(encoding="utf-8"))
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="files, folders, zips, tars (also packed with gz, bz2, xz, zst), or - for standard input",
    )
    add("--out", type=Path, metavar="DIR", help="a new folder for the rows and the data card")
    add(
        "--source",
        metavar="NAME",
        help="the data set that all files belong to; default: recognise it by its first record",
    )
    add("--list-sources", action="store_true", help="print the sources and exit")
    add("--list-rules", action="store_true", help="print the cleaning rules and exit")
    _add_flags(parser.add_argument_group("rows").add_argument, flags["rows"])
    add = parser.add_argument_group("cleaning").add_argument
    add("--rule", action="append", default=[], metavar="NAME=MODE", help="set one rule's mode")
    _add_flags(add, flags["cleaning"])
    add = parser.add_argument_group("output").add_argument
    _add_flags(add, flags["output"])
    add("--restart", action="store_true", help="delete an unfinished run in DIR first")
    add("--force", action="store_true", help="replace finished rows in DIR")
    add = parser.add_argument_group("execution").add_argument
    add("--jobs", type=int, metavar="N", help="number of processes; default: one per core")
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: processes on this machine; ray: a Ray cluster",
    )
    add("--quiet", action="store_true", help="print no progress")
    return parser


def _add_flags(add: Callable[..., Any], flags: Mapping[str, str]) -> None:
    """Add a flag for each field of Options named in `flags`, which maps names to help texts."""
    kinds = get_type_hints(Options)
    for name, text in flags.items():
        default = getattr(Options(), name)
        how: dict[str, Any] = {"default": default, "help": text}
        if isinstance(default, bool):
            how["action"] = "store_true"
        elif isinstance(default, str):
            how["choices"] = get_args(kinds[name])
        elif default is None:
            how |= {"type": Path, "metavar": "PATH"}
        else:
            how |= {"type": type(default), "metavar": "N" if kinds[name] is int else "SHARE"}
        add("--" + name.replace("_", "-"), **how)


def _rules() -> str:
    rules = all_rules().values()
    lines = [f"{r.name:<16} {'|'.join(r.modes):<20} {r.default:<8} {r.what}" for r in rules]
    return "\n".join([f"{'rule':<16} {'modes':<20} {'default':<8} what", *lines, ""])


def _sources() -> str:
    lines = [f"{s.name:<18} {s.licence.name:<34} {s.title}" for s in SOURCES]
    return "\n".join([f"{'source':<18} {'licence':<34} what", *lines, ""])
