"""From samples to figures: percentiles, the table, the bar chart."""

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway.plan import Cell

DIRECT = "direct"
COLOURS = ["#c2410c", "#1d4ed8", "#60a5fa", "#a16207", "#15803d", "#7c3aed", "#be123c", "#0f766e"]


@dataclass(slots=True)
class Result:
    """One cell on one target: a list of times for each round, in seconds, and sums of all."""

    target: str
    cell: Cell
    whole: list[list[float]] = field(default_factory=list)
    first: list[list[float]] = field(default_factory=list)
    errors: int = 0
    first_error: str | None = None
    answers: int = 0
    gateway_cpu: float = 0.0
    engine_cpu: float = 0.0
    load_cpu: float = 0.0
    memory: float | None = None  # bytes a stream of an idle cell holds

    @property
    def tokens_per_cpu_second(self) -> float | None:
        tokens = self.answers * self.cell.tokens
        return tokens / self.gateway_cpu if self.gateway_cpu > 0 and tokens else None

    @property
    def requests_per_cpu_second(self) -> float | None:
        return self.answers / self.gateway_cpu if self.gateway_cpu > 0 and self.answers else None

    def figures(self) -> dict[str, object]:
        """The figures of this result for a JSON file; milliseconds."""
        whole, first = pooled(self.whole), pooled(self.first)
        return {
            "target": self.target,
            "cell": self.cell.name,
            "answers": self.answers,
            "errors": self.errors,
            "first_error": self.first_error,
            "p50_ms": _ms(percentile(whole, 50)),
            "p99_ms": _ms(percentile(whole, 99)),
            "first_p50_ms": _ms(percentile(first, 50)),
            "first_p99_ms": _ms(percentile(first, 99)),
            "gateway_cpu_s": round(self.gateway_cpu, 3),
            "engine_cpu_s": round(self.engine_cpu, 3),
            "load_cpu_s": round(self.load_cpu, 3),
            "kib_per_idle_stream": self.memory and round(self.memory / 1024, 1),
            "tokens_per_gateway_cpu_s": self.tokens_per_cpu_second
            and round(self.tokens_per_cpu_second),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure for each target. `better`: +1 if more is better, else -1."""

    title: str
    concurrency: int
    unit: str
    better: int
    values: dict[str, float | None]


def percentile(values: Sequence[float], rank: float) -> float | None:
    """Nearest-rank percentile; None of nothing. Of fewer than 100 values p99 is the largest."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(rank / 100 * len(ordered)) - 1)]


def pooled(rounds: Sequence[Sequence[float]]) -> list[float]:
    """All rounds together."""
    return [value for values in rounds for value in values]


def added(
    rounds: Sequence[Sequence[float]], base: Sequence[Sequence[float]], rank: float
) -> float | None:
    """What a gateway adds to a percentile of `base`: the median over rounds of the difference.

    The rounds alternate between targets, so a slow minute of the machine hits both and falls out.
    """
    pairs = [(percentile(a, rank), percentile(b, rank)) for a, b in zip(rounds, base, strict=False)]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return statistics.median(gaps) if gaps else None


def rows(results: Sequence[Result], targets: Sequence[str]) -> list[Row]:
    """The table: what each gateway adds to `direct`, then whole times, CPU and errors."""
    by = {(result.target, result.cell): result for result in results}
    cells = list(dict.fromkeys(result.cell for result in results))
    table: list[Row] = []
    for cell in cells:
        # A gateway too slow for a cell has no figures there.
        of = {name: by.get((name, cell), Result(name, cell)) for name in targets}
        if cell.kind == "stream":
            table += _stream_rows(cell, of)
        elif cell.kind == "idle":
            table += _idle_rows(cell, of)
        else:
            table += _added_rows(cell, of)
    table.sort(key=lambda row: (_ORDER.index(row.title.split(",")[0]), row.title, row.concurrency))
    return table


_ORDER = [
    "added latency",
    "added time to first token",
    "streamed tokens a CPU second",
    "requests a CPU second",
    "whole stream",
    "memory of 1000 idle streams",
    "errors",
]


def _added_rows(cell: Cell, of: dict[str, Result]) -> list[Row]:
    what = "added latency" if cell.kind == "whole" else "added time to first token"
    times = {n: r.whole if cell.kind == "whole" else r.first for n, r in of.items()}
    table = []
    for rank in (50, 99):
        own = percentile(pooled(times[DIRECT]), rank)
        values: dict[str, float | None] = {DIRECT: None if own is None else own * 1000}
        for name in of:
            if name != DIRECT:
                gap = added(times[name], times[DIRECT], rank)
                values[name] = None if gap is None else gap * 1000
        table.append(Row(f"{what}, p{rank}", cell.concurrency, "ms", -1, values))
    if cell.kind == "whole":
        rate = {name: result.requests_per_cpu_second for name, result in of.items()}
        if any(rate.values()):
            table.append(Row("requests a CPU second", cell.concurrency, "tok", 1, rate))
    table.append(_errors(cell, of))
    return table


def _idle_rows(cell: Cell, of: dict[str, Result]) -> list[Row]:
    held = {n: None if r.memory is None else r.memory * 1000 / 2**20 for n, r in of.items()}
    title = "memory of 1000 idle streams"
    return [Row(title, cell.concurrency, "MiB", -1, held), _errors(cell, of)]


def _stream_rows(cell: Cell, of: dict[str, Result]) -> list[Row]:
    medians = {n: percentile(pooled(r.whole), 50) for n, r in of.items()}
    cpu = {n: r.tokens_per_cpu_second for n, r in of.items()}
    size, level = f"{cell.tokens} tokens", cell.concurrency
    return [
        Row(f"streamed tokens a CPU second, {size}", level, "tok", 1, cpu),
        Row(f"whole stream, {size}, p50", level, "s", -1, medians),
        _errors(cell, of),
    ]


def _errors(cell: Cell, of: dict[str, Result]) -> Row:
    values: dict[str, float | None] = {name: float(result.errors) for name, result in of.items()}
    return Row(f"errors, {cell.kind} {cell.tokens}", cell.concurrency, "", -1, values)


def ratio(row: Row, ours: str, theirs: str) -> str:
    """How many times better `ours` is than `theirs`; empty where that says nothing."""
    a, b = row.values.get(ours), row.values.get(theirs)
    if a is None or b is None or a <= 0 or b <= 0 or row.title.startswith("errors"):
        return ""
    return f"{(a / b if row.better > 0 else b / a):.1f}x"


def table(lines: Sequence[Row], targets: Sequence[str], ours: str, theirs: str) -> str:
    """Markdown. Lines of errors are shown only where there were any."""
    compared = ours in targets and theirs in targets
    others = [name for name in targets if name != DIRECT and not name.startswith(ours)]
    many = ours in targets and len(others) > 1
    named = [f"{name} (itself)" if name == DIRECT else name for name in targets]
    head = ["figure", "at once", *named] + ([f"{ours} against {theirs}"] if compared else [])
    head += ["against the best other"] if many else []
    out = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in lines:
        if row.title.startswith("errors") and not any(row.values.values()):
            continue
        cells = [_value(row.values.get(name), row.unit) for name in targets]
        last = [ratio(row, ours, theirs)] if compared else []
        last += [_against_best(row, ours, others)] if many else []
        out.append(_line([row.title, str(row.concurrency), *cells, *last]))
    return "\n".join(out)


def _against_best(row: Row, ours: str, others: Sequence[str]) -> str:
    """Ours against the best of the others, by name; a gateway that adds nothing has no ratio."""
    values = {name: value for name in others if (value := row.values.get(name)) is not None}
    if not values or row.title.startswith("errors"):
        return ""
    best = max(values, key=lambda name: values[name] * row.better)
    said = ratio(row, ours, best)
    return f"{said} ({best})" if said else f"({best})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "tok" or not unit:
        return f"{value:,.0f}"
    return f"{value:.2f} {unit}" if abs(value) < 10 else f"{value:,.1f} {unit}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def machine() -> str:
    """The machine in a line: processor, cores, Python."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [x.partition(":")[2].strip() for x in info.splitlines() if x.startswith("model name")]
    processor = f"{len(names)} cores of {names[0]}" if names else platform.machine()
    return f"{processor}, Linux, Python {platform.python_version()}; shared and noisy"


def chart(lines: Sequence[Row], targets: Sequence[str]) -> str:
    """An SVG of horizontal bars on a logarithmic scale, one group a figure."""
    groups = [row for row in lines if _charted(row)]
    names = [name for name in targets if name != DIRECT]
    wide = 1 + (len(names) - 1) // 3  # lines of the legend
    colours = [COLOURS[at % len(COLOURS)] for at in range(len(names))]
    step = 16 * len(names) + 26
    height = 30 + 20 * wide + step * len(groups)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="760" height="{height}" fill="white"/>',
    ]
    for i, name in enumerate(names):
        x, y = 20 + 200 * (i % 3), 12 + 20 * (i // 3)
        out.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[i]}"/>')
        out.append(f'<text x="{x + 18}" y="{y + 10}">{name}</text>')
    out.append('<text x="740" y="22" text-anchor="end">logarithmic</text>')
    for g, row in enumerate(groups):
        top = 24 + 20 * wide + g * step
        want = "more is better" if row.better > 0 else "less is better"
        title = f"{row.title}, {row.concurrency} at once ({want})"
        out.append(f'<text x="20" y="{top + 10}" font-weight="bold">{title}</text>')
        out += _bars(row, names, colours, top + 16)
    return "\n".join([*out, "</svg>", ""])


def _charted(row: Row) -> bool:
    wanted = ("added latency, p50", "added time to first token, p50")
    return row.title in wanted or row.title.startswith("streamed tokens")


def _bars(row: Row, names: Sequence[str], colours: Sequence[str], top: int) -> list[str]:
    values = {name: max(row.values.get(name) or 0.0, 0.01) for name in names}
    low = math.log10(min(values.values())) - 0.5
    span = math.log10(max(values.values())) - low
    out = []
    for i, name in enumerate(names):
        width = 560 * (math.log10(values[name]) - low) / span
        y = top + 16 * i
        shown = _value(row.values.get(name), row.unit)
        out.append(f'<rect x="20" y="{y}" width="{width:.0f}" height="13" fill="{colours[i]}"/>')
        out.append(f'<text x="{26 + width:.0f}" y="{y + 11}">{shown}</text>')
    return out
