"""The attention keys and values of all rows: one block for each layer, as long as the longest row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIRST_CAPACITY = 256  # tokens in a row when a block is first allocated


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The size of a cache: each layer has `heads` x `head_dim` keys and as many values for a token."""

    layers: int
    heads: int
    head_dim: int


class SlotCache:
    """The cache of up to `slots` rows. Row i belongs to the i-th running answer.

    A transformers model gets it as `past_key_values`. Its attention layers call `update`, which
    stores at the place that `aim_chunk` or `aim_batch` has set before. Each block has the shape
    (slots, heads, capacity, head_dim).
    """

    def __init__(self, shape: CacheShape, slots: int, longest: int, like: Any) -> None:
        """`longest`: most tokens of a row. `like`: a tensor with the dtype and device to use."""
        self.shape = shape
        self.slots = slots
        self.longest = longest
        self.capacity = 0
        self._like = like
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._rows: Any = slice(0)
        self._places: Any = slice(0)
        self._view = (0, 0, 0)

    def reserve(self, length: int) -> None:
        """Makes room for rows of `length` tokens; grows to double the size, so that it happens rarely."""
        if length <= self.capacity:
            return
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, self.longest)
        self._keys = self._grown(self._keys, capacity)
        self._values = self._grown(self._values, capacity)
        self.capacity = capacity

    def release(self) -> None:
        """Frees the memory; only while no row is in use."""
        self._keys, self._values, self.capacity = [], [], 0

    def aim_chunk(self, row: int, start: int, count: int) -> None:
        """Lets the next forward pass store `count` tokens of one row from position `start`."""
        self._rows, self._places = slice(row, row + 1), slice(start, start + count)
        self._view = (row, row + 1, start + count)

    def aim_batch(self, positions: Any, longest: int) -> None:
        """Lets the next forward pass store one token for each of the first rows, at `positions` (B,).

        `longest`: tokens of the longest of these rows.
        """
        import torch

        count = positions.shape[0]
        self._rows = torch.arange(count, device=positions.device)
        self._places = positions
        self._view = (0, count, longest)

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Stores (B, heads, q, head_dim) where `aim_*` has set it; returns the rows' keys and values."""
        first, last, length = self._view
        for block, new in ((self._keys[layer], keys), (self._values[layer], values)):
            # Two index tensors with a slice between them: PyTorch expects (B, heads, head_dim).
            part = new if isinstance(self._rows, slice) else new[:, :, 0]
            block[self._rows, :, self._places] = part
        return (
            self._keys[layer][first:last, :, :length],
            self._values[layer][first:last, :, :length],
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """Overwrites row `target` with the first `length` tokens of row `source`."""
        for block in (*self._keys, *self._values):
            block[target, :, :length] = block[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first `length` tokens of two rows."""
        for block in (*self._keys, *self._values):
            copy = block[one, :, :length].clone()
            block[one, :, :length] = block[other, :, :length]
            block[other, :, :length] = copy

    def _grown(self, blocks: list[Any], capacity: int) -> list[Any]:
        shape = (self.slots, self.shape.heads, capacity, self.shape.head_dim)
        # Zeros, since unset memory may hold NaN: masked positions are multiplied by 0, and 0 x NaN is NaN.
        fresh = [self._like.new_zeros(shape) for _ in range(self.shape.layers)]
        for new, old in zip(fresh, blocks, strict=False):
            new[:, :, : self.capacity] = old
        return fresh
