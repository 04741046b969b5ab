"""`kodolly convert SOURCE... --out DIR`: public Korean sets to Dolly rows.

    kodolly convert ko_dataset.json KorQuAD_v1.0_train.json KorQuAD_2.1_train_00.zip --out rows
    kodolly convert downloads/ --out rows --format parquet --rule duplicate=drop

docs/convert.md explains every flag, source and rule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from kodolly_adapters.errors import OptionError, UserError

from .cleaning.rules import all_rules, modes_of
from .cleaning.tokens import counter
from .options import Categories, Format, Options, PageContext, Roles, Splits
from .sources import SOURCES, named


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(argv)
    if chosen.list_rules or chosen.list_sources:
        sys.stdout.write(_rules() if chosen.list_rules else _sources())
        return 0
    if not chosen.sources or chosen.out is None:
        parser.error("give at least one SOURCE, and --out DIR")
    try:
        _convert(chosen)
    except OptionError as error:
        sys.stderr.write(f"kodolly convert: {error}\n")
        return 2
    except UserError as error:
        sys.stderr.write(f"kodolly convert: {error}\n")
        return 1
    except OSError as error:  # a full disk, most of all
        sys.stderr.write(f"kodolly convert: {error}. The same command goes on from here\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nkodolly convert: stopped. The same command goes on from here\n")
        return 130
    return 0


def _convert(chosen: argparse.Namespace) -> None:
    from kodolly_adapters.terminal import Progress

    from .run import convert

    source = None
    if chosen.source and (source := named(chosen.source)) is None:
        known = ", ".join(source.name for source in SOURCES)
        raise OptionError(f"--source {chosen.source}: there is no such source; there are {known}")
    options = _options(chosen)
    convert(
        chosen.sources,
        chosen.out,
        options,
        source=source,
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
        name, equals, mode = text.partition("=")
        if not equals:
            raise OptionError(f"--rule {text}: write NAME=MODE, for example duplicate=drop")
        rules[name] = mode
    try:
        modes_of(rules)
    except OptionError as error:
        raise OptionError(f"--rule: {error}") from None
    if not 0 <= chosen.validation < 1:
        raise OptionError(f"--validation {chosen.validation}: give a share from 0 to below 1")
    if not 0 < chosen.near_threshold <= 1:
        raise OptionError(
            f"--near-threshold {chosen.near_threshold}: give a share above 0, up to 1"
        )
    for name in ("history", "window_tokens", "min_chars", "max_chars"):
        if getattr(chosen, name) < 0:
            raise OptionError(f"--{name.replace('_', '-')}: must not be negative")
    if chosen.jobs is not None and chosen.jobs < 1:
        raise OptionError("--jobs: at least 1")
    if chosen.conversations and chosen.history:
        raise OptionError("--history: a dialogue of --conversations holds its history already")
    if chosen.tokenizer is not None:
        counter(chosen.tokenizer)
    names = set(Options.__dataclass_fields__) - {"rules"}
    return Options(rules=rules, **{name: getattr(chosen, name) for name in names})


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="kodolly convert", description="Convert public Korean sets to Dolly rows."
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="files, folders, zip, gz, zst, or - for stdin")
    add("--out", type=Path, metavar="DIR", help="a new folder for the rows and the data card")
    add("--source", metavar="NAME", help="what the files are, instead of recognising it")
    add("--list-sources", action="store_true", help="the sources there are, and end")
    add("--list-rules", action="store_true", help="the cleaning rules there are, and end")

    rows = parser.add_argument_group("rows").add_argument
    rows("--categories", choices=get_args(Categories), default=default.categories,
         help="study: open_qa for the study's four sources (Dolly's own rows keep theirs); "
              "dolly: by rule where the source tells")  # fmt: skip
    rows("--kovicuna-roles", choices=get_args(Roles), default=default.kovicuna_roles,
         help="who asks; as-written follows the study's table to the letter")  # fmt: skip
    rows("--history", type=int, default=default.history, metavar="N",
         help="put N earlier pairs of a conversation into the context")  # fmt: skip
    rows("--conversations", action="store_true", help="one row a dialogue, in `messages`")
    rows("--korquad2-context", choices=get_args(PageContext), default=default.korquad2_context,
         help="a window around the answer, the whole page, or the page's HTML")  # fmt: skip
    rows("--window-tokens", type=int, default=default.window_tokens, metavar="N",
         help="size of that window")  # fmt: skip
    rows("--tokenizer", type=Path, metavar="PATH",
         help="tokenizer.json, or a folder with one, that counts the window's tokens")  # fmt: skip
    rows("--provenance", action="store_true", help="write where each row came from beside it")

    clean = parser.add_argument_group("cleaning").add_argument
    clean("--rule", action="append", default=[], metavar="NAME=MODE", help="switch one rule")
    clean("--min-chars", type=int, default=default.min_chars, metavar="N", help="of a response")
    clean("--max-chars", type=int, default=default.max_chars, metavar="N", help="of a row")
    clean("--near-threshold", type=float, default=default.near_threshold, metavar="SHARE",
          help="of common words that makes near duplicates")  # fmt: skip
    clean("--keep-going", action="store_true",
          help="reject broken pieces of a file instead of stopping")  # fmt: skip

    out = parser.add_argument_group("output").add_argument
    out("--format", choices=get_args(Format), default=default.format)
    out("--validation", type=float, default=default.validation, metavar="SHARE",
        help="of the rows, chosen by hash")  # fmt: skip
    out("--splits", choices=get_args(Splits), default=default.splits,
        help="official: what a file's name says (dev, validation, test)")  # fmt: skip
    out("--restart", action="store_true", help="throw an unfinished run in DIR away")
    out("--force", action="store_true", help="replace finished rows in DIR")

    how = parser.add_argument_group("how").add_argument
    how("--jobs", type=int, metavar="N", help="processes; default: one a core")
    how("--engine", choices=("local", "ray"), default="local", help="ray: many machines")
    how("--quiet", action="store_true", help="no progress")
    return parser


def _rules() -> str:
    rules = all_rules().values()
    lines = [f"{r.name:<16} {'|'.join(r.modes):<20} {r.default:<6} {r.what}" for r in rules]
    return "\n".join([f"{'rule':<16} {'modes':<20} {'does':<6}", *lines, ""])


def _sources() -> str:
    lines = [f"{s.name:<18} {s.licence.name:<34} {s.title}" for s in SOURCES]
    return "\n".join([f"{'source':<18} {'licence':<34} what", *lines, ""])
