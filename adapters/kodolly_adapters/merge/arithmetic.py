"""The merge itself: rows of a base tensor in, merged rows out, in float32 and then one rounding.

The order of operations is PEFT's (delta = B @ A * scale, then W + delta), so that float32 results are
equal to the last bit; only that no tensor is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodolly_adapters.errors import AdapterError
from kodolly_adapters.safetensors_io import DTYPES, Reader, Tensor

from .adapter import Change
from .plan import Output

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20  # elements of a piece: 4 MiB in float32, which stays in the processor's cache
FP16_LIMIT = 65_520.0  # from here on fp16 rounds to infinity


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """What rounding to the stored dtype costs: sums of squares over all computed elements."""

    error: float = 0.0
    delta: float = 0.0
    elements: int = 0

    @property
    def share(self) -> float:
        """Root mean square of the rounding error as a share of the change's."""
        return float((self.error / self.delta) ** 0.5) if self.delta else 0.0

    def __add__(self, other: RoundingLoss) -> RoundingLoss:
        return RoundingLoss(
            self.error + other.error, self.delta + other.delta, self.elements + other.elements
        )


def pieces(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """[first, last) of even pieces of about CHUNK elements.

    Even, since a last piece of one row would take another path through the matrix product.
    """
    count = min(max(1, -(-rows * width // CHUNK)), max(1, rows))
    for piece in range(count):
        yield rows * piece // count, rows * (piece + 1) // count


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: pieces are small, more threads would wait for each other and for the disk."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MergedRows:
    """Merged rows of one output tensor. Its two buffers are used again for every piece.

    `loss` adds up what rounding cost, over all rows that were read with `rows` and computed.
    """

    def __init__(self, output: Output, reader: Reader) -> None:
        """Read the small tensors of the change. Raises AdapterError where they hold NaN or infinity."""
        import torch

        self.loss = RoundingLoss()
        self._output, self._reader = output, reader
        self._buffers = torch.empty(0), torch.empty(0)
        change = output.change or Change()
        self._lora = change.lora
        self._magnitude: torch.Tensor | None = None
        if self._lora is not None:
            self._a, self._b = self._finite(self._lora.a), self._finite(self._lora.b)
            if self._lora.magnitude is not None:
                self._magnitude = self._finite(self._lora.magnitude).view(-1, 1)
        self._bias: torch.Tensor | None = None
        if change.lora_bias is not None:
            tensor, scale = change.lora_bias
            self._bias = self._finite(tensor).view(-1, 1) * scale
        self._tokens: list[tuple[int, torch.Tensor]] = []  # (id, its row)
        if change.tokens is not None:
            ids, rows = change.tokens
            self._tokens = list(zip(ids, self._finite(rows), strict=True))

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) as they are written, shape (last - first, width); the next call may overwrite them.

        Raises AdapterError where values do not fit into the dtype's range.
        """
        if self._output.is_copy:
            return self._reader.rows(self._output.source, first, last)
        exact, start = self._exact(first, last)
        result = _rounded(exact, self._output.target)
        if self._lora is not None or self._bias is not None:
            delta = start.sub_(exact).flatten()
            change = float(delta.dot(delta))
            error = start.copy_(result).sub_(exact).flatten()
            self.loss += RoundingLoss(float(error.dot(error)), change, exact.numel())
        return result

    def _exact(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(merged, start) rows in float32; `start` is what the change is measured against: before LoRA."""
        import torch

        source, rows, width = self._output.source, last - first, self._output.target.width
        if self._buffers[0].numel() < rows * width:
            room = (rows + 1) * width  # one piece may be a row longer than another
            self._buffers = torch.empty(room), torch.empty(room)
        start, merged = (buffer[: rows * width].view(rows, width) for buffer in self._buffers)
        count = max(0, min(last, source.rows) - first)
        if count:
            start[:count].copy_(self._reader.rows(source, first, first + count))
        start[count:].zero_()  # rows of new tokens, all of which the change sets
        if self._lora is not None:
            if self._lora.layout == "linear":
                torch.mm(self._b[first:last], self._a, out=merged)
            else:  # W's rows are A's columns: only those are multiplied
                merged.copy_(torch.mm(self._b, self._a[:, first:last]).t())
            merged.mul_(self._lora.scale).add_(start)
            if self._magnitude is not None:
                norm = torch.linalg.norm(merged, dim=1).view(-1, 1)
                merged.mul_(self._magnitude[first:last] / norm)
        elif self._bias is not None:
            merged.copy_(start).add_(self._bias[first:last])
        else:
            merged = start
        for token, row in self._tokens:
            if first <= token < last:
                merged[token - first] = row
        return merged, start

    def _finite(self, tensor: Tensor) -> torch.Tensor:
        values = self._reader.whole(tensor)
        if not bool(values.isfinite().all()):
            raise AdapterError(f"{tensor.path}: {tensor.name} holds infinities or no numbers (NaN)")
        return values


def _rounded(exact: torch.Tensor, target: Tensor) -> torch.Tensor:
    import torch

    if target.dtype == "F16":
        low, high = map(float, torch.aminmax(exact))
        if not -FP16_LIMIT < low <= high < FP16_LIMIT:
            raise AdapterError(
                f"{target.name}: values up to {max(-low, high):.3g} do not fit into fp16: "
                "use --dtype bf16 or fp32"
            )
    return exact.to(getattr(torch, DTYPES[target.dtype][0]))
