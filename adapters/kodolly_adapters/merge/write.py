"""The bytes: one output file at a time, under a temporary name until it is whole."""

from __future__ import annotations

import os
from pathlib import Path

from kodolly_adapters.files import write_json
from kodolly_adapters.safetensors_io import INDEX, Reader
from kodolly_adapters.terminal import Progress

from .arithmetic import MergedRows, RoundingLoss, pieces, rounded, rounding_loss
from .plan import Plan, Shard


def write_shard(shard: Shard, path: Path, reader: Reader, progress: Progress) -> RoundingLoss:
    """Write the file `path`, tensor by tensor and piece by piece; `progress` counts bytes.

    Raises OSError, and AdapterError where values do not fit the dtype.
    """
    import torch

    unfinished = path.with_name(f"{path.name}.part")
    total = RoundingLoss()
    with unfinished.open("wb") as file:
        file.write(shard.head)
        for output in shard.outputs:
            target = output.target
            merged = MergedRows(output, reader)
            for first, last in pieces(target.rows, target.width):
                if output.is_copy:
                    result = reader.rows(output.source, first, last)
                else:
                    exact, before = merged.exact(first, last)
                    result = rounded(exact, target.dtype, target.name)
                    if merged.computes:
                        total.add(rounding_loss(exact, before, result))
                block = memoryview(result.view(torch.uint8).flatten().numpy())
                file.write(block)
                progress.add(len(block))
        file.flush()
        os.fsync(file.fileno())
    unfinished.chmod(0o644)
    unfinished.replace(path)
    return total


def write_index(plan: Plan, directory: Path) -> None:
    """Write the index that says which file holds which tensor, where the base has one."""
    if plan.base.indexed:
        files = {output.name: shard.file for shard in plan.shards for output in shard.outputs}
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(files.items()))}
        write_json(directory / INDEX, index)
