"""The bytes: DIR.part beside DIR, where a merge grows file by file until it is whole.

Its merge.json names the finished files, so that a merge that was killed goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OutputError
from kodolly_adapters.files import locked, read_json, write_json
from kodolly_adapters.safetensors_io import INDEX, Reader
from kodolly_adapters.terminal import Progress

from .arithmetic import MergedRows, RoundingLoss, one_thread, pieces
from .plan import Plan, Shard

MANIFEST = "merge.json"
FORMAT = 1
SPARE = 64 << 20  # bytes of disk beside the weights


def read_manifest(directory: Path) -> dict[str, Any]:
    """merge.json in `directory`; {} where there is none of this format."""
    manifest = read_json(directory / MANIFEST) or {}
    return manifest if manifest.get("format") == FORMAT else {}


@contextmanager
def open_unfinished(out: Path, job: str, *, force: bool) -> Iterator[Path]:
    """OUT.part for this process alone, with a manifest of `job`; what another merge left there is removed.

    Raises OutputError where something else is in the way.
    """
    directory, replaced = _part(out), _replaced(out)
    if out.is_file() or (force and replaced.exists()):
        raise OutputError(f"{out if out.is_file() else replaced}: is in the way")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise OutputError(f"{out}: is not empty; choose another --out, or give --force")
    with ExitStack() as lock:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{directory}: {error}") from None
        try:
            lock.enter_context(locked(directory, wait=False))
        except OSError:
            raise OutputError(f"{directory}: another merge is writing it") from None
        manifest = read_manifest(directory)
        if manifest.get("job") != job:
            _remove_files(directory, ours=bool(manifest) or force)
            write_json(directory / MANIFEST, {"format": FORMAT, "job": job, "shards": {}})
        yield directory


def _remove_files(directory: Path, *, ours: bool) -> None:
    for path in directory.iterdir():
        if not ours and path.name != MANIFEST:
            raise OutputError(
                f"{directory}: holds something else than an unfinished merge; move it away"
            )
        if path.is_dir():
            raise OutputError(f"{path}: is not of a merge; move it away")
        path.unlink()


def write_weights(
    plan: Plan, directory: Path, manifest: dict[str, Any], progress: Progress
) -> None:
    """Write every file that an earlier run has not finished, and the index; `progress` counts bytes.

    Raises OutputError naming the file, and AdapterError where values do not fit the dtype.
    """
    _check_space(plan, directory)
    with one_thread(), Reader() as reader:
        for shard in plan.shards:
            path = directory / shard.file
            size = len(shard.head) + shard.size
            if shard.file in manifest["shards"] and path.is_file() and path.stat().st_size == size:
                progress.add(shard.size)
                continue
            try:
                loss = _write_shard(shard, path, reader, progress)
            except OSError as error:
                raise OutputError(f"{path}: {error}. The same command goes on from here") from None
            manifest["shards"][shard.file] = {"bytes": size, "loss": asdict(loss)}
            write_json(directory / MANIFEST, manifest)
    if plan.base.indexed:
        files = {output.name: shard.file for shard in plan.shards for output in shard.outputs}
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(files.items()))}
        write_json(directory / INDEX, index)


def _write_shard(shard: Shard, path: Path, reader: Reader, progress: Progress) -> RoundingLoss:
    """Write the file `path`, tensor by tensor and piece by piece, under a temporary name until it is whole."""
    import torch

    unfinished = path.with_name(f"{path.name}.part")
    total = RoundingLoss()
    with unfinished.open("wb") as file:
        file.write(shard.head)
        for output in shard.outputs:
            rows = MergedRows(output, reader)
            for first, last in pieces(output.target.rows, output.target.width):
                stored = rows.stored(first, last)
                block = memoryview(stored.view(torch.uint8).flatten().numpy())
                file.write(block)
                progress.add(len(block))
            total.add(rows.loss)
        file.flush()
        os.fsync(file.fileno())
    unfinished.chmod(0o644)
    unfinished.replace(path)
    return total


def publish(directory: Path, out: Path, *, force: bool) -> None:
    """Give the directory its final name. Raises OutputError; what was there stays then."""
    replaced = _replaced(out)
    try:
        for path in directory.iterdir():
            path.chmod(0o644)
        if force and out.exists() and any(out.iterdir()):
            out.rename(replaced)
        directory.rename(out)
    except OSError as error:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise OutputError(f"{out}: {error}; the model is in {directory}") from None
    if force and replaced.exists():
        shutil.rmtree(replaced)


def _check_space(plan: Plan, directory: Path) -> None:
    written = sum(path.stat().st_size for path in directory.iterdir())
    need = plan.size + SPARE - written
    free = shutil.disk_usage(directory).free
    if need > free:
        raise OutputError(
            f"{directory}: needs {need / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free"
        )


def total_loss(manifest: dict[str, Any]) -> RoundingLoss:
    """The rounding loss of all finished files."""
    total = RoundingLoss()
    for _, entry in sorted(manifest["shards"].items()):
        total.add(RoundingLoss(**entry["loss"]))
    return total


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _replaced(out: Path) -> Path:
    return out.with_name(f"{out.name}.old")
