"""The data card's pictures: how long the rows are, and how much of each source was kept.

Labels are English, so that no Korean font is needed; the colours are those of Okabe and Ito, which
colour-blind readers can distinguish. The same summary gives the same bytes under one version of matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..schema import LENGTHS_PICTURE, SOURCES_PICTURE
from .summary import EDGES, FIELDS, Lengths, SourceSummary, Summary

WIDTH = 9.0  # inches; the file is 1,800 px wide and the card shows it at 900 px
DPI = 200
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
STYLE: Any = {  # Any, since matplotlib's own type lists every key
    "font.family": "DejaVu Sans",  # the font that comes with matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
}


def draw(summary: Summary, folder: Path) -> list[str]:
    """Write the pictures below `folder`; returns their paths in it, [] if no source was read."""
    if not summary.sources:
        return []
    (folder / SOURCES_PICTURE).parent.mkdir(parents=True, exist_ok=True)
    draw_functions = {SOURCES_PICTURE: _sources}
    if any(source.lengths for source in summary.sources):
        draw_functions[LENGTHS_PICTURE] = _lengths
    # "default" first: a person's own matplotlibrc must not change the bytes
    with style.context("default", after_reset=True), rc_context(STYLE):
        for name, draw_figure in draw_functions.items():
            draw_figure(summary).savefig(folder / name, dpi=DPI, metadata={"Software": None})
    return list(draw_functions)


def _label(source: SourceSummary, width: int) -> str:
    return fill(source.title if source.title.isascii() else source.name, width)


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _lengths(summary: Summary) -> Figure:
    """Histograms: a row per source, a column per field, all on one x axis (characters)."""
    sources = [source for source in summary.sources if source.lengths]
    figure = _figure(1.2 + 1.55 * len(sources))
    panels = figure.subplots(len(sources), len(FIELDS), sharex=True, sharey="row", squeeze=False)
    for row, source in zip(panels, sources, strict=True):
        for axes, field in zip(row, FIELDS, strict=True):
            _histogram(axes, source.lengths.get(field, Lengths()))
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{_label(source, 18)}\n{source.counts.rows:,} rows")
    longest = max(lengths.max for source in sources for lengths in source.lengths.values())
    ticks = [10**power for power in range(7) if 10**power <= max(longest, 10) * 3]
    panels[0, 0].set(xscale="log", xlim=(0.9, max(longest * 1.6, 20)))
    panels[0, 0].set_xticks(ticks, ["1", "10", "100", "1k", "10k", "100k", "1M"][: len(ticks)])
    panels[0, 0].minorticks_off()
    for axes, field in zip(panels[0], FIELDS, strict=True):
        axes.set_title(f"{field}\n{axes.get_title()}", fontsize=9)
    axis_label = "length in characters (log scale, two bars per factor of 2)"
    figure.supxlabel(f"{axis_label} | share of the source's rows", fontsize=9)
    return figure


def _histogram(axes: Axes, lengths: Lengths) -> None:
    """A bar per range of lengths: its share of all rows.

    The lines are the median and the 99th percentile of the rows in which the field is not empty.
    """
    if lengths.rows == lengths.empty:
        axes.set_title("always empty", fontsize=9)
        return
    shares = [rows / lengths.rows for rows in lengths.bins]
    axes.stairs(shares, [*EDGES, EDGES[-1] * 2], fill=True, color=BLUE, alpha=0.75)
    axes.axvline(lengths.p50, color="black", lw=1.4)
    axes.axvline(lengths.p99, color=ORANGE, lw=1.4, ls="--")
    empty = f", empty {lengths.empty / lengths.rows:.0%}" if lengths.empty else ""
    axes.set_title(f"median {lengths.p50:,}, p99 {lengths.p99:,}{empty}", fontsize=9)


def _sources(summary: Summary) -> Figure:
    """A bar per source: its kept and its rejected units, both numbers at the bar's end."""
    sources = summary.sources
    figure = _figure(0.7 + 0.42 * len(sources))
    axes = figure.subplots()
    positions = range(len(sources))
    kept = [source.counts.kept_units for source in sources]
    rejected = [source.counts.rejected_units for source in sources]
    longest = max(1, *map(sum, zip(kept, rejected, strict=True)))
    axes.barh(positions, kept, 0.62, color=BLUE, label="kept")
    axes.barh(positions, rejected, 0.62, kept, color=ORANGE, hatch="////", label="rejected")
    for at, source in enumerate(sources):
        text = f" {kept[at]:,} {source.unit} kept, {rejected[at]:,} rejected"
        axes.text(kept[at] + rejected[at], at, text, va="center")
    axes.set_yticks(positions, [_label(source, 22) for source in sources])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.62)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure
