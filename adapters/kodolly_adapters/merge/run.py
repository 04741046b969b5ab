"""One merge from its plan to a directory that exists only when it is whole and verified.

Until then it grows in DIR.part, file by file. merge.json there names the finished files, so that a merge that was
killed goes on from them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.command import GOES_ON
from kodolly_adapters.errors import OutputError
from kodolly_adapters.files import locked, read_json, sha256, write_json
from kodolly_adapters.safetensors_io import INDEX, Reader
from kodolly_adapters.terminal import Progress

from .arithmetic import MergedRows, RoundingLoss, one_thread, pieces
from .model_files import write_files
from .plan import Dtype, Output, Plan, make_plan
from .verify import Verdict, verify

MANIFEST = "merge.json"
FORMAT = 1
SPARE = 64 << 20  # bytes of disk beside the weights


@dataclass(frozen=True, slots=True)
class Result:
    """A finished merge, for the report."""

    out: Path
    bytes: int
    changed: int  # tensors
    loss: RoundingLoss
    verdict: Verdict | None  # None: --no-verify
    notes: tuple[str, ...]
    already_there: bool  # finished by an earlier run


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: Dtype = "same",
    check: bool = True,
    force: bool = False,
    quiet: bool = False,
) -> Result:
    """Merge `adapter` into `base` as the model directory `out`; `check` compares it with PEFT's merge.

    A run that was ended repeats nothing it had finished and gives the same bytes. Raises UserError's
    kinds: BaseError, AdapterError for what does not fit, OutputError for what is in the way.
    """
    plan = make_plan(base, adapter, dtype)
    job = _job_key(plan)
    manifest = _read_manifest(out)
    already_there = not force and manifest.get("job") == job and manifest.get("finished", False)
    if not already_there:
        with _unfinished(out, job, force=force) as (directory, manifest):
            with Progress("merge", plan.size, show=not quiet) as progress:
                _write_weights(plan, directory, manifest, progress)
                notes = write_files(plan, directory, out.name)
                verdict = None
                if check:
                    progress.say("comparing with PEFT's own merge, tensors and greedy answers")
                    verdict = verify(plan, directory, job)
            manifest |= {
                "finished": True,
                "dtype": plan.dtype,
                "rounding_loss": _total_loss(manifest).share,
                "verified": asdict(verdict) if verdict else None,
                "notes": notes,
            }
            write_json(directory / MANIFEST, manifest)
            _publish(directory, out, force=force)
    return Result(
        out=out,
        bytes=plan.size,
        changed=sum(output.change is not None for output in plan.outputs),
        loss=_total_loss(manifest),
        verdict=Verdict(**manifest["verified"]) if manifest["verified"] else None,
        notes=tuple(manifest["notes"]),
        already_there=already_there,
    )


def _job_key(plan: Plan) -> str:
    """A hash of what makes two merges the same: inputs by size and time of change, and all headers.

    The weights themselves are not hashed: that would read a large base twice.
    """
    digest = hashlib.sha256()
    for file in plan.base.files:
        stat = (plan.base.directory / file).stat()
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for path in sorted(plan.adapter.glob("adapter_*")):
        digest.update(sha256(path).encode())
    for head in plan.heads.values():
        digest.update(head)
    return digest.hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    """merge.json in `directory`; {} where there is none of this format."""
    manifest = read_json(directory / MANIFEST) or {}
    return manifest if manifest.get("format") == FORMAT else {}


@contextmanager
def _unfinished(out: Path, job: str, *, force: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """OUT.part for this process alone and its manifest for `job`; what another merge left there is removed.

    Raises OutputError where something else is in the way, OSError where there can be no such folder.
    """
    directory, replaced = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.old")
    if out.is_file() or (force and replaced.exists()):
        raise OutputError(f"{out if out.is_file() else replaced}: is in the way")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise OutputError(f"{out}: is not empty; choose another --out, or give --force")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory, wait=False):
            manifest = _read_manifest(directory)
            if manifest.get("job") != job:
                for path in directory.iterdir():
                    if path.is_dir() or not (manifest or force or path.name == MANIFEST):
                        raise OutputError(f"{path}: is not of an unfinished merge; move it away")
                    path.unlink()
                manifest = {"format": FORMAT, "job": job, "shards": {}}
                write_json(directory / MANIFEST, manifest)
            yield directory, manifest
    except BlockingIOError:
        raise OutputError(f"{directory}: another merge is writing it") from None


def _write_weights(
    plan: Plan, directory: Path, manifest: dict[str, Any], progress: Progress
) -> None:
    """Write every file that an earlier run has not finished, and the index; `progress` counts bytes.

    Raises OutputError naming the file, and AdapterError where values do not fit the dtype.
    """
    _check_space(plan, directory)
    with one_thread(), Reader() as reader:
        for file, head in plan.heads.items():
            path = directory / file
            outputs = [output for output in plan.outputs if output.file == file]
            size = sum(output.target.size for output in outputs)
            entry = manifest["shards"].get(file)
            if entry and path.is_file() and path.stat().st_size == len(head) + size:
                progress.add(size)
                continue
            try:
                loss = _write_file(path, head, outputs, reader, progress)
            except OSError as error:
                raise OutputError(f"{path}: {error}{GOES_ON}") from None
            manifest["shards"][file] = {"bytes": len(head) + size, "loss": asdict(loss)}
            write_json(directory / MANIFEST, manifest)
    if plan.base.indexed:
        files = {output.name: output.file for output in plan.outputs}
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(files.items()))}
        write_json(directory / INDEX, index)


def _write_file(
    path: Path, head: bytes, outputs: list[Output], reader: Reader, progress: Progress
) -> RoundingLoss:
    """Write `path`, tensor by tensor and piece by piece, under a temporary name until it is whole."""
    import torch

    unfinished = path.with_name(f"{path.name}.part")
    total = RoundingLoss()
    with unfinished.open("wb") as file:
        file.write(head)
        for output in outputs:
            rows = MergedRows(output, reader)
            for first, last in pieces(output.target.rows, output.target.width):
                block = rows.stored(first, last).view(torch.uint8).flatten().numpy()
                file.write(block)
                progress.add(block.size)
            total += rows.loss
        file.flush()
        os.fsync(file.fileno())
    unfinished.chmod(0o644)
    unfinished.replace(path)
    return total


def _publish(directory: Path, out: Path, *, force: bool) -> None:
    """Give the directory its final name. Raises OutputError; what was there stays then."""
    replaced = out.with_name(f"{out.name}.old")
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


def _total_loss(manifest: dict[str, Any]) -> RoundingLoss:
    """The rounding loss of all finished files."""
    losses = [RoundingLoss(**entry["loss"]) for _, entry in sorted(manifest["shards"].items())]
    return sum(losses, start=RoundingLoss())
