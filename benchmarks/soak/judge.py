"""Whether memory is flat: a straight line through the second half, and how sure it is."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CERTAIN = 1.96  # standard errors on either side of a 95 % interval


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line: its value at the first point, its rise a second, and half of the 95 % interval of that."""

    first: float
    slope: float
    either_side: float
    seconds: float

    @property
    def growth(self) -> float:
        """The rise from the first point to the last, as a share of the line's first value."""
        return self.slope * self.seconds / self.first if self.first else 0.0


def line(points: Sequence[tuple[float, float]]) -> Line:
    """The line through (seconds, value) points, of which three at least.

    Samples of memory follow one another: their errors are alike, so that n of them say less than n
    would. The uncertainty is widened by what the residuals have in common with their neighbours.
    """
    if len(points) < 3:
        raise ValueError("a line's uncertainty needs three points")
    times, values = [at for at, _ in points], [value for _, value in points]
    slope, intercept = statistics.linear_regression(times, values)
    residuals = [v - intercept - slope * t for t, v in points]
    middle = statistics.fmean(times)
    spread = sum((t - middle) ** 2 for t in times)
    squares = sum(r * r for r in residuals)
    error = math.sqrt(squares / (len(points) - 2) / spread)
    alike = _alike(residuals, squares)
    error *= math.sqrt((1 + alike) / (1 - alike))
    first = intercept + slope * times[0]
    return Line(first, slope, CERTAIN * error, times[-1] - times[0])


def _alike(residuals: Sequence[float], squares: float) -> float:
    """Lag-1 autocorrelation; none where the points lie on the line."""
    if squares <= 0:
        return 0.0
    products = sum(a * b for a, b in itertools.pairwise(residuals))
    return min(max(products / squares, 0.0), 0.95)


def second_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of the later half of the time."""
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]


def at_share(points: Sequence[tuple[float, float]], share: float) -> float:
    """The value of the point nearest to a share of the time."""
    begin, end = points[0][0], points[-1][0]
    wanted = begin + share * (end - begin)
    return min(points, key=lambda point: abs(point[0] - wanted))[1]


def faults(
    errors: int, lines: dict[str, Line], files: dict[str, tuple[int, int]], bound: float, more: int
) -> list[str]:
    """Why a soak failed, in words; nothing if it did not.

    `lines` are the processes' memory over the second half, `files` how many they had open before
    the first call and after the last client had left.
    """
    told = [f"{errors:,} errors"] if errors else []
    told += [
        f"{name} grew by {line.growth:.1%} over the second half (bound {bound:.0%})"
        for name, line in lines.items()
        if line.growth > bound
    ]
    told += [
        f"{name} has {after} files open after everybody left, {before} before anybody came"
        for name, (before, after) in files.items()
        if after > before + more
    ]
    return told
