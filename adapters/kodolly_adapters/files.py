"""Files and folders that are either complete or absent: atomic writes, locks, hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` so that readers see the old file or the new one, also after a power cut. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o644)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; of values that JSON does not know, their str()."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n"
    write_bytes(path, text.encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where the file is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex; the file is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on `path`, a folder or a file (created if missing), until the block ends.

    The kernel frees the lock if the process dies. Raises BlockingIOError where another process holds it and `wait`
    is false, OSError where the file cannot be created.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT
    file = os.open(path, flags, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(file)


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces `directory` if the block ends without an error, else it is removed.

    The two hidden folders that a killed process may have left are removed first, so the caller must hold a lock. All
    files are made readable by every user and flushed to disk before the folder gets its name. Raises OSError.
    """
    fresh = directory.with_name(f".{directory.name}.partial")
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():  # killed between the two renames
        old.rename(directory)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        _publish_modes(fresh)
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _publish_modes(directory: Path) -> None:
    """Let every user read the folder, for workers that run as another one: safetensors writes files as 0600."""
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
