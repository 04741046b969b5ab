"""The last lines of a conversion, on the terminal and on the card: what was read, kept, rejected and not taken."""

from __future__ import annotations

from collections.abc import Sequence

from ..cleaning.rules import meaning
from .summary import InputSummary, Summary

LINES = 20  # files named in each list; beyond them only their number is


def report(summary: Summary) -> list[str]:
    """One line for each source, reason and file that was not taken, bounded."""
    rows = sum(split.rows for split in summary.splits)
    files = f"{len(summary.inputs):,} of {len(summary.inputs) + len(summary.skipped):,}"
    lines = [f"files read: {files}; rows written: {rows:,}"]
    for source in summary.sources:
        counts = source.counts
        units = (
            f"{counts.kept_units:,} of {counts.units:,} {source.unit} kept in {counts.rows:,} rows"
        )
        licences = _licences(summary.inputs, source.name)
        lines.append(f"{source.title} ({source.name}): {units}; licence: {licences}")
        lines += [
            f"rejected as {reason}: {rejected:,} {source.unit} of {source.name}. {meaning(reason)}"
            for reason, rejected in sorted(counts.rejections.items())
        ]
    recoded = [f"{one.name}: read as {one.read_as}" for one in summary.inputs if one.read_as]
    lines += recoded[:LINES]
    if len(recoded) > LINES:
        lines.append(f"read in other than UTF-8 text: {len(recoded) - LINES:,} more files")
    lines += [f"not taken: {one.name}: {one.why}" for one in summary.skipped[:LINES]]
    if (more := len(summary.skipped) - LINES) > 0:
        lines.append(f"not taken: {more:,} more files; convert.json names them all")
    return lines


def _licences(inputs: Sequence[InputSummary], source: str) -> str:
    """The licences of a source's files, each with what states it."""
    pairs = dict.fromkeys((one.licence, one.licence_from) for one in inputs if one.source == source)
    return ", ".join(
        f"{name} ({origin})" if origin else f"{name}, state it with --license"
        for name, origin in pairs
    )
