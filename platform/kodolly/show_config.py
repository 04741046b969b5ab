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
    """Prints the options of all sections, or of those in `argv`, with the flags in `argv` applied."""
    classes = {cls.section: cls for cls in SECTIONS}
    names, flags = _split(argv)
    names = names or list(classes)
    if unknown := [name for name in names if name not in classes]:
        raise SettingsError(f"no section {unknown[0]!r}; there are {', '.join(classes)}")
    if {"-h", "--help"} & set(flags):
        sys.stdout.write(
            f"usage: kodolly config [{'|'.join(classes)}]... [--config FILE] [FLAGS]\n\n"
            "Show every option of these commands (default: of all), its value, where the value comes "
            "from\nand its environment variable. FLAGS are flags of the commands, and are applied.\n"
        )
        return 0
    for section in names:
        cls = classes[section]
        rows = resolve(cls, flags, prog=f"kodolly {section}", sections=SECTIONS).rows()
        sys.stdout.write(f"[{section}]\n")
        table = [(*row, environment_name(cls, row[0][2:].replace("-", "_"))) for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(f"  {'  '.join(cells).rstrip()}\n")
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Section names and flags. --config may stand anywhere, other flags only after the names."""
    parser = argparse.ArgumentParser(prog="kodolly config", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE")
    options, others = parser.parse_known_args(argv)
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), others))
    config = [] if options.config is None else ["--config", options.config]
    return names, [*config, *others[len(names) :]]
