"""The data card's pictures: how long the rows are, and what became of each source.

Labels are English, so that no Korean font is needed; the colours are Okabe and Ito's, told apart by every
kind of eye. The same summary gives the same bytes under one version of matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ..schema import LENGTHS_PICTURE, SOURCES_PICTURE
from .summary import EDGES, FIELDS, Lengths, SourceSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches: 900 px as shown, 1,800 px in the file
DPI = 200
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
STYLE: Any = {  # Any: matplotlib spells out each key as a type
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
}


def draw(summary: Summary, folder: Path) -> list[str]:
    """Write the pictures into `folder`; gives their names in it, [] if nothing was read."""
    from matplotlib import rc_context, style

    if not summary.sources:
        return []
    (folder / SOURCES_PICTURE).parent.mkdir(parents=True, exist_ok=True)
    figures = {SOURCES_PICTURE: _sources}
    if any(source.lengths for source in summary.sources):
        figures[LENGTHS_PICTURE] = _lengths
    # "default" first: a person's own matplotlibrc must not change the bytes
    with style.context("default", after_reset=True), rc_context(STYLE):
        for name, figure in figures.items():
            figure(summary).savefig(folder / name, dpi=DPI, metadata={"Software": None})
    return list(figures)


def _label(source: SourceSummary, width: int) -> str:
    return fill(source.title if source.title.isascii() else source.name, width)


def _figure(height: float, left: float, bottom: float, top: float) -> Figure:
    """An empty figure; margins in inches, since a constrained layout takes as long as all the rest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left / WIDTH, bottom / height, 1 - 0.12 / WIDTH, 1 - top / height, 0.1, 0.35
    )
    return figure


def _lengths(summary: Summary) -> Figure:
    """One row a source, one column a field; all panels share the axis of characters."""
    shown = [source for source in summary.sources if source.lengths]
    figure = _figure(1.2 + 1.55 * len(shown), left=1.15, bottom=0.62, top=0.6)
    panels = figure.subplots(len(shown), len(FIELDS), sharex=True, sharey="row", squeeze=False)
    for row, source in zip(panels, shown, strict=True):
        for axes, field in zip(row, FIELDS, strict=True):
            _histogram(axes, source.lengths.get(field, Lengths()))
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{_label(source, 18)}\n{source.counts.rows:,} rows")
    longest = max(lengths.max for source in shown for lengths in source.lengths.values())
    ticks = [10**power for power in range(7) if 10**power <= max(longest, 10) * 3]
    panels[0, 0].set(xscale="log", xlim=(0.9, max(longest * 1.6, 20)))
    panels[0, 0].set_xticks(ticks, ["1", "10", "100", "1k", "10k", "100k", "1M"][: len(ticks)])
    panels[0, 0].minorticks_off()
    for axes, field in zip(panels[0], FIELDS, strict=True):
        axes.set_title(f"{field}\n{axes.get_title()}", fontsize=9)
    note = "length in characters (logarithmic: two bars to a doubling) | share of the source's rows"
    figure.supxlabel(note, fontsize=9)
    return figure


def _histogram(axes: Axes, lengths: Lengths) -> None:
    """Share of all rows a bin; the median and the 99th percentile of the rows that have the field."""
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
    """A bar a source: units kept and refused, written out at its end."""
    sources = summary.sources
    figure = _figure(0.7 + 0.42 * len(sources), left=1.75, bottom=0.12, top=0.45)
    axes = figure.subplots()
    places = range(len(sources))
    kept = [source.counts.kept for source in sources]
    refused = [source.counts.refused_units for source in sources]
    longest = max(*map(sum, zip(kept, refused, strict=True)), 1)
    axes.barh(places, kept, 0.62, color=BLUE, label="kept")
    axes.barh(places, refused, 0.62, left=kept, color=ORANGE, hatch="////", label="refused")
    for place, ins, outs, source in zip(places, kept, refused, sources, strict=True):
        text = f" {ins:,} {source.unit} kept, {outs:,} refused"
        axes.text(ins + outs, place, text, va="center")
    axes.set_yticks(places, [_label(source, 22) for source in sources])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.62)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="upper right", ncols=2, frameon=False)
    return figure
