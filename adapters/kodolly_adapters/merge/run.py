"""One merge from its plan to a directory that exists only when it is whole and verified."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.files import sha256, write_json
from kodolly_adapters.terminal import Progress

from .arithmetic import RoundingLoss
from .model_files import write_files
from .plan import Dtype, Plan, make_plan
from .verify import Verdict, verify
from .write import MANIFEST, open_unfinished, publish, read_manifest, total_loss, write_weights


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
    key = job_key(plan)
    finished = read_manifest(out)
    if not force and finished.get("job") == key and finished.get("finished"):
        return _result(plan, out, finished, already_there=True)
    with open_unfinished(out, key, force=force) as directory:
        manifest = read_manifest(directory)
        with Progress("merge", plan.size, show=not quiet) as progress:
            write_weights(plan, directory, manifest, progress)
            notes = write_files(plan, directory, out.name)
            verdict = None
            if check:
                progress.say("comparing with PEFT's own merge, tensors and greedy answers")
                verdict = verify(plan, directory, key)
        manifest |= {
            "finished": True,
            "dtype": plan.dtype,
            "rounding_loss": total_loss(manifest).share,
            "verified": asdict(verdict) if verdict is not None else None,
            "notes": notes,
        }
        write_json(directory / MANIFEST, manifest)
        publish(directory, out, force=force)
    return _result(plan, out, manifest, already_there=False)


def job_key(plan: Plan) -> str:
    """A hash of what makes two merges the same: inputs by size and time of change, and all headers.

    The weights themselves are not hashed: that would read a large base twice.
    """
    digest = hashlib.sha256()
    for file in plan.base.files:
        stat = (plan.base.directory / file).stat()
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for path in sorted(plan.adapter.glob("adapter_*")):
        digest.update(sha256(path).encode())
    for shard in plan.shards:
        digest.update(shard.head)
    return digest.hexdigest()


def _result(plan: Plan, out: Path, manifest: dict[str, Any], *, already_there: bool) -> Result:
    return Result(
        out=out,
        bytes=plan.size,
        changed=sum(output.change is not None for output in plan.outputs),
        loss=total_loss(manifest),
        verdict=Verdict(**manifest["verified"]) if manifest["verified"] else None,
        notes=tuple(manifest["notes"]),
        already_there=already_there,
    )
