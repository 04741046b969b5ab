"""What became of every row that was read: nothing vanishes without a count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MEANINGS = {
    "kept": "whole",
    "context-cut": "the end of the context cut off",
    "turns-dropped": "the oldest exchanges dropped",
    "instruction-cut": "the middle of the instruction cut out",
    "split": "running text in several sequences",
    "too-long": "refused: does not fit even so",
    "empty": "refused: a question or an answer without text",
}


class Count(msgspec.Struct):
    """Rows of one fate. `tokens` before anything was cut (0 for empty rows), `kept` after; `learned` of those."""

    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    kept: int = 0
    learned: int = 0

    def add(self, sequences: int, tokens: int, kept: int, learned: int) -> None:
        """One more row."""
        self.rows += 1
        self.sequences += sequences
        self.tokens += tokens
        self.kept += kept
        self.learned += learned


Counts = dict[str, Count]  # by the names in MEANINGS; only what happened


class Fates(msgspec.Struct):
    """Counts of the rows for training and of those for validation. `repeat` is not counted in."""

    train: Counts = {}
    validation: Counts = {}

    def count(self, split: str, fate: str) -> Count:
        """The count to add to. `split` is "train" or "validation"."""
        counts: Counts = getattr(self, split)
        return counts.setdefault(fate, Count())

    def total(self, split: str) -> Count:
        """All rows of a split."""
        total = Count()
        for count in getattr(self, split).values():
            for field in Count.__struct_fields__:
                setattr(total, field, getattr(total, field) + getattr(count, field))
        return total

    @property
    def rows(self) -> int:
        """Rows read."""
        return self.total("train").rows + self.total("validation").rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON: {"train": {"kept": {"rows": ...}}, "validation": {...}}."""
        ordered = {split: _ordered(getattr(self, split)) for split in ("train", "validation")}
        return dict(msgspec.to_builtins(ordered))

    def table(self) -> str:
        """Lines for people, a fate each, without a newline at the end."""
        lines = [_line("", "fate", ("rows", "tokens", "kept", "learned"), "")]
        for split in ("train", "validation"):
            for fate, count in _ordered(getattr(self, split)).items():
                figures = (count.rows, count.tokens, count.kept, count.learned)
                shown = tuple(f"{figure:,}" for figure in figures)
                lines.append(_line(split, fate, shown, MEANINGS[fate]))
        return "\n".join(line.rstrip() for line in lines)


def _ordered(counts: Mapping[str, Count]) -> Counts:
    return {fate: counts[fate] for fate in MEANINGS if fate in counts}


def _line(split: str, fate: str, figures: tuple[str, ...], meaning: str) -> str:
    return f"{split:<10}  {fate:<15}" + "".join(f"{f:>15}" for f in figures) + f"  {meaning}"
