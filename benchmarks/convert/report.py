"""From runs to figures: the table, the targets, the picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.convert.contenders import ALL_CORES, NEAR, PARSERS, Contender
from benchmarks.convert.measure import Measured

MEMORY_LIMIT = 300e6  # bytes a process of ours


@dataclass(slots=True)
class Result:
    """All runs of one contender. `seconds` holds parsers' own seconds a file, one dict a run."""

    contender: Contender
    runs: list[Measured] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    rows_out: int | None = None
    failure: str | None = None

    @property
    def wall(self) -> float:
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak(self) -> int:
        return max(run.peak for run in self.runs)

    @property
    def rate(self) -> float:
        """Bytes of uncompressed input a second."""
        return self.contender.input.bytes / self.wall

    @property
    def cpu_rate(self) -> float:
        """Bytes of input a CPU second."""
        return self.contender.input.bytes / self.cpu

    def figures(self) -> dict[str, object]:
        """This line for a JSON file."""
        given = self.contender.input
        base: dict[str, object] = {"contender": self.contender.name, "input": given.name}
        if not self.runs:
            return {**base, "failure": self.failure}
        return {
            **base,
            "runs": len(self.runs),
            "input_bytes": given.bytes,
            "input_rows": given.rows,
            "rows_out": self.rows_out,
            "wall_s": [round(run.wall, 3) for run in self.runs],
            "cpu_s": [round(run.cpu, 3) for run in self.runs],
            "rows_a_second": round(given.rows / self.wall),
            "input_mb_a_second": round(self.rate / 1e6, 2),
            "input_mb_a_cpu_second": round(given.bytes / self.cpu / 1e6, 2),
            "peak_process_mb": round(self.peak / 1e6, 1),
            "peak_sum_mb": round(max(run.peak_sum for run in self.runs) / 1e6, 1),
            "seconds_a_file": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """One thing the converter shall show; `figure` is None where a side is missing."""

    what: str
    figure: float | None
    wanted: float
    unit: str = "x"
    at_most: bool = False

    @property
    def passed(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure <= self.wanted if self.at_most else self.figure >= self.wanted

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "pass", False: "FAIL"}[self.passed]


def fastest_parse(results: Sequence[Result]) -> tuple[float, dict[str, str]] | None:
    """Seconds of the fastest parser of each file, added up, and which it was."""
    medians: dict[str, dict[str, float]] = {}
    for result in results:
        if result.contender.name in PARSERS:
            for file in result.seconds[0] if result.seconds else ():
                own = statistics.median(run[file] for run in result.seconds)
                medians.setdefault(file, {})[result.contender.name] = own
    if not medians:
        return None
    best = {file: min(own, key=own.__getitem__) for file, own in medians.items()}
    return sum(medians[file][name] for file, name in best.items()), best


def targets(results: Sequence[Result]) -> list[Target]:
    """The converter's targets; peers on a slice are compared by rate."""
    found = {(r.contender.name, r.contender.input.name.split(",")[0]): r for r in results if r.runs}
    made = []
    for part, wall, cpu in (("text", 2.5, 1.5), ("korquad2", 6.0, 4.5)):
        ours, plain, hub = (found.get((name, part)) for name in (ALL_CORES, "plain", "datasets"))
        ratio = ours.rate / plain.rate if ours and plain else None
        made.append(Target(f"{part}: rate beside `plain`", ratio, wall))
        ratio = ours.cpu_rate / plain.cpu_rate if ours and plain else None
        made.append(Target(f"{part}: rate a CPU second beside `plain`", ratio, cpu))
        ratio = ours.rate / hub.rate if ours and hub else None
        made.append(Target(f"{part}: rate beside `datasets`", ratio, 2.0))
    mine = [r.peak for r in results if r.contender.ours and r.runs and r.contender.name != NEAR]
    peak = max(mine) / 1e6 if mine else None
    made.append(Target("peak memory of a process", peak, MEMORY_LIMIT / 1e6, "MB", at_most=True))
    return made


def table(results: Sequence[Result], judged: bool = True) -> str:
    """Both Markdown tables: the figures, then the targets; `judged` where the size allows a verdict."""
    lines = [
        (
            "| input | contender | runs | wall s | CPU s | rows/s | MB/s | MB/CPU s | beside kodolly | "
            "largest process MB | all processes MB |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = {r.contender.input.name: r for r in results if r.contender.name == ALL_CORES and r.runs}
    for result in sorted(results, key=lambda r: r.contender.input.name.split(",")[0], reverse=True):
        lines.append(_line(result, ours.get(result.contender.input.name.split(",")[0])))
    lines += ["", "| target | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for target in targets(results):
        verdict = target.verdict if judged else "full size only"
        sign = "<=" if target.at_most else ">="
        figure = "" if target.figure is None else f"{target.figure:,.2f} {target.unit}"
        wanted = f"{sign} {target.wanted:,.2f} {target.unit}"
        lines.append(f"| {target.what} | {wanted} | {figure} | {verdict} |")
    parse = fastest_parse(results)
    if parse:
        lines += ["", f"Fastest parse of the text files: {parse[0]:.2f} s, read and parsed only: "]
        lines += [", ".join(f"{file} {name}" for file, name in parse[1].items()) + "."]
    return "\n".join(lines) + "\n"


def _line(result: Result, ours: Result | None) -> str:
    given = result.contender.input
    if not result.runs:
        return f"| {given.name} | {result.contender.name} | failed: {result.failure} |" + " |" * 8
    cells = [
        given.name,
        result.contender.name,
        str(len(result.runs)),
        f"{result.wall:,.2f}",
        f"{result.cpu:,.2f}",
        f"{given.rows / result.wall:,.0f}",
        f"{result.rate / 1e6:,.1f}",
        f"{given.bytes / result.cpu / 1e6:,.1f}",
        f"{result.rate / ours.rate:,.2f} x" if ours else "",
        f"{result.peak / 1e6:,.0f}",
        f"{max(run.peak_sum for run in result.runs) / 1e6:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def picture(results: Sequence[Result], path: Path) -> None:
    """Bars of input MB a second and of memory, for both kinds of input."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for row, part in enumerate(("text", "korquad2")):
        shown = [r for r in results if r.runs and r.contender.input.name.split(",")[0] == part]
        shown.sort(key=lambda r: r.rate)
        names = [
            r.contender.name + (" (slice)" if r.contender.input.name != part else "") for r in shown
        ]
        colours = ["#1f6f78" if r.contender.ours else "#b7b7b7" for r in shown]
        for column, (title, values) in enumerate(
            (
                (f"{part}: MB of input a second", [r.rate / 1e6 for r in shown]),
                (f"{part}: MB of the largest process", [r.peak / 1e6 for r in shown]),
            )
        ):
            axis = axes[row][column]
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(
                bars, fmt="{:,.0f}" if max(values, default=0) > 20 else "{:,.1f}", padding=3
            )
            axis.set_title(title)
            axis.margins(x=0.15)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
