"""How many rows a recipe's own files hold, and how long they are, where the files are here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE = 5000  # rows of each file whose characters are counted


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of the files, and the mean characters of the sampled ones without the template's keys."""

    rows: int
    characters: float


def measured(paths: Sequence[str]) -> Measured | None:
    """None unless all `paths` are JSON Lines files that can be read here."""
    rows = sampled = characters = 0
    for path in map(Path, paths):
        if path.suffix != ".jsonl" or not path.is_file():
            return None
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                if number < SAMPLE and (size := _characters(line)):
                    sampled += 1
                    characters += size
                rows += bool(line.strip())
    return Measured(rows, characters / sampled) if sampled else None


def _characters(line: bytes) -> int:
    """Characters of the texts that a template writes; 0 for a line that is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0
    if not isinstance(row, dict):
        return 0
    parts: list[Any] = [row.get(key) for key in ("instruction", "context", "response", "text")]
    for message in row.get("messages") or []:
        if isinstance(message, dict):
            parts += [message.get("content"), message.get("context")]
    return sum(len(part) for part in parts if isinstance(part, str))
