"""`kodolly merge` beside PEFT's merge_and_unload on random checkpoints of Polyglot-Ko's exact shapes.

    python -m benchmarks.merge.run 1.3b           both ways
    python -m benchmarks.merge.run 5.8b --no-peft  ours alone, where PEFT's memory is not there

Each way runs in a process of its own; the outputs are compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.convert.measure import Measured, RunFailed, measure
from kodolly_adapters.safetensors_io import Checkpoint, checkpoint, equal

from .checkpoints import SHAPES, Shape, write_adapter, write_base

RESULTS = Path(__file__).parent / "results"
SHARD = 1 << 30  # bytes of a file, as on the hub
MIB = 1 << 20
MERGE = "import sys; from kodolly_adapters.merge.cli import main; sys.exit(main(sys.argv[1:]))"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it beside its JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.merge.run")
    parser.add_argument("model", choices=list(SHAPES))
    parser.add_argument("--no-peft", action="store_true", help="ours alone")
    parser.add_argument("--verify", action="store_true", help="also ours with its own check")
    parser.add_argument("--work", type=Path, help="a folder with room; default: a temporary one")
    chosen = parser.parse_args(argv)
    shape = SHAPES[chosen.model]
    _check_room(shape, peft=not chosen.no_peft, place=chosen.work or Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(dir=chosen.work) as folder:
        found = _run(shape, Path(folder), peft=not chosen.no_peft, verify=chosen.verify)
    text = _table(found)
    print(text)
    if chosen.model != "tiny":
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{chosen.model}.json").write_text(json.dumps(found, indent=2) + "\n")
        (RESULTS / f"{chosen.model}.md").write_text(text + "\n")
    return 0


def _run(shape: Shape, folder: Path, *, peft: bool, verify: bool) -> dict[str, Any]:
    base, adapter = folder / "base", folder / "adapter"
    write_base(shape, base, SHARD)
    write_adapter(shape, adapter)
    ours, theirs = folder / "ours", folder / "peft"
    command = [sys.executable, "-c", MERGE, str(base), str(adapter), "--out"]
    found: dict[str, Any] = {
        "model": shape.name,
        "parameters": shape.parameters,
        "bytes": 2 * shape.parameters,
        "files": len(list(base.glob("*.safetensors"))),
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "runs": {},
    }
    runs: dict[str, Any] = found["runs"]
    runs["python with torch, doing nothing"] = _measured([sys.executable, "-c", "import torch"])
    runs["kodolly merge"] = _measured([*command, str(ours), "--no-verify", "--quiet"])
    if verify:
        checked = folder / "checked"
        runs["kodolly merge, verified"] = _measured([*command, str(checked), "--quiet"])
        verdict = json.loads((checked / "merge.json").read_text())["verified"]
        found["verified"] = verdict
        shutil.rmtree(checked)
    if peft:
        script = Path(__file__).with_name("peft_merge.py")
        places = [str(base), str(adapter), str(theirs)]
        runs["PEFT merge_and_unload"] = _measured([sys.executable, str(script), *places])
        found["compared"] = _compare(checkpoint(ours), checkpoint(theirs))
    manifest = json.loads((ours / "merge.json").read_text())
    found["rounding_loss"] = manifest["rounding_loss"]
    return found


def _measured(command: Sequence[str]) -> dict[str, Any]:
    env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        result: Measured = measure(command, env=env, limit=3600.0)
    except RunFailed as error:
        return {"failed": str(error)[-500:]}
    kept = asdict(result)
    kept.pop("output")
    return kept


def _compare(ours: Checkpoint, theirs: Checkpoint) -> dict[str, Any]:
    """How many tensors are equal byte for byte, and the names of some that are not."""
    unequal = sorted(
        name
        for name in set(ours.tensors) | set(theirs.tensors)
        if name not in ours.tensors
        or name not in theirs.tensors
        or not equal(ours.tensors[name], theirs.tensors[name])
    )
    return {"tensors": len(ours.tensors), "unequal": len(unequal), "names": unequal[:5]}


def _check_room(shape: Shape, *, peft: bool, place: Path) -> None:
    need = 2 * shape.parameters * (3 if peft else 2) + (1 << 30)
    free = shutil.disk_usage(place).free
    if need > free:
        raise SystemExit(f"needs {need / 1e9:.0f} GB of disk in {place}, {free / 1e9:.0f} are free")


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"# {found['model']}: {found['parameters']:,} parameters in fp16, {found['files']} files",
        "",
        f"Random weights, LoRA r=16 on the four linear layers. {found['when']}, {found['machine']}.",
        "",
        "| way | peak memory MiB | CPU s | wall s |",
        "|---|---|---|---|",
    ]
    for name, run in found["runs"].items():
        if "failed" in run:
            lines.append(f"| {name} | did not finish | | |")
            continue
        cells = f"{run['peak'] / MIB:,.0f} | {run['cpu']:,.1f} | {run['wall']:,.1f}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", f"Rounding error (rms) as a share of the adapter's change: {found['rounding_loss']:.2%}."]  # fmt: skip
    if compared := found.get("compared"):
        equal = compared["tensors"] - compared["unequal"]
        lines.append(
            f"Equal to PEFT's output byte for byte: {equal} of {compared['tensors']} tensors."
        )
    if verdict := found.get("verified"):
        what = verdict["skipped"] or f"{verdict['tokens']} greedy tokens equal"
        lines.append(f"Its own check: {verdict['rows']:,} rows of {verdict['tensors']} tensors equal; {what}.")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
