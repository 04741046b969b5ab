"""The run as a picture: events a second, who was in rotation, the longest silences, the faults."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.clients import Crowd
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.watch import GONE, Watch

COLOURS = {
    "ready": "#16a34a",
    "starting": "#fde68a",
    "stalled": "#ea580c",
    "draining": "#60a5fa",
    "lost": "#dc2626",
    GONE: "#d4d4d8",
}


def draw(
    crowd: Crowd, faults: Sequence[Fault], watch: Watch, workers: dict[str, str], path: Path
) -> None:
    """Writes an SVG; `workers` are URL -> name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    begin = min((o.start for o in crowd.outcomes), default=0.0)
    end = max((o.end for o in crowd.outcomes), default=begin + 1)
    figure, (rate, lanes, silence) = pyplot.subplots(
        3, 1, sharex=True, figsize=(11, 7), height_ratios=(3, 2, 2), layout="constrained"
    )
    seconds = range(int(begin), int(end) + 1)
    rate.plot([s - begin for s in seconds], [crowd.arrived[s] for s in seconds], color="#1d4ed8")
    rate.set_ylabel("events a second\nat the clients")
    rate.set_ylim(bottom=0)
    _lanes(lanes, watch, workers, begin, end)
    for failed, colour, label in ((False, "#71717a", "went on"), (True, "#dc2626", "failed")):
        chosen = [o for o in crowd.outcomes if o.failed is failed and o.ask.way != "whole"]
        silence.scatter(
            [o.gap_at + o.gap - begin for o in chosen],
            [o.gap for o in chosen],
            s=6,
            color=colour,
            label=f"{label} ({len(chosen):,})",
        )
    silence.set_ylabel("longest silence\nof an answer, s")
    silence.set_xlabel("seconds")
    silence.legend(loc="upper right")
    for fault in faults:
        for axis in (rate, lanes, silence):
            axis.axvline(fault.at - begin, color="#a1a1aa", linewidth=0.8, linestyle="--")
        rate.annotate(
            f"{fault.kind}\n{fault.target}",
            (fault.at - begin, 1.0),
            xycoords=("data", "axes fraction"),
            rotation=60,
            fontsize=7,
        )
    figure.savefig(path)
    pyplot.close(figure)


def _lanes(axis: object, watch: Watch, workers: dict[str, str], begin: float, end: float) -> None:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

    assert isinstance(axis, Axes)
    for lane, url in enumerate(workers):
        changes = [(max(at, begin), state) for at, name, state in watch.changes if name == url]
        ends = [at for at, _ in changes[1:]] + [end]
        for (at, state), until in zip(changes, ends, strict=True):
            bar = [(at - begin, max(0.0, until - at))]
            axis.broken_barh(bar, (lane - 0.4, 0.8), facecolor=COLOURS.get(state, "black"))
    axis.set_yticks(range(len(workers)), list(workers.values()))
    axis.invert_yaxis()
    axis.legend(
        handles=[Patch(color=colour, label=state) for state, colour in COLOURS.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.02),
        frameon=False,
        fontsize=7,
        ncols=len(COLOURS),
    )
