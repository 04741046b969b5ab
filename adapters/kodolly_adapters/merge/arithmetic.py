"""The merge itself: rows of a base tensor in, merged rows out, in float32 and then one rounding.

The order of operations is PEFT's (delta = B @ A * scale, then W + delta), so that float32 results are
equal to the last bit; only that no tensor is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodolly_adapters.train.errors import AdapterError

from .adapter import Lora
from .plan import Output
from .tensors import DTYPES, Reader

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20  # elements of a piece: 4 MiB in float32, which stays in the processor's cache


@dataclass(slots=True)
class Loss:
    """What rounding to the target dtype costs: sums of squares over all changed elements."""

    error: float = 0.0
    delta: float = 0.0
    elements: int = 0

    @property
    def share(self) -> float:
        """Root mean square of the rounding error as a share of the change's."""
        return float((self.error / self.delta) ** 0.5) if self.delta else 0.0

    def add(self, other: Loss) -> None:
        """Take another's sums in."""
        self.error += other.error
        self.delta += other.delta
        self.elements += other.elements


def pieces(rows: int, width: int, chunk: int = CHUNK) -> Iterator[tuple[int, int]]:
    """[first, last) of even pieces of about `chunk` elements.

    Even, since a last piece of one row would take another path through the matrix product.
    """
    count = max(1, -(-rows * width // chunk))
    count = min(count, max(1, rows))
    for piece in range(count):
        yield rows * piece // count, rows * (piece + 1) // count


class Rows:
    """Merged rows of one output tensor, exact in float32."""

    def __init__(self, output: Output, reader: Reader) -> None:
        self._output = output
        self._reader = reader
        change = output.change
        self._lora = change.lora if change is not None else None
        if change is not None and self._lora is not None:
            self._a = reader.whole(self._lora.a)
            self._b = reader.whole(self._lora.b)
            if self._lora.magnitude is not None:
                self._magnitude = reader.whole(self._lora.magnitude).view(-1, 1)
        self._added: torch.Tensor | None = None
        if change is not None and change.added is not None:
            tensor, scale = change.added
            self._added = reader.whole(tensor).view(-1, 1) * scale
        self._tokens: dict[int, int] = {}
        if change is not None and change.tokens is not None:
            ids, rows = change.tokens
            self._tokens = {token: place for place, token in enumerate(ids)}
            self._token_rows = reader.whole(rows)

    def exact(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(merged, start) rows [first, last) in float32, each of shape (last - first, width).

        `start` is what the change is measured against: the rows before LoRA.
        """
        start = self._start(first, last)
        merged = start
        if self._lora is not None:
            merged = start + self._delta(self._lora, first, last)
            if self._lora.magnitude is not None:
                merged = self._scaled(merged, first, last)
        if self._added is not None:
            merged = start + self._added[first:last]
        for token, place in self._tokens.items():
            if first <= token < last:
                if merged is start:
                    merged = start.clone()
                merged[token - first] = self._token_rows[place]
        return merged, start

    def _start(self, first: int, last: int) -> torch.Tensor:
        import torch

        source = self._output.source
        there = min(last, source.rows)
        if there < last:  # rows of new tokens, all of which the change sets
            start = torch.zeros(last - first, self._output.width)
            if first < there:
                start[: there - first] = self._reader.rows(source, first, there)
            return start
        return self._reader.rows(source, first, last).to(torch.float32, copy=True)

    def _delta(self, lora: Lora, first: int, last: int) -> torch.Tensor:
        import torch

        if lora.layout == "linear":
            return torch.mm(self._b[first:last], self._a).mul_(lora.scale)
        # W's rows are A's columns: only those are multiplied.
        return torch.mm(self._b, self._a[:, first:last]).t().mul(lora.scale)

    def _scaled(self, merged: torch.Tensor, first: int, last: int) -> torch.Tensor:
        import torch

        norm = torch.linalg.norm(merged, dim=1).view(-1, 1)
        return (self._magnitude[first:last] / norm) * merged


def rounded(exact: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """`exact` in the target dtype. Raises AdapterError where it does not fit into its range."""
    import torch

    result = exact.to(getattr(torch, DTYPES[dtype][0]))
    if dtype == "F16" and not bool(torch.isfinite(result).all()):
        raise AdapterError(
            f"{name}: merged values do not fit into fp16 (or the adapter holds no numbers): "
            "use --dtype bf16 or fp32"
        )
    return result


def loss(exact: torch.Tensor, start: torch.Tensor, result: torch.Tensor) -> Loss:
    """The rounding loss of one piece."""
    import torch

    error = (result.to(torch.float32) - exact).flatten()
    delta = (exact - start).flatten()
    return Loss(float(error.dot(error)), float(delta.dot(delta)), exact.numel())
