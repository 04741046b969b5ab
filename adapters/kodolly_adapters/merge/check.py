"""`kodolly merge --check`: what differs between two model directories, and is it what the adapter makes?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kodolly_adapters.card import read_object
from kodolly_adapters.errors import BaseError
from kodolly_adapters.safetensors_io import FLOATS, Reader, Tensor, checkpoint
from kodolly_adapters.terminal import Progress

from .arithmetic import MergedRows, one_thread, pieces
from .plan import STORED, Dtype, Output, make_plan

if TYPE_CHECKING:
    import torch

SKETCH = 160  # columns of the random projection: ranks up to about this can be measured
MARGIN = 1.6  # a direction counts when it is this much above what rounding alone makes
# Bits of the fraction: what rounding to the dtype costs a value between 1 and 2 is 2^-bits / sqrt(12) rms.
FRACTION = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor that is not the same. Sizes are root mean squares over all of its values."""

    name: str
    shape: tuple[int, ...]
    kind: str  # "changed", "cast" (the same values in another dtype), "new", "gone", "resized"
    delta: float = 0.0  # of the change
    share: float = 0.0  # of the change, by the base's values
    largest: float = 0.0
    rows: int = 0  # rows that changed
    rank: int | None = None  # of the change; None: not low, or not a matrix


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
    outputs: dict[str, Output] | None = None
    if adapter is not None:
        plan = make_plan(base, adapter, _dtype_flag(before, after))
        outputs = {output.name: output for output in plan.outputs}
    differences: list[Difference] = []
    wrong: list[str] = []
    names = sorted({*before, *after, *(outputs or ())})
    size = sum(tensor.size for tensor in after.values())
    with (
        one_thread(),
        Reader() as base_reader,
        Reader() as merged_reader,
        Progress("merge", size, show=not quiet) as progress,
    ):
        for name in names:
            old, new = before.get(name), after.get(name)
            if outputs is not None and not _is_predicted(
                outputs.get(name), new, base_reader, merged_reader
            ):
                wrong.append(name)
            if new is None or old is None:
                shape = new.shape if new else old.shape if old else ()
                differences.append(Difference(name, shape, "new" if new else "gone"))
            elif difference := _difference(old, new, base_reader, merged_reader):
                differences.append(difference)
            progress.add(new.size if new else 0)
    equal = len(names) - len(differences)
    return Comparison(equal, tuple(differences), adapter is not None, tuple(wrong))


def report(comparison: Comparison) -> list[str]:
    """The comparison in lines for people."""
    lines = []
    if comparison.differences:
        columns = ("change rms", "of base", "largest", "rows", "rank")
        lines.append("{:>10} {:>8} {:>8} {:>7} {:>5}  tensor".format(*columns))
    for difference in comparison.differences:
        lines.append(_line(difference, difference.name in comparison.wrong))
    lines.append(
        f"{len(comparison.differences):,} tensors differ, {comparison.equal:,} are equal to the last bit"
    )
    if comparison.wrong:
        names = ", ".join(comparison.wrong[:5])
        lines.append(
            f"NOT what the adapter makes of the base: {names} ({len(comparison.wrong):,} in all)"
        )
    elif comparison.with_adapter:
        lines.append("every tensor is what the adapter makes of the base, to the last bit")
    return lines


def _line(one: Difference, wrong: bool) -> str:
    mark = "  (not the adapter's)" if wrong else ""
    if one.kind in ("new", "gone", "cast"):
        return f"{one.kind:>42}  {one.name} {list(one.shape)}{mark}"
    no_rank = "full" if len(one.shape) == 2 else "-"
    rank = no_rank if one.rank is None else one.rank
    resized = " resized" if one.kind == "resized" else ""
    return (
        f"{one.delta:>10.3g} {one.share:>8.2%} {one.largest:>8.3g} {one.rows:>7,} {rank:>5}  "
        f"{one.name} {list(one.shape)}{resized}{mark}"
    )


