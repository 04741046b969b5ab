"""Checkpoints that a kill cannot spoil: only those with a mark that fits their files count."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

FOLDER = "checkpoints"
MARK = "finished.json"  # {file: bytes} of everything the checkpoint holds
PREFIX = "checkpoint-"


def finish(checkpoint: Path) -> None:
    """Write the mark: the last act of saving."""
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARK
    }
    unfinished = checkpoint / f".{MARK}.tmp"
    unfinished.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    os.replace(unfinished, checkpoint / MARK)


def is_finished(checkpoint: Path) -> bool:
    """Whether the checkpoint has a mark and every file of it in full."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def finished(folder: Path) -> list[Path]:
    """The finished checkpoints of `folder`, oldest step first."""
    return [path for path in _all(folder) if is_finished(path)]


def sweep(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in _all(folder):
        if not is_finished(path):
            shutil.rmtree(path)


def rotate(folder: Path, keep: int, best: Path | None) -> None:
    """Remove the oldest finished checkpoints beyond `keep`, but never the newest nor `best`."""
    old = [path for path in finished(folder) if path != best]
    kept = max(1, keep - (len(old) != len(finished(folder))))
    for path in old[:-kept]:
        (path / MARK).unlink()  # first, so that a kill in between leaves nothing that counts
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The step after which it was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _all(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.glob(f"{PREFIX}*")
        if path.is_dir() and path.name.removeprefix(PREFIX).isdigit()
    ]
    return sorted(found, key=step_of)
