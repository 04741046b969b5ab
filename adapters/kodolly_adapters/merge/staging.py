"""Where a merge grows: DIR.part beside DIR, with a manifest of the finished files; renamed when all is done."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kodolly_adapters.errors import OutputError

from .arithmetic import Loss
from .plan import Plan

MANIFEST = "merge.json"
FORMAT = 1


def job(plan: Plan) -> str:
    """What makes two merges the same: inputs by size and time of change, headers, and every output.

    The weights themselves are not hashed: that would read a large base twice.
    """
    digest = hashlib.sha256()
    for file in plan.base.files:
        stat = (plan.base.directory / file).stat()
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for path in sorted(plan.adapter.glob("adapter_*")):
        digest.update(sha256(path).encode())
    for shard in plan.shards:
        digest.update(shard.header()[0])
    return digest.hexdigest()


class Staging:
    """DIR.part, held by this process alone until it becomes DIR."""

    def __init__(self, out: Path, job_key: str, *, force: bool = False) -> None:
        """Raises OutputError where something else is in the way."""
        self.out = out
        self.place = out.with_name(f"{out.name}.part")
        self._force = force
        self._lock = -1
        self.manifest: dict[str, Any] = {"format": FORMAT, "job": job_key, "shards": {}}

    def __enter__(self) -> Self:
        self._make_place()
        self._take_lock()
        old = read_manifest(self.place)
        if old is not None and old.get("job") == self.manifest["job"]:
            self.manifest = old
        elif old is not None or self._force:
            self._empty()
        elif any(path.name != MANIFEST for path in self.place.iterdir()):
            raise OutputError(
                f"{self.place}: holds something else than an unfinished merge; move it away"
            )
        self.save()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def done(self, file: str, size: int) -> bool:
        """Whether `file` was finished by an earlier run, and is still there in its `size` (bytes)."""
        path = self.place / file
        return file in self.manifest["shards"] and path.is_file() and path.stat().st_size == size

    def finished(self, file: str, size: int, loss: Loss) -> None:
        """`file` has its final name."""
        self.manifest["shards"][file] = {"bytes": size, "loss": asdict(loss)}
        self.save()

    def loss(self) -> Loss:
        """The rounding loss of all finished files."""
        total = Loss()
        for _, entry in sorted(self.manifest["shards"].items()):
            total.add(Loss(**entry["loss"]))
        return total

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.place / MANIFEST, self.manifest)

    def publish(self) -> None:
        """Give the directory its final name. Raises OutputError; what was there stays then."""
        old = self.out.with_name(f"{self.out.name}.old")
        try:
            for path in self.place.iterdir():
                path.chmod(0o644)
            if self._force and self.out.exists() and any(self.out.iterdir()):
                self.out.rename(old)
            self.place.rename(self.out)
        except OSError as error:
            if old.exists() and not self.out.exists():
                old.rename(self.out)
            raise OutputError(f"{self.out}: {error}; the model is in {self.place}") from None
        if old.exists() and self._force:
            shutil.rmtree(old)

    def _make_place(self) -> None:
        old = self.out.with_name(f"{self.out.name}.old")
        if self.out.is_file() or (old.exists() and self._force):
            raise OutputError(f"{self.out if self.out.is_file() else old}: is in the way")
        if self.out.is_dir() and any(self.out.iterdir()) and not self._force:
            raise OutputError(f"{self.out}: is not empty; choose another --out, or give --force")
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.place}: {error}") from None

    def _take_lock(self) -> None:
        self._lock = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{self.place}: another merge is writing it") from None

    def _empty(self) -> None:
        for path in self.place.iterdir():
            if path.is_dir():
                raise OutputError(f"{path}: is not of a merge; move it away")
            path.unlink()


def sha256(path: Path) -> str:
    """The hash of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest in `directory`; None where there is none that can be read."""
    try:
        found = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return found if found["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` so that the file is whole at every moment."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o644)
    new.replace(path)
