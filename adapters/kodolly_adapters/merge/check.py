"""What a merge changed: each tensor of two model directories compared, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kodolly_adapters.errors import BaseError
from kodolly_adapters.safetensors_io import DTYPES, FLOATS, Checkpoint, Reader, Tensor, checkpoint

from .arithmetic import Rows, one_thread, pieces
from .plan import TARGETS, Dtype, Output, Plan, plan, read_config

if TYPE_CHECKING:
    import torch

SKETCH = 160  # columns of the random projection: ranks up to about this can be told
SURE = 1.6  # a direction counts when it is this much above what rounding alone makes
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
    predicted: bool | None = None  # equal to what the adapter makes; None: not asked


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, and how many tensors are equal to the last bit."""

    equal: int
    differences: tuple[Difference, ...]
    asked: bool  # whether an adapter was given
    wrong: tuple[str, ...]  # tensors that are not what the adapter makes


def total(base: Path, merged: Path) -> int:
    """Bytes that `compare` will read of `merged`."""
    return sum(tensor.size for tensor in _weights(merged, base).tensors.values())


def compare(
    base: Path, merged: Path, adapter: Path | None, progress: Callable[[int], None]
) -> Comparison:
    """Every difference between the weights in `base` and `merged`; `progress` hears of bytes.

    With `adapter`, each tensor is also compared with what merging it gives, to the last bit.
    Raises BaseError and AdapterError.
    """
    before, after = checkpoint(base), _weights(merged, base)
    made = _prediction(base, adapter, before, after)
    outputs = {output.name: output for output in made.outputs} if made is not None else {}
    found: list[Difference] = []
    wrong: list[str] = []
    equal = 0
    with one_thread(), Reader() as old, Reader() as new, Reader() as third:
        for name in sorted(set(before.tensors) | set(after.tensors)):
            one, other = before.tensors.get(name), after.tensors.get(name)
            right = None
            if made is not None:
                right = _as_predicted(outputs.get(name), other, third, new)
                if not right:
                    wrong.append(name)
            difference = _difference(name, one, other, old, new, right)
            if difference is None:
                equal += 1
            else:
                found.append(difference)
            progress(other.size if other is not None else 0)
    return Comparison(equal, tuple(found), made is not None, tuple(wrong))


def _weights(merged: Path, base: Path) -> Checkpoint:
    if config_of(merged).get("quantization_config"):
        raise BaseError(
            f"{merged}: is quantised. Compare the model before --export with {base} instead"
        )
    return checkpoint(merged)


def config_of(directory: Path) -> dict[str, Any]:
    """config.json, {} where there is none: weights alone can be compared too."""
    from .words import read_object

    return read_object(directory / "config.json")


def _prediction(
    base: Path, adapter: Path | None, before: Checkpoint, after: Checkpoint
) -> Plan | None:
    if adapter is None:
        return None
    read_config(base)
    return plan(base, adapter, _flag(before, after))


def _flag(before: Checkpoint, after: Checkpoint) -> Dtype:
    """The --dtype the merged model was made with, by its tensors."""
    kinds = {
        (before.tensors[name].dtype, tensor.dtype)
        for name, tensor in after.tensors.items()
        if name in before.tensors and tensor.dtype in FLOATS
    }
    cast = {new for old, new in kinds if new != old}
    return next((flag for flag, kind in _flags() if kind in cast), "same")


def _flags() -> Iterator[tuple[Dtype, str]]:
    yield from ((flag, TARGETS[flag]) for flag in ("fp32", "bf16", "fp16"))


def _as_predicted(
    output: Output | None, found: Tensor | None, reader: Reader, other: Reader
) -> bool:
    """Whether `found` holds exactly what merging makes."""
    import torch

    if output is None or found is None:
        return output is None and found is None
    if output.shape != found.shape or output.dtype != found.dtype:
        return False
    rows = Rows(output, reader)
    kind = getattr(torch, DTYPES[output.dtype][0])
    for first, last in pieces(output.rows, output.width):
        if output.is_copy:
            expected = reader.rows(output.source, first, last)
        else:
            expected = rows.exact(first, last)[0].to(kind)
        written = other.rows(found, first, last)
        if not torch.equal(_bits(expected), _bits(written)):
            return False
    return True


def _bits(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.contiguous().view(torch.uint8)


def _difference(
    name: str,
    one: Tensor | None,
    other: Tensor | None,
    old: Reader,
    new: Reader,
    right: bool | None,
) -> Difference | None:
    if one is None or other is None:
        known = other or one
        assert known is not None
        kind = "new" if one is None else "gone"
        return Difference(name, known.shape, kind, predicted=right)
    if one.shape[1:] != other.shape[1:] or len(one.shape) != len(other.shape):
        return Difference(name, other.shape, "resized", predicted=right)
    sums = _Sums(one, other)
    for first, last in pieces(min(one.rows, other.rows), one.width):
        sums.add(old.rows(one, first, last), new.rows(other, first, last))
    resized = one.shape != other.shape
    if not sums.rows and not resized:
        return (
            Difference(name, other.shape, "cast", predicted=right)
            if one.dtype != other.dtype
            else None
        )
    return Difference(
        name=name,
        shape=other.shape,
        kind="resized" if resized else "changed",
        delta=math.sqrt(sums.delta / sums.count),
        share=math.sqrt(sums.delta / sums.base) if sums.base else math.inf,
        largest=sums.largest,
        rows=sums.rows,
        rank=sums.rank(),
        predicted=right,
    )


class _Sums:
    """What is gathered of one tensor while its rows pass by."""

    def __init__(self, one: Tensor, other: Tensor) -> None:
        import torch

        self.count = self.rows = 0
        self.delta = self.base = self.largest = self._noise = 0.0
        self._bits = FRACTION.get(other.dtype, 23)
        self._sketch: list[torch.Tensor] = []
        self._matrix = len(one.shape) == 2 and one.dtype in FLOATS
        if self._matrix:
            width = min(SKETCH, one.rows, one.width)
            source = torch.Generator().manual_seed(0)
            self._omega = torch.randn(one.width, width, generator=source)

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """The same rows of both."""
        import torch

        before, after = one.to(torch.float32), other.to(torch.float32)
        delta = after - before
        self.count += delta.numel()
        self.delta += float(delta.flatten().dot(delta.flatten()))
        self.base += float(before.flatten().dot(before.flatten()))
        self.largest = max(self.largest, float(delta.abs().max()))
        changed = (delta != 0).any(dim=1)
        rows = int(changed.sum())
        self.rows += rows
        if self._matrix and rows:
            _, exponent = torch.frexp(after[changed])  # value = fraction in [0.5, 1) * 2^exponent
            step = torch.exp2((exponent - 1 - self._bits).to(torch.float32))
            self._noise += float(step.flatten().dot(step.flatten())) / 12
            self._sketch.append(delta @ self._omega)

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
        floor = SURE * math.sqrt(self._noise / self.rows) * spread
        floor = max(floor, float(values[0]) * 1e-5)
        rank = int((values > floor).sum())
        return rank if rank <= 0.9 * sketch.shape[1] else None
