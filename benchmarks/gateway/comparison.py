"""The arithmetic of `--against`: from rounds of three versions to ratios, their noise and a verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR = 0.97  # of the earlier code's speed; anything from here on counts as no worse
Figure = tuple[str, int]  # "request" or "token", how many at once


@dataclass(frozen=True, slots=True)
class Measurement:
    """One version in one round: `cpu` seconds a `unit`; medians of whole answers and first tokens in seconds."""

    version: str
    round: int
    unit: str
    concurrency: int
    cpu: float
    whole: float | None
    first: float | None
    errors: int = 0

    @property
    def figure(self) -> Figure:
        return self.unit, self.concurrency


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure's speed beside the earlier code's: more than 1 is better.

    `spread`: within it lie the middle half of the rounds' ratios of the earlier code to itself.
    """

    figure: Figure
    median: float
    spread: tuple[float, float]

    @property
    def is_worse(self) -> bool:
        return self.median < min(FLOOR, self.spread[0])

    def __str__(self) -> str:
        unit, concurrency = self.figure
        low, high = self.spread
        answer = "WORSE" if self.is_worse else "no worse"
        return (
            f"CPU a {unit}, {concurrency} at once: {answer} (speed new/old {self.median:.3f};"
            f" old/old {low:.3f} to {high:.3f}, floor {FLOOR})"
        )


def verdicts(measurements: Sequence[Measurement]) -> list[Verdict]:
    """A verdict for each figure, in the order of measuring."""
    return [_verdict(figure, measurements) for figure in _figures(measurements)]


def _verdict(figure: Figure, measurements: Sequence[Measurement]) -> Verdict:
    old, again, new = (_cpu(name, figure, measurements) for name in ("old", "old again", "new"))
    pairs = zip(old, again, new, strict=True)
    speed = [statistics.fmean((a, b)) / c for a, b, c in pairs if c > 0]
    # Neither of two equals comes first: each round's ratio counts both ways.
    noise = [ratio for a, b in zip(old, again, strict=True) for ratio in (a / b, b / a)]
    low, _, high = statistics.quantiles(noise, n=4)
    return Verdict(figure, statistics.median(speed), (low, high))


def table(measurements: Sequence[Measurement]) -> str:
    """Markdown: CPU of each version and figure (medians of the rounds), and latencies, not judged."""
    lines = ["| figure | at once | old | old again | new |", "| --- | ---: | ---: | ---: | ---: |"]
    names = ("old", "old again", "new")
    for figure in _figures(measurements):
        unit, concurrency = figure
        of = {n: [m for m in measurements if (m.version, m.figure) == (n, figure)] for n in names}
        rows = {
            f"CPU a {unit}": [_median([m.cpu for m in of[n]], 1e6, "us") for n in names],
            f"p50 of a whole {'stream' if unit == 'token' else 'answer'}, not judged": [
                _median([m.whole for m in of[n]], 1e3, "ms") for n in names
            ],
        }
        if unit == "token":
            rows["p50 of the first token, not judged"] = [
                _median([m.first for m in of[n]], 1e3, "ms") for n in names
            ]
        for title, values in rows.items():
            lines.append(f"| {title} | {concurrency} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def _figures(measurements: Sequence[Measurement]) -> list[Figure]:
    return list(dict.fromkeys(m.figure for m in measurements))


def _cpu(version: str, figure: Figure, measurements: Sequence[Measurement]) -> list[float]:
    """CPU seconds of a version, one a round."""
    mine = [m for m in measurements if m.version == version and m.figure == figure]
    return [m.cpu for m in sorted(mine, key=lambda m: m.round)]


def _median(values: Sequence[float | None], scale: float, unit: str) -> str:
    measured = [value for value in values if value is not None]
    return f"{statistics.median(measured) * scale:.2f} {unit}" if measured else ""
