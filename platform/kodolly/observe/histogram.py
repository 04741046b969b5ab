"""Counts of durations by bucket: an observation is one search in a tuple and two additions."""

from __future__ import annotations

from bisect import bisect_left

from kodolly.observe.families import Family

# Upper bounds in seconds: from the first token of a cached prompt to an answer of ten minutes.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
LOAD_SECONDS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)


class Histogram:
    """Durations in seconds. `bounds`: upper ends of the buckets, ascending; one more is open."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def fill(self, family: Family, **labels: str) -> None:
        """Adds its samples to `family`: buckets that include all before, sum, count; none if it is empty."""
        total = 0
        if not any(self._counts):
            return
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            family.set(total, "_bucket", **labels, le=str(bound))
        family.set(self._sum, "_sum", **labels)
        family.set(total, "_count", **labels)