def _dtype_flag(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Dtype:
    """The --dtype that the merged model was made with, by its tensors."""
    cast = {new.dtype for name, new in after.items() if new.dtype != before.get(name, new).dtype}
    return next((flag for flag, stored in STORED.items() if stored in cast), "same")


def _is_predicted(
    output: Output | None, tensor: Tensor | None, base_reader: Reader, merged_reader: Reader
) -> bool:
    """Whether `tensor` holds exactly what merging makes; both None: no tensor is right."""
    import torch

    if output is None or tensor is None:
        return output is None and tensor is None
    target = output.target
    if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
        return False
    rows = MergedRows(output, base_reader)
    return all(
        torch.equal(
            rows.stored(first, last).view(torch.uint8),
            merged_reader.rows(tensor, first, last).view(torch.uint8),
        )
        for first, last in pieces(target.rows, target.width)
    )


def _difference(
    old: Tensor, new: Tensor, base_reader: Reader, merged_reader: Reader
) -> Difference | None:
    """What differs between a tensor of the base and of the merged model; None where nothing does."""
    if old.shape[1:] != new.shape[1:] or len(old.shape) != len(new.shape):
        return Difference(new.name, new.shape, "resized")
    sums = _Sums(old, new)
    for first, last in pieces(min(old.rows, new.rows), old.width):
        sums.add(base_reader.rows(old, first, last), merged_reader.rows(new, first, last))
    resized = old.shape != new.shape
    if not sums.rows and not resized:
        return Difference(new.name, new.shape, "cast") if old.dtype != new.dtype else None
    return Difference(
        name=new.name,
        shape=new.shape,
        kind="resized" if resized else "changed",
        delta=math.sqrt(sums.delta / sums.count),
        share=math.sqrt(sums.delta / sums.base) if sums.base else math.inf,
        largest=sums.largest,
        rows=sums.rows,
        rank=sums.rank(),
    )


class _Sums:
    """What is added up of one tensor while its rows pass by."""

    def __init__(self, old: Tensor, new: Tensor) -> None:
        import torch

        self.count = self.rows = 0
        self.delta = self.base = self.largest = self._noise = 0.0
        self._bits = FRACTION.get(new.dtype, 23)
        self._sketch: list[torch.Tensor] = []
        self._projection: torch.Tensor | None = None
        if len(old.shape) == 2 and old.dtype in FLOATS:
            columns = min(SKETCH, old.rows, old.width)
            seed = torch.Generator().manual_seed(0)
            self._projection = torch.randn(old.width, columns, generator=seed)

    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """The same rows of both."""
        import torch

        before, after = old.to(torch.float32), new.to(torch.float32)
        delta = after - before
        self.count += delta.numel()
        self.delta += float(delta.flatten().dot(delta.flatten()))
        self.base += float(before.flatten().dot(before.flatten()))
        self.largest = max(self.largest, float(delta.abs().max()))
        changed = (delta != 0).any(dim=1)
        rows = int(changed.sum())
        self.rows += rows
        if self._projection is not None and rows:
            _, exponent = torch.frexp(after[changed])  # value = fraction in [0.5, 1) * 2^exponent
            step = torch.exp2((exponent - 1 - self._bits).to(torch.float32))
            self._noise += float(step.flatten().dot(step.flatten())) / 12
            self._sketch.append(delta @ self._projection)

    def rank(self) -> int | None:
        """How many directions the change has beyond rounding noise; None where it is no low rank.

        The change times a thin random matrix keeps its rank. Noise of deviation e in every value makes
        singular values of at most about e * sqrt(columns) * (sqrt(rows) + sqrt(sketch)) there.
        """
        import torch

        if not self._sketch:
            return None
        sketch = torch.cat(self._sketch)
        values = torch.linalg.svdvals(sketch)
        # e * sqrt(columns) is sqrt(noise / rows): unchanged rows have none.
        spread = math.sqrt(self.rows) + math.sqrt(sketch.shape[1])
        floor = MARGIN * math.sqrt(self._noise / self.rows) * spread
        floor = max(floor, float(values[0]) * 1e-5)
        rank = int((values > floor).sum())
        return rank if rank <= 0.9 * sketch.shape[1] else None
