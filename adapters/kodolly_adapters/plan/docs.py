"""Keeps the printed plans in docs/plan.md true: python -m kodolly_adapters.plan.docs docs/plan.md

A plan stands in a code block after a line <!-- plan NAME -->; the block is printed anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from kodolly_adapters.train.recipe import load

from .plan import Asked, plan
from .report import text

BLOCK = re.compile(r"(<!-- plan (\S+) -->\n```text\n).*?(```\n)", re.DOTALL)


def printed(name: str) -> str:
    """What `kodolly plan NAME` prints where the recipe's rows are not at hand."""
    return text(plan(load(name), Asked(measure=False)))


def refresh(document: str) -> str:
    """The document with every plan in it printed anew."""
    return BLOCK.sub(lambda found: found[1] + printed(found[2]) + found[3], document)


def main(paths: list[str]) -> int:
    """Rewrite the documents in place; returns the exit status."""
    for path in map(Path, paths):
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
