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
    chosen = parser.parse_args(argv)
    if chosen.list_rules or chosen.list_sources:
        sys.stdout.write(_rules() if chosen.list_rules else _sources())
        return 0
    if not chosen.sources or chosen.out is None:
        parser.error("give at least one SOURCE, and --out DIR")
    return command.run("convert", lambda: _convert(chosen), repeat=command.GOES_ON)


def _convert(chosen: argparse.Namespace) -> None:
    from kodolly_adapters.terminal import Progress

    from .run import convert

    if chosen.source and chosen.source not in BY_NAME:
        names = ", ".join(BY_NAME)
        raise OptionError(f"--source {chosen.source}: there is no such source; there are {names}")
    convert(
        chosen.sources,
        chosen.out,
        _options(chosen),
        source=BY_NAME[chosen.source] if chosen.source else None,
        jobs=chosen.jobs,
        engine=chosen.engine,
        restart=chosen.restart,
        force=chosen.force,
        progress=Progress("convert", show=not chosen.quiet),
    )
    sys.stdout.write(f"{chosen.out}\n")


def _options(chosen: argparse.Namespace) -> Options:
    """The chosen flags. Raises OptionError naming the flag at fault."""
    rules: dict[str, str] = {}
    for text in chosen.rule:
        name, equals, rules[name] = text.partition("=")
        if not equals:
            raise OptionError(f"--rule {text}: write NAME=MODE, for example duplicate=drop")
    try:
        modes_of(rules)
    except OptionError as error:
        raise OptionError(f"--rule: {error}") from None
    for flag, is_wrong, advice in (
        ("validation", not 0 <= chosen.validation < 1, "give a share from 0 to below 1"),
        ("near_threshold", not 0 < chosen.near_threshold <= 1, "give a share above 0, up to 1"),
        ("window_tokens", chosen.window_tokens < 0, "must not be negative"),
        ("min_chars", chosen.min_chars < 0, "must not be negative"),
        ("max_chars", chosen.max_chars < 0, "must not be negative"),
        ("jobs", chosen.jobs is not None and chosen.jobs < 1, "at least 1"),
        ("history", chosen.history < 0, "must not be negative"),
        ("history", chosen.history and chosen.conversations, "--conversations holds it already"),
    ):
        if is_wrong:
            value = getattr(chosen, flag)
            raise OptionError(f"--{flag.replace('_', '-')} {value}: {advice}")
    counter(chosen.tokenizer)  # raises where it cannot be read
    flags = {one.name: getattr(chosen, one.name) for one in fields(Options) if one.name != "rules"}
    return Options(rules=rules, **flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly convert", description="Convert public Korean sets to Dolly rows."
    )
    add = parser.add_argument
    flags = tomllib.loads(Path(__file__).with_name("flags.toml").read_text(encoding="utf-8"))
    add("sources", nargs="*", metavar="SOURCE", help="files, folders, zip, gz, zst, or - for stdin")
    add("--out", type=Path, metavar="DIR", help="a new folder for the rows and the data card")
    add("--source", metavar="NAME", help="what the files are, instead of recognising it")
    add("--list-sources", action="store_true", help="the sources there are, and end")
    add("--list-rules", action="store_true", help="the cleaning rules there are, and end")
    _add_flags(parser.add_argument_group("rows").add_argument, flags["rows"])
    add = parser.add_argument_group("cleaning").add_argument
    add("--rule", action="append", default=[], metavar="NAME=MODE", help="switch one rule")
    _add_flags(add, flags["cleaning"])
    add = parser.add_argument_group("output").add_argument
    _add_flags(add, flags["output"])
    add("--restart", action="store_true", help="throw an unfinished run in DIR away")
    add("--force", action="store_true", help="replace finished rows in DIR")
    add = parser.add_argument_group("how").add_argument
    add("--jobs", type=int, metavar="N", help="processes; default: one a core")
    add("--engine", choices=("local", "ray"), default="local", help="ray: many machines")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _add_flags(add: Callable[..., Any], flags: Mapping[str, str]) -> None:
    """A flag for each field of Options named in `flags`, with its help."""
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
    lines = [f"{r.name:<16} {'|'.join(r.modes):<20} {r.default:<6} {r.what}" for r in rules]
    return "\n".join([f"{'rule':<16} {'modes':<20} {'does':<6}", *lines, ""])


def _sources() -> str:
    lines = [f"{s.name:<18} {s.licence.name:<34} {s.title}" for s in SOURCES]
    return "\n".join([f"{'source':<18} {'licence':<34} what", *lines, ""])
