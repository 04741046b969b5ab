"""`kodolly config [SECTION]`: every option, its value and where it came from."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

from kodolly.errors import SettingsError
from kodolly.options import environment_name, resolve
from kodolly.settings import SECTIONS


def main(argv: Sequence[str]) -> int:
    """Prints the options of every section, or of the named ones, as these flags would set them."""
    classes = {cls.section: cls for cls in SECTIONS}
    wanted, rest = _split(argv)
    wanted = wanted or list(classes)
    if unknown := [w for w in wanted if w not in classes]:
        raise SettingsError(f"no section {unknown[0]!r}; there are {', '.join(classes)}")
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(
            f"usage: kodolly config [{'|'.join(classes)}]... [--config FILE] [FLAGS]\n"
        )
        return 0
    for section in wanted:
        cls = classes[section]
        rows = resolve(cls, rest, prog=f"kodolly {section}", known=SECTIONS).rows()
        sys.stdout.write(f"[{section}]\n")
        table = [(*row, environment_name(cls, row[0][2:].replace("-", "_"))) for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(f"  {'  '.join(cells).rstrip()}\n")
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The named sections, and the flags: --config wherever it stands, others after the sections."""
    parser = argparse.ArgumentParser(prog="kodolly config", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE")
    known, others = parser.parse_known_args(argv)
    wanted = list(itertools.takewhile(lambda word: not word.startswith("-"), others))
    chosen = [] if known.config is None else ["--config", known.config]
    return wanted, [*chosen, *others[len(wanted) :]]
