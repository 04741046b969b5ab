"""Parts to final files: one file a split, the provenance beside it, and everything refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..dedupe import DROPPED, Fates, Resolved
from ..options import Options
from ..part import SPLITS, VALIDATION, Done, Index, index_of, remove, section
from ..shard import Origin, Rejected
from ..sinks import opened
from .summary import SplitSummary

REJECTED = "rejected.jsonl"


def write(
    parts: Sequence[tuple[str, Done]], folder: Path, out: Path, resolved: Resolved, options: Options
) -> tuple[list[SplitSummary], int]:
    """Write every split of `parts` (files of `folder`) and `rejected.jsonl` into `out`.

    Returns the splits and the number of lines in `rejected.jsonl`. A part is removed once it is written, by
    a thread beside: what the disk has not seen yet it never has to. A run killed meanwhile makes it again.
    """
    counts, refused = dict.fromkeys(SPLITS, 0), 0
    with ExitStack() as stack:
        sinks = {s: opened(out / _file(name, options), options) for s, name in SPLITS.items()}
        origins = {
            split: opened(out / _file(f"{name}.provenance", options), options, Origin)
            for split, name in SPLITS.items()
            if options.provenance
        }
        for sink in [*sinks.values(), *origins.values()]:
            stack.callback(sink.close)
        rejected = stack.enter_context((out / REJECTED).open("wb"))
        beside = stack.enter_context(ThreadPoolExecutor(1))
        for key, done in parts:
            index = index_of(folder, key)
            fates = resolved.fates_of(key, done)
            for split, name in SPLITS.items():
                mine = index["split"] == split
                kept = fates[mine] == split
                lines = section(folder, key, f"rows.{name}")
                sinks[split].write(_kept(lines, index["size"][mine], kept))
                if origins:
                    lines = section(folder, key, f"origins.{name}")
                    origins[split].write(_kept(lines, index["origin"][mine], kept))
            told = [section(folder, key, "rejected"), *_dropped(folder, key, done, index, fates)]
            rejected.writelines(told)
            refused += sum(line.count(b"\n") for line in told)
            for fate in SPLITS:
                counts[fate] += int((fates == fate).sum())
            beside.submit(remove, folder, key)
    splits = [
        SplitSummary(
            name=name,
            rows=counts[split],
            bytes=(out / _file(name, options)).stat().st_size,
            file=_file(name, options),
            sha256=sinks[split].sha256,
        )
        for split, name in SPLITS.items()
    ]
    return splits, refused


def _file(name: str, options: Options) -> str:
    return f"{name}.{options.format}"


def _kept(lines: bytes, sizes: NDArray[np.uint32], kept: NDArray[np.bool_]) -> bytes:
    """Of lines of `sizes` bytes those that are `kept`."""
    if kept.all():
        return lines
    ends = np.cumsum(sizes.astype(np.int64))
    borders = [*np.flatnonzero(np.diff(kept)).tolist(), len(kept) - 1]
    chosen, start = [], 0
    for last in borders:  # of runs of rows of one fate
        end = int(ends[last])
        if kept[last]:
            chosen.append(lines[start:end])
        start = end
    return b"".join(chosen)


def _dropped(folder: Path, key: str, done: Done, index: Index, fates: Fates) -> Iterator[bytes]:
    """A rejected line for each row that was dropped for the sake of the whole."""
    numbers = np.flatnonzero(fates > VALIDATION)
    if not len(numbers):
        return
    origins = {s: section(folder, key, f"origins.{n}") for s, n in SPLITS.items()}
    ends = {
        s: np.cumsum(np.where(index["split"] == s, index["origin"], 0), dtype=np.int64)
        for s in SPLITS
    }
    for number in numbers.tolist():
        split = int(index["split"][number])
        end = int(ends[split][number])
        known = origins[split][end - int(index["origin"][number]) : end]
        origin = msgspec.json.decode(known, type=Origin) if known else None
        reason = DROPPED[int(fates[number])]
        line = Rejected(
            file=done.file,
            line=int(index["line"][number]),
            byte=int(index["offset"][number]),
            source=done.source,
            id=origin.id if origin else "",
            turn=origin.turn if origin else 0,
            reason=reason,
            detail=WHY[reason],
        )
        yield msgspec.json.encode(line) + b"\n"


WHY = {
    "duplicate": "the same row stands earlier in the input",
    "near-duplicate": "nearly the same row stands earlier in the input",
    "leakage": "its passage stands in the validation split too",
}
