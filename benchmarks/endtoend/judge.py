"""From blocks of slices to a ratio with its interval, and whether the target is met."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.endtoend.clients import Slice
from benchmarks.endtoend.plan import ENGINE, KODOLLY, TARGET

Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Ratio:
    """KoDolly's tokens a second by the engine's: the mean over blocks and its 95 % interval."""

    mean: float
    low: float
    high: float
    median: float
    blocks: int

    @property
    def missed(self) -> bool:
        """Whether the figures rule the target out."""
        return self.high < TARGET

    @property
    def verdict(self) -> str:
        """In words."""
        if self.missed:
            return f"below {TARGET}"
        return f"at least {TARGET}" if self.low >= TARGET else f"{TARGET} is within the interval"


def rate(slices: Iterable[Slice], way: str) -> float:
    """Tokens a second of one way over some slices."""
    own = [each for each in slices if each.way == way]
    return sum(each.tokens for each in own) / sum(each.seconds for each in own)


def ratio(blocks: Sequence[Sequence[Slice]]) -> Ratio:
    """The geometric mean of the blocks' ratios; of two blocks at least.

    In a block A B B A whatever drifts evenly hits both alike, so its ratio is free of that. The
    blocks are few: the interval is Student's.
    """
    logs = [math.log(rate(block, KODOLLY) / rate(block, ENGINE)) for block in blocks]
    middle = statistics.fmean(logs)
    side = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, mean, high, median = map(
        math.exp, (middle - side, middle, middle + side, statistics.median(logs))
    )
    return Ratio(mean, low, high, median, len(logs))


def student(degrees: int) -> float:
    """The 97.5 % point of Student's t: exact for 1 to 4 degrees, beyond that within 1 %."""
    exact = (12.706, 4.303, 3.182, 2.776)
    if degrees <= len(exact):
        return exact[degrees - 1]
    # Cornish and Fisher's expansion around the normal distribution.
    third = (Z**3 + Z) / (4 * degrees)
    return Z + third + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
