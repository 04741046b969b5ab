"""Which waiting request is next: classes by weight, in a class the keys in turn, a key's in order.

Pure bookkeeping, without time or tasks. Nobody starves: a class of weight 1 beside one of 16 still
gets every seventeenth turn or so, and a key waits for at most one item of every other key.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

# OpenAI's service tiers. A stride is what one turn costs: the class that has paid least is next.
STRIDES = {"priority": 1, "default": 4, "flex": 16}
TIERS = {"priority": "priority", "flex": "flex"}


def class_of(service_tier: object) -> str:
    """The class a request's `service_tier` asks for; what is unknown is `default`."""
    return TIERS.get(service_tier, "default") if isinstance(service_tier, str) else "default"


class _Class(Generic[T]):
    """One priority class: FIFOs by key, in a ring whose first key is next."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.paid = 0
        self.ring: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self.size = 0

    def pop(self) -> T:
        key, fifo = next(iter(self.ring.items()))
        item, _ = fifo.popitem(last=False)
        if fifo:
            self.ring.move_to_end(key)
        else:
            del self.ring[key]
        self.size -= 1
        return item

    def remove(self, item: T, key: str) -> None:
        fifo = self.ring[key]
        del fifo[item]
        if not fifo:
            del self.ring[key]
        self.size -= 1

    def ahead(self, item: T, key: str) -> int:
        """How many of this class come before an item of it."""
        place = list(self.ring[key]).index(item)
        before, count = True, place
        for other, fifo in self.ring.items():
            if other == key:
                before = False
            else:
                count += min(len(fifo), place + 1 if before else place)
        return count


class FairQueue(Generic[T]):
    """Waiting items; each may be in the queue once. All is O(keys) or better."""

    def __init__(self) -> None:
        self._classes: dict[str, _Class[T]] = {name: _Class(s) for name, s in STRIDES.items()}
        self._where: dict[T, tuple[str, str]] = {}
        # What the class served last had paid: one that comes back starts from there.
        self._now = 0

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, item: T) -> bool:
        return item in self._where

    def push(self, item: T, key: str, priority: str) -> None:
        """Appends an item to its key's line in a class."""
        group = self._classes[priority]
        if not group.size:  # an absence earns no turns
            group.paid = max(group.paid, self._now)
        group.ring.setdefault(key, OrderedDict())[item] = None
        group.size += 1
        self._where[item] = (priority, key)

    def pop(self) -> T:
        """Takes the item that is next. Raises IndexError when none waits."""
        if not self._where:
            raise IndexError("nobody waits")
        group = min((g for g in self._classes.values() if g.size), key=lambda g: g.paid)
        self._now = group.paid
        group.paid += group.stride
        item = group.pop()
        del self._where[item]
        if not self._where:  # nobody else waited: no class has to pay for its turns
            self._now = max(g.paid for g in self._classes.values())
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out wherever it stands; False if it does not wait."""
        where = self._where.pop(item, None)
        if where is None:
            return False
        priority, key = where
        self._classes[priority].remove(item, key)
        return True

    def ahead(self, item: T) -> int:
        """About how many come before an item: exact within its class, by weight for the others."""
        priority, key = self._where[item]
        own = self._classes[priority]
        count = own.ahead(item, key)
        turns = (count + 1) * own.stride
        others = (g for g in self._classes.values() if g is not own)
        return count + sum(min(g.size, turns // g.stride) for g in others)

    def crowded_out(self, key: str, priority: str) -> T | None:
        """The item that should make room for a new one of `key`, or None if that one is to go.

        It is the newest of the longest line, if that line, weighed by its class, is longer than
        the new item's own would be: so one key cannot fill the queue against the others.
        """
        own = self._classes[priority]
        mine = (len(own.ring.get(key, ())) + 1) * own.stride
        lines = ((g, fifo) for g in self._classes.values() for fifo in g.ring.values())
        longest = max(
            ((len(fifo) * g.stride, fifo) for g, fifo in lines if len(fifo) > 1),
            key=lambda line: line[0],
            default=None,
        )
        if longest is None or longest[0] <= mine:
            return None
        return next(reversed(longest[1]))
