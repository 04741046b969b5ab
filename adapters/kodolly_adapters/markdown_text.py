"""Writes text, names and tables so that Markdown shows them unchanged, for cards and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"[\d,.]+(?: \(\w+\))?")


def text(value: object) -> str:
    """The value as one line of Markdown without special meaning, also inside a table's cell."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]~])", r"\\\1", line)


def code(value: str) -> str:
    """A name in code type, or as plain text where code type could not hold it."""
    return text(value) if re.search(r"[`|\\\n]", value) else f"`{value}`"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; its cells are Markdown already, and columns of numbers are aligned to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    columns = zip(*cells, strict=True) if cells else ([] for _ in head)
    rule = [
        "---:" if column and all(map(NUMBER.fullmatch, column)) else "---" for column in columns
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *cells])
