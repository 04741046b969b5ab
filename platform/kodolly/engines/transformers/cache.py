"""Keys and values of every running row, in one block per layer that grows with the longest row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIRST_CAPACITY = 256  # tokens a row before the first growth


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one layer keeps for one token: `heads` x `head_dim` numbers, twice."""

    layers: int
    heads: int
    head_dim: int


class SlotCache:
    """Row i of every layer belongs to the i-th running request; its tokens start at position 0.

    Given to a transformers model as `past_key_values`: the attention layers call `update`, which
    stores what `aim` pointed it at. Blocks are (slots, heads, capacity, head_dim).
    """

    def __init__(self, shape: CacheShape, slots: int, longest: int, like: Any) -> None:
        """`longest`: tokens a row may reach; `like`: a tensor whose dtype and device are taken."""
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
        """Make room for rows of `length` tokens, doubling so that growth stays rare."""
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
        """Give the memory back; only while no row is in use."""
        self._keys, self._values, self.capacity = [], [], 0

    def aim_chunk(self, row: int, start: int, count: int) -> None:
        """The next forward stores `count` tokens of one row from `start` on."""
        self._rows, self._places = slice(row, row + 1), slice(start, start + count)
        self._view = (row, row + 1, start + count)

    def aim_batch(self, positions: Any, longest: int) -> None:
        """The next forward stores one token for each of the first rows, at `positions` (B,)."""
        import torch

        count = positions.shape[0]
        self._rows = torch.arange(count, device=positions.device)
        self._places = positions
        self._view = (0, count, longest)

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Store (B, heads, q, head_dim) where `aim_*` said; the rows' whole keys and values."""
        first, last, length = self._view
        for block, new in ((self._keys[layer], keys), (self._values[layer], values)):
            # Index tensors around a slice move the batch to the front: (B, heads, head_dim).
            part = new if isinstance(self._rows, slice) else new[:, :, 0]
            block[self._rows, :, self._places] = part
        return (
            self._keys[layer][first:last, :, :length],
            self._values[layer][first:last, :, :length],
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """Overwrite row `target` with the first `length` tokens of row `source`."""
        for block in (*self._keys, *self._values):
            block[target, :, :length] = block[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        for block in (*self._keys, *self._values):
            kept = block[one, :, :length].clone()
            block[one, :, :length] = block[other, :, :length]
            block[other, :, :length] = kept

    def _grown(self, blocks: list[Any], capacity: int) -> list[Any]:
        shape = (self.slots, self.shape.heads, capacity, self.shape.head_dim)
        # Zeros, not garbage: masked places are multiplied by 0, and 0 x NaN is NaN.
        fresh = [self._like.new_zeros(shape) for _ in range(self.shape.layers)]
        for new, old in zip(fresh, blocks, strict=False):
            new[:, :, : self.capacity] = old
        return fresh
