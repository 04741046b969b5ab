"""The data card's pictures: how long the rows are, and what became of each source.

Labels are English, so that no Korean font is needed; colours are Okabe and Ito's, told apart by every
kind of eye. The same summary gives the same bytes under one version of matplotlib.
"""

from __future__ import annotations

import gc
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .summary import EDGES, FIELDS, Lengths, SourceSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTHS = "pictures/lengths.png"
SOURCES = "pictures/sources.png"

WIDTH = 9.0  # inches: 900 px as shown, 1,800 px in the file
DPI = 200
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#1A1A1A", "#8C8C8C"
RC: Any = {  # Any: matplotlib spells out each key as a type
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "xtick.labelcolor": BLACK,
    "axes.titlesize": 11,
}


def prepare() -> None:
    """Import what drawing needs, so that a process that waits for its summary has that behind it.

    No cycles are looked for from here on: the process does nothing but draw.
    """
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.style  # noqa: F401

    gc.disable()


def draw(summary: Summary, folder: Path) -> list[str]:
    """Write the pictures into `folder`; gives their names in it, [] if nothing was read."""
    from matplotlib import rc_context, style

    if not summary.sources:
        return []
    (folder / LENGTHS).parent.mkdir(parents=True, exist_ok=True)
    # "default" first: a person's own matplotlibrc must not change the bytes
    with style.context("default", after_reset=True), rc_context(RC):
        _save(_sources(summary), folder / SOURCES)
        if not any(source.lengths for source in summary.sources):
            return [SOURCES]
        _save(_lengths(summary), folder / LENGTHS)
    return [SOURCES, LENGTHS]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _label(source: SourceSummary) -> str:
    return source.title if source.title.isascii() else source.name


def _lengths(summary: Summary) -> Figure:
    """One row a source, one column a field; all panels share the axis of characters."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = [source for source in summary.sources if source.lengths]
    height = 1.2 + 1.55 * len(shown)
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(len(shown), len(FIELDS), sharex=True, sharey="row", squeeze=False)
    # In inches, since a constrained layout takes as long as all the rest.
    figure.subplots_adjust(
        left=1.15 / WIDTH,
        right=1 - 0.12 / WIDTH,
        bottom=0.62 / height,
        top=1 - 0.55 / height,
        hspace=0.32,
        wspace=0.1,
    )
    longest = max(lengths.max for source in shown for lengths in source.lengths.values())
    for row, source in zip(panels, shown, strict=True):
        for axes, field in zip(row, FIELDS, strict=True):
            _histogram(axes, source.lengths.get(field, Lengths()))
        row[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{fill(_label(source), 18)}\n{source.counts.rows:,} rows")
    _character_axis(panels, longest)
    for axes, field in zip(panels[0], FIELDS, strict=True):
        axes.set_title(field, fontweight="bold", pad=20)
    note = "length in characters (logarithmic: two bars to a doubling)"
    figure.supxlabel(note, fontsize=9.5, y=0.12 / height)
    figure.supylabel("share of the source's rows", fontsize=9.5, x=0.08 / WIDTH)
    return figure


def _character_axis(panels: Any, longest: int) -> None:
    ticks = [10**power for power in range(7) if 10**power <= max(longest, 10) * 3]
    names = ["1", "10", "100", "1k", "10k", "100k", "1M"]
    panels[0][0].set_xscale("log")
    panels[0][0].set_xlim(0.9, max(longest * 1.6, 20))
    panels[0][0].set_xticks(ticks, names[: len(ticks)])
    panels[0][0].minorticks_off()
    for axes in panels.flat:
        axes.tick_params(axis="both", length=3, color=GREY)


def _histogram(axes: Axes, lengths: Lengths) -> None:
    """Share of all rows a bin; the median and the 99th percentile of the rows that have the field."""
    filled = lengths.rows - lengths.empty
    if not filled:
        axes.text(0.5, 0.5, "always empty", transform=axes.transAxes, ha="center", color=GREY)
        return
    ends = (*EDGES[1:], EDGES[-1] * 2)
    bars = [bar for bar in zip(EDGES, ends, lengths.bins, strict=True) if bar[2]]
    starts = [start for start, _, _ in bars]
    widths = [end - start for start, end, _ in bars]
    shares = [rows / lengths.rows for _, _, rows in bars]
    axes.bar(
        starts, shares, widths, align="edge", color=BLUE, alpha=0.75, edgecolor="white", lw=0.5
    )
    axes.axvline(lengths.p50, color=BLACK, lw=1.4)
    axes.axvline(lengths.p99, color=ORANGE, lw=1.4, ls=(0, (3, 1.5)))
    figures = [
        (0.0, "left", f"median {lengths.p50:,}", BLACK),
        (0.5, "center", f"p99 {lengths.p99:,}", ORANGE),
        (1.0, "right", f"empty {lengths.empty / lengths.rows:.0%}" if lengths.empty else "", BLACK),
    ]
    for x, side, text, colour in figures:  # above the panel, where no bar can be
        axes.text(x, 1.04, text, transform=axes.transAxes, ha=side, color=colour, fontsize=9)


def _sources(summary: Summary) -> Figure:
    """A bar a source: units kept and refused, written out at its end."""
    from matplotlib.figure import Figure

    sources = summary.sources
    height = 0.7 + 0.42 * len(sources)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(
        left=1.75 / WIDTH, right=1 - 0.1 / WIDTH, bottom=0.12 / height, top=1 - 0.45 / height
    )
    places = range(len(sources))
    kept = [source.counts.kept for source in sources]
    refused = [sum(source.counts.refused.values()) for source in sources]
    longest = max(max(map(sum, zip(kept, refused, strict=True))), 1)
    axes.barh(places, kept, 0.62, color=BLUE, label="kept")
    axes.barh(
        places,
        refused,
        0.62,
        left=kept,
        color=ORANGE,
        hatch="////",
        ec="white",
        lw=0,
        label="refused",
    )
    for place, ins, outs, source in zip(places, kept, refused, sources, strict=True):
        text = f"{ins:,} {source.unit} kept, {outs:,} refused"
        axes.text(ins + outs + longest * 0.01, place, text, va="center", fontsize=9.5)
    axes.set_yticks(places, [fill(_label(source), 22) for source in sources])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.62)
    axes.xaxis.set_visible(False)
    axes.spines[["bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="upper right", ncols=2, frameon=False)
    return figure
