"""`kodolly merge --check`: what differs between two model directories, and is it what the adapter makes?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kodolly_adapters.card import read_object
from kodolly_adapters.errors import BaseError
from kodolly_adapters.safetensors_io import FLOATS, Reader, Tensor, checkpoint
from kodolly_adapters.terminal import Progress

from .arithmetic import MergedRows, one_thread, pieces
from .plan import FLAGS, Dtype, Output, make_plan

SKETCH = 160  # columns of the random projection; ranks up to 0.9 times this can be measured
MARGIN = 1.6  # a singular value counts above this many times what rounding alone makes
# Bits of the fraction. Rounding a value between 1 and 2 to the dtype makes an error of 2^-bits / sqrt(12) (rms).
FRACTION = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor that differs. Rms: the root mean square over the rows that both models have."""

    name: str
    shape: tuple[int, ...]
    kind: str  # "changed", "cast" (the same values in another dtype), "new", "gone", "resized"
    delta: float = 0.0  # rms of the change
    share: float = 0.0  # rms of the change divided by that of the base's values
    largest: float = 0.0  # largest absolute change of one value
    rows: int = 0  # number of rows that changed
    rank: int | None = None  # of the change; None: too high to measure, or no matrix of floats


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, and how many tensors are equal to the last bit."""

    equal: int
    differences: tuple[Difference, ...]
    with_adapter: bool
    wrong: tuple[str, ...]  # tensors that are not what the adapter makes


def compare(base: Path, merged: Path, adapter: Path | None, *, quiet: bool = False) -> Comparison:
    """Every difference between the weights in `base` and `merged`.

    With `adapter`, each tensor is also compared with what merging it gives, to the last bit.
    Raises BaseError and AdapterError.
    """
    if read_object(merged / "config.json").get("quantization_config"):
        raise BaseError(
            f"{merged}: is quantised. Compare the model it was quantised from with {base}"
        )
    before, after = checkpoint(base).tensors, checkpoint(merged).tensors
    plan = make_plan(base, adapter, _dtype_flag(before, after)) if adapter else None
    outputs = {output.name: output for output in plan.outputs} if plan else {}
    differences: list[Difference] = []
    wrong: list[str] = []
    names = sorted({*before, *after, *outputs})
    size = sum(tensor.size for tensor in after.values())
    with (
        one_thread(),
        Reader() as base_reader,
        Reader() as merged_reader,
        Progress("merge", size, show=not quiet) as progress,
    ):
        for name in names:
            old, new = before.get(name), after.get(name)
            if plan and not _is_predicted(outputs.get(name), new, base_reader, merged_reader):
                wrong.append(name)
            if difference := _difference(name, old, new, base_reader, merged_reader):
                differences.append(difference)
            progress.add(new.size if new else 0)
    equal = len(names) - len(differences)
    return Comparison(equal, tuple(differences), plan is not None, tuple(wrong))


def report(comparison: Comparison) -> list[str]:
    """The comparison in lines for people."""
    differences, wrong = comparison.differences, comparison.wrong
    lines = []
    if differences:
        columns = ("change rms", "of base", "largest", "rows", "rank")
        lines.append("{:>10} {:>8} {:>8} {:>7} {:>5}  tensor".format(*columns))
    for difference in differences:
        no_rank = "full" if len(difference.shape) == 2 else "-"
        figures = (
            f"{difference.delta:>10.3g} {difference.share:>8.2%} {difference.largest:>8.3g} "
            f"{difference.rows:>7,} "
            f"{no_rank if difference.rank is None else difference.rank:>5}"
        )
        if difference.kind in ("new", "gone", "cast"):
            figures = f"{difference.kind:>42}"
        resized = " resized" if difference.kind == "resized" else ""
        mark = "  (not what the adapter makes)" if difference.name in wrong else ""
        lines.append(f"{figures}  {difference.name} {list(difference.shape)}{resized}{mark}")
    lines.append(
        f"{len(differences):,} tensors differ, {comparison.equal:,} are equal to the last bit"
    )
    if wrong:
        names = ", ".join(wrong[:5])
        lines.append(f"NOT what the adapter makes of the base: {names} ({len(wrong):,} in all)")
    elif comparison.with_adapter:
        lines.append("every tensor is what the adapter makes of the base, to the last bit")
    return lines


def _dtype_flag(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Dtype:
    """The --dtype of the merge, inferred from the tensors whose dtype changed."""
    new_dtypes = {
        new.dtype for name, new in after.items() if new.dtype != before.get(name, new).dtype
    }
    return next((flag for flag, dtype in FLAGS.items() if dtype in new_dtypes), "same")


def _is_predicted(
    output: Output | None, tensor: Tensor | None, base_reader: Reader, merged_reader: Reader
) -> bool:
    """Whether `tensor` holds exactly what merging makes. None: no such tensor; both None is right too."""
    if output is None or tensor is None:
        return output is None and tensor is None
    target = output.target
    if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
        return False
    predicted = MergedRows(output, base_reader)
    return all(
        torch.equal(
            predicted.rows(first, last).view(torch.uint8),
            merged_reader.rows(tensor, first, last).view(torch.uint8),
        )
        for first, last in pieces(target.rows, target.width)
    )


def _difference(
    name: str, old: Tensor | None, new: Tensor | None, base_reader: Reader, merged_reader: Reader
) -> Difference | None:
    """What differs between a tensor of the base and of the merged model; None where nothing does."""
    if new is None or old is None:
        shape = new.shape if new else old.shape if old else ()
        return Difference(name, shape, "new" if new else "gone")
    if old.shape[1:] != new.shape[1:] or len(old.shape) != len(new.shape):
        return Difference(name, new.shape, "resized")
    changed_rows = 0
    squares = base_squares = largest = noise = 0.0
    projection = _projection(old)
    sketch: list[torch.Tensor] = []
    for first, last in pieces(min(old.rows, new.rows), old.width):
        before = base_reader.rows(old, first, last).to(torch.float32)
        after = merged_reader.rows(new, first, last).to(torch.float32)
        delta = after - before
        squares += float(delta.flatten().dot(delta.flatten()))
        base_squares += float(before.flatten().dot(before.flatten()))
        largest = max(largest, float(delta.abs().max()))
        row_changed = (delta != 0).any(dim=1)
        count = int(row_changed.sum())
        changed_rows += count
        if projection is not None and count:
            noise += _rounding_noise(after[row_changed], new.dtype)
            sketch.append(delta @ projection)
    resized = old.shape != new.shape
    if not changed_rows and not resized:
        return Difference(name, new.shape, "cast") if old.dtype != new.dtype else None
    return Difference(
        name=name,
        shape=new.shape,
        kind="resized" if resized else "changed",
        delta=math.sqrt(squares / (min(old.rows, new.rows) * old.width)),
        share=math.sqrt(squares / base_squares) if base_squares else math.inf,
        largest=largest,
        rows=changed_rows,
        rank=_rank(torch.cat(sketch), noise / changed_rows, changed_rows) if sketch else None,
    )


def _projection(tensor: Tensor) -> torch.Tensor | None:
    """A random matrix, (width, columns): a change times this keeps its rank, up to `columns`.

    None where `tensor` is not a matrix of floats.
    """
    if len(tensor.shape) != 2 or tensor.dtype not in FLOATS:
        return None
    seed = torch.Generator().manual_seed(0)
    return torch.randn(tensor.width, min(SKETCH, *tensor.shape), generator=seed)


def _rounding_noise(values: torch.Tensor, dtype: str) -> float:
    """The sum of the squared errors expected from rounding `values` to `dtype`."""
    _, exponent = torch.frexp(values)  # value = fraction in [0.5, 1) * 2^exponent
    step = torch.exp2((exponent - 1 - FRACTION.get(dtype, 23)).to(torch.float32))
    return float(step.flatten().dot(step.flatten())) / 12


def _rank(sketch: torch.Tensor, noise: float, rows: int) -> int | None:
    """The rank of a change: its singular values above rounding noise. None where it is too high to measure.

    `sketch` is the change times `_projection`; `noise` is the sum of a row's squared rounding errors, on average.
    Errors of standard deviation e in every value make singular values of at most about
    e * sqrt(width) * (sqrt(rows) + sqrt(columns)) in the sketch.
    """
    values = torch.linalg.svdvals(sketch)
    floor = MARGIN * math.sqrt(noise) * (math.sqrt(rows) + math.sqrt(sketch.shape[1]))
    floor = max(floor, float(values[0]) * 1e-5)
    rank = int((values > floor).sum())
    return rank if rank <= 0.9 * sketch.shape[1] else None
