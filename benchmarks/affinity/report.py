"""From outcomes to the table, the JSON file and the picture."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.affinity.simulate import Outcome

TARGET_RATE, TARGET_LOAD = 0.95, 1.25


@dataclass(frozen=True)
class Line:
    """One setup at one load: averages over the seeds, but the worst of the loads."""

    cell: str
    setup: str
    by_ideal: float
    cached: float
    busy_worst: float
    served_worst: float
    moment_worst: float
    open_mean: float
    first_p50: float
    first_p99: float
    turns: int


def line(cell: str, ideals: Sequence[Outcome], outcomes: Sequence[Outcome]) -> Line:
    """One setup's outcomes of all seeds, beside the one-worker ideal's of the same seeds."""
    return Line(
        cell,
        outcomes[0].setup.name,
        mean(o.cached / ideal.cached for o, ideal in zip(outcomes, ideals, strict=True)),
        mean(o.cached for o in outcomes),
        max(o.busy_worst for o in outcomes),
        max(o.served_worst for o in outcomes),
        mean(o.moment_worst for o in outcomes),
        mean(o.open_mean for o in outcomes),
        mean(o.first_token[0] for o in outcomes),
        mean(o.first_token[1] for o in outcomes),
        sum(o.turns for o in outcomes),
    )


def markdown(lines: Sequence[Line], cells: dict[str, str], command: str, micros: str) -> str:
    """The whole report."""
    parts = [
        "# Prefix affinity\n",
        (
            f"`{command}`, Python {platform.python_version()}. The router, its policies and the"
            " workers' table are the real ones; engines and people are simulated (README beside).\n"
        ),
        (
            "- cached: prompt tokens found in the prefix cache, of all; beside it the share of what"
            " one worker with everybody's cache would find (target >= 0.95)"
        ),
        (
            "- worst load: requests open on average at the busiest worker by the mean worker's"
            " (target <= 1.25); in brackets the same of requests served, and at the average moment"
        ),
        "- first token: p50 / p99 in the simulation's time, to compare rows only\n",
    ]
    for name, about in cells.items():
        parts += [
            f"## {name}: {about}\n",
            "| setup | cached | of the ideal | worst load | first token, ms | turns |",
            "|---|---|---|---|---|---|",
        ]
        parts += [_row(each) for each in lines if each.cell == name]
        parts.append("")
    parts += ["![cached tokens and worst load](simulated.svg)\n", micros]
    return "\n".join(parts)


def _row(each: Line) -> str:
    return (
        f"| {each.setup} | {each.cached:.3f} | {each.by_ideal:.3f} | {each.busy_worst:.2f}"
        f" ({each.served_worst:.2f}, {each.moment_worst:.2f})"
        f" | {each.first_p50 * 1000:.0f} / {each.first_p99 * 1000:.0f} | {each.turns} |"
    )


def picture(lines: Sequence[Line], path: Path) -> None:
    """Bars of every setup, a group for each load: the rate by the ideal, and the worst load."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys(each.cell for each in lines))
    setups = [s for s in dict.fromkeys(each.setup for each in lines) if not s.startswith("one")]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    width = 0.8 / len(setups)
    for number, setup in enumerate(setups):
        own = {each.cell: each for each in lines if each.setup == setup}
        places = [n + (number - len(setups) / 2 + 0.5) * width for n in range(len(cells))]
        color = f"C{number}"
        axes[0].bar(places, [own[c].by_ideal for c in cells], width, color=color, label=setup)
        axes[1].bar(places, [own[c].busy_worst for c in cells], width, color=color)
    titles = ("cached-token rate, by the one-worker ideal", "busiest worker by the mean")
    for axis, title, target in zip(axes, titles, (TARGET_RATE, TARGET_LOAD), strict=True):
        axis.set_title(title)
        axis.set_xticks(range(len(cells)), cells)
        axis.axhline(target, color="black", linewidth=1, linestyle="--")
        axis.annotate(f"target {target:g}", (-0.48, target), fontsize=8, va="bottom")
    axes[1].set_ylim(0.9, None)
    figure.legend(loc="outside lower center", ncols=len(setups), fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
