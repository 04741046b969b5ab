"""One merge from its plan to a directory that exists only when it is whole and verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OutputError

from .arithmetic import Loss
from .model_files import write_files
from .plan import Dtype, Export, Plan, plan
from .progress import Progress
from .staging import Staging, job, read_manifest
from .stream import write
from .verify import Verdict, verify

SPARE = 64 << 20  # bytes beside the weights


@dataclass(frozen=True, slots=True)
class Result:
    """A finished merge, for the report."""

    out: Path
    bytes: int
    changed: int  # tensors
    loss: Loss
    verdict: Verdict | None  # None: not asked for
    notes: tuple[str, ...]
    again: bool  # it was there already


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: Dtype = "same",
    export: Export = "none",
    check: bool = True,
    force: bool = False,
    quiet: bool = False,
) -> Result:
    """Merge `adapter` into `base` as the model directory `out`.

    A run that was ended repeats nothing it had finished and gives the same bytes. Raises UserError's
    kinds: BaseError, AdapterError for what does not fit, OutputError for what is in the way.
    """
    known = plan(base, adapter, dtype, export)
    key = job(known)
    out = Path(out)
    old = read_manifest(out) or {}
    if not force and old.get("job") == key and old.get("finished"):
        return _result(known, out, old, again=True)
    with Staging(out, key, force=force) as staging:
        _check_space(known, staging)
        with Progress("merge", known.size, show=not quiet) as progress:
            total = write(known, staging, progress)
            notes = write_files(known, staging.place, out.name)
            if check:
                progress.say("comparing with PEFT's own merge, tensors and greedy answers")
            verdict = verify(known, staging.place, key) if check else None
        staging.manifest |= {
            "finished": True,
            "dtype": known.dtype,
            "export": export,
            "rounding_loss": total.share,
            "verified": verdict.as_json() if verdict is not None else None,
            "notes": notes,
        }
        staging.save()
        staging.publish()
    return _result(known, out, staging.manifest, again=False)


def _result(known: Plan, out: Path, manifest: dict[str, Any], *, again: bool) -> Result:
    total = Loss()
    for _, entry in sorted(manifest["shards"].items()):
        total.add(Loss(**entry["loss"]))
    return Result(
        out=out,
        bytes=known.size,
        changed=sum(output.change is not None for output in known.outputs),
        loss=total,
        verdict=Verdict.of(manifest["verified"]),
        notes=tuple(manifest["notes"]),
        again=again,
    )


def _check_space(known: Plan, staging: Staging) -> None:
    there = sum(path.stat().st_size for path in staging.place.iterdir())
    need = known.size + SPARE - there
    free = shutil.disk_usage(staging.place).free
    if need > free:
        raise OutputError(
            f"{staging.place}: needs {need / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free"
        )
