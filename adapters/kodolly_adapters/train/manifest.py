"""run.json: everything that decided a run, and the guard that a folder holds one run only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OutputError

from . import checkpoints

NAME = "run.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of what computes, for the record."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time as records have it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def started(out: Path) -> str:
    """When the run in `out` began: of an unfinished one what its record says, else now."""
    known = (_read(out / NAME) or {}).get("started_at")
    return known if isinstance(known, str) else now()


def check_free(out: Path) -> None:
    """Raise OutputError when `out` holds a finished run, or something that is no run."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"--out {out}: this is no folder")
    known = _read(out / NAME)
    if known is None and any(not path.name.startswith(".") for path in out.iterdir()):
        raise OutputError(f"--out {out}: there is something else in it; choose a new folder")
    if known is not None and known.get("state") == "finished":
        raise OutputError(
            f"--out {out}: a finished run is in it. Choose a new folder, or remove this one"
        )


def release(out: Path) -> None:
    """Forget a run that was refused before its first step, so that the recipe put right can have `out`.

    Prepared rows stay in their hidden folder: they are found again by what decided them.
    """
    (out / NAME).unlink(missing_ok=True)
    for folder in (out / checkpoints.FOLDER, out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def check(out: Path, decisive: Mapping[str, Any]) -> None:
    """Raise OutputError when the unfinished run in `out` has other `decisive` values, naming them."""
    known = _read(out / NAME)
    if known is None:
        return
    changed = [
        f"{key}: {_short(old)} there, {_short(new)} now"
        for key, old, new in _differences(known.get("decisive", {}), decisive)
    ]
    if changed:
        shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if changed[5:] else "")
        raise OutputError(
            f"--out {out}: an unfinished run of another recipe is in it ({shown}). "
            "Give the same recipe to go on, or choose a new folder"
        )


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all, readable by everyone."""
    unfinished = path.with_name(f".{path.name}.tmp")
    text = json.dumps(values, ensure_ascii=False, indent=2, default=str) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(0o644)
    os.replace(unfinished, path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {error}") from None
    return known if isinstance(known, dict) else {}


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], place: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) of every value that is not the same. Both are compared as JSON has them."""
    plain: Mapping[str, Any] = json.loads(json.dumps(new, default=str))
    for key in sorted({*old, *plain}):
        here, there = old.get(key), plain.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{place}{key}.")
        elif here != there:
            yield f"{place}{key}", here, there


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
