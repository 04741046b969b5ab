"""From samples to figures, Markdown, JSON and the picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak.judge import Line, at_share, line, second_half
from benchmarks.soak.memory import Held, Sample

MIB = 2**20
COLOURS = {"api": "#1d4ed8", "controller": "#a16207"}


@dataclass(slots=True)
class Run:
    """All that a soak has measured. `before` any call, `after` the last client had left."""

    head: str
    samples: list[Sample]
    before: Sample
    after: Sample
    ended: dict[str, int]
    events: int
    errors: dict[str, int]
    examples: list[str]
    faults: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The processes."""
        return list(self.before.held)

    def points(self, name: str, what: str = "own") -> list[tuple[float, float]]:
        """(seconds, bytes or number) of a process."""
        return [(sample.at, getattr(sample.held[name], what)) for sample in self.samples]

    def line(self, name: str) -> Line:
        """A process's memory over the second half."""
        return line(second_half(self.points(name)))

    def files(self) -> dict[str, tuple[int, int]]:
        """Files open before any call and after the last, of each process."""
        return {n: (self.before.held[n].files, self.after.held[n].files) for n in self.names}


def text(run: Run) -> str:
    """The Markdown of a run."""
    calls = sum(run.ended.values()) + sum(run.errors.values())
    kinds = "".join(f", {count:,} x {why}" for why, count in run.errors.items())
    rows = [["", *run.names]]
    for share, said in ((0.0, "beginning"), (0.25, "1/4"), (0.5, "1/2"), (1.0, "end")):
        rows.append([f"own memory, {said}", *(_mb(run, n, "own", share) for n in run.names)])
    for what, said in (("pss", "PSS"), ("uss", "USS"), ("rss", "RSS")):
        cells = [f"{_mb(run, n, what, 0.5)}, {_mb(run, n, what, 1.0)}" for n in run.names]
        rows.append([f"{said}, 1/2 and end", *cells])
    lines = [run.line(name) for name in run.names]
    rows.append(["slope of the second half", *map(_slope, lines)])
    rows.append(["growth over the second half", *(f"{each.growth:+.2%}" for each in lines)])
    for what in ("files", "sockets"):
        rows.append(
            [f"open {what}: before, 1/2, end, after", *(_open(run, n, what) for n in run.names)]
        )
    counted = [
        ["", "figure"],
        ["calls", f"{calls:,}"],
        ["streams read to their end", f"{run.ended.get('stream', 0):,}"],
        ["answers that were not streamed", f"{run.ended.get('whole', 0):,}"],
        ["left in the middle", f"{run.ended.get('left', 0):,}"],
        ["events", f"{run.events:,}"],
        ["open at a time, mean", f"{_mean([sample.open for sample in run.samples]):.1f}"],
        ["errors", f"{sum(run.errors.values()):,}{kinds}"],
    ]
    verdict = "; ".join(run.faults) if run.faults else "memory is flat, no errors"
    return "\n".join([run.head, "", *_table(counted), "", *_table(rows), "", f"**{verdict}**", ""])


def as_json(run: Run) -> str:
    """The same, and every sample, for machines."""
    lines = {name: asdict(run.line(name)) | {"growth": run.line(name).growth} for name in run.names}
    facts: dict[str, Any] = {
        "head": run.head,
        "faults": run.faults,
        "ended": run.ended,
        "events": run.events,
        "errors": run.errors,
        "examples": run.examples,
        "second_half": lines,
    }
    out = json.dumps(facts, indent=1, ensure_ascii=False)[:-2]
    samples = [run.before, *run.samples, run.after]
    rows = ",\n  ".join(json.dumps(asdict(sample)) for sample in samples)
    return f'{out},\n "samples": [\n  {rows}\n ]\n}}\n'


def draw(run: Run, path: Path) -> None:
    """Writes an SVG: memory with the fitted line, open calls and files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (memory, held) = pyplot.subplots(
        2, 1, sharex=True, figsize=(11, 6), height_ratios=(3, 2), layout="constrained"
    )
    for name in run.names:
        colour = COLOURS.get(name)
        for what, style, said in (("own", "-", "own"), ("pss", ":", "PSS")):
            points = run.points(name, what)
            x, y = [at / 60 for at, _ in points], [value / MIB for _, value in points]
            memory.plot(x, y, style, color=colour, label=f"{name}, {said}", linewidth=1.2)
        fitted = run.line(name)
        end = run.samples[-1].at
        ends = [(end - fitted.seconds) / 60, end / 60]
        values = [fitted.first / MIB, (fitted.first + fitted.slope * fitted.seconds) / MIB]
        memory.plot(ends, values, color="#dc2626", linewidth=1, label=f"{name}: {_slope(fitted)}")
        files = [sample.held[name].files for sample in run.samples]
        held.plot([s.at / 60 for s in run.samples], files, color=colour, label=f"{name}, files")
    held.plot(
        [sample.at / 60 for sample in run.samples],
        [sample.open for sample in run.samples],
        color="#15803d",
        label="calls",
    )
    memory.set_ylabel("MB")
    held.set_ylabel("open")
    held.set_xlabel("minutes")
    for axis in (memory, held):
        axis.set_ylim(bottom=0)
        axis.legend(loc="lower right", fontsize=8, ncols=3)
    figure.savefig(path)
    pyplot.close(figure)


def _slope(fitted: Line) -> str:
    per_hour = 3600 / MIB
    return f"{fitted.slope * per_hour:+.2f} ± {fitted.either_side * per_hour:.2f} MB/h"


def _mb(run: Run, name: str, what: str, share: float) -> str:
    return f"{at_share(run.points(name, what), share) / MIB:.1f} MB"


def _open(run: Run, name: str, what: str) -> str:
    def count(held: Held) -> str:
        return str(getattr(held, what))

    middle, end = (f"{at_share(run.points(name, what), share):.0f}" for share in (0.5, 1.0))
    return ", ".join([count(run.before.held[name]), middle, end, count(run.after.held[name])])


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]
