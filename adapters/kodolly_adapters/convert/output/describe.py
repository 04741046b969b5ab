"""From finished parts to the summary: every count, length and sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ..cleaning.rules import all_rules, modes_of
from ..dedupe import DROPPED, Outcomes
from ..options import Options
from ..part import Counts, Index, Mark, read
from ..reading.plan import Input, Plan
from ..reading.source import Source
from ..schema import VALIDATION, Dialogue, Row
from .summary import (
    FIELDS,
    SAMPLES,
    InputSummary,
    Lengths,
    RuleCount,
    Sample,
    SkippedFile,
    SourceSummary,
    Summary,
    command_line,
    plain_options,
)


class PartRows(NamedTuple):
    """A part and where its rows are among all rows of the run."""

    key: str
    mark: Mark
    rows: slice


@dataclass(frozen=True, slots=True)
class Results:
    """All parts of a run in order, their rows' index and outcomes; `modes` are the rules' by source."""

    folder: Path
    parts: Sequence[PartRows]
    index: Index
    outcomes: Outcomes
    modes: Mapping[str, Mapping[str, str]]

    def of(self, source: Source) -> list[PartRows]:
        """The parts of one source."""
        return [part for part in self.parts if part.mark.source == source.name]


def summarise(plan: Plan, results: Results, options: Options, version: str) -> Summary:
    """The whole conversion in numbers, but for what is only known once it is written: splits and rejected."""
    inputs = tuple(_input(one, results) for one in plan.inputs)
    sources = {one.source.name: one.source for one in plan.inputs}
    chosen = plan.chosen.name if plan.chosen else None
    return Summary(
        version=version,
        options=plain_options(options),
        rules=modes_of(options.rules),
        command=command_line(options, plan.arguments, source=chosen),
        inputs=inputs,
        sources=tuple(_source(source, inputs, results, options) for source in sources.values()),
        splits=(),
        skipped=tuple(SkippedFile(name=name, why=why) for name, why in plan.skipped),
        duplicates=results.outcomes.duplicates,
    )


def _input(one: Input, results: Results) -> InputSummary:
    mine = [part for part in results.parts if part.key.startswith(f"{one.number:04d}-")]
    return InputSummary(
        name=one.name,
        source=one.source.name,
        bytes=one.size,
        sha256=one.sha256,
        licence=one.source.licence.name,
        counts=sum((_counts(part, results) for part in mine), Counts()),
    )


def _counts(part: PartRows, results: Results) -> Counts:
    """One part's counts, with its rows that were dropped for the sake of the whole moved to `refused`."""
    counts = part.mark.counts
    codes, units = results.outcomes.codes[part.rows], results.index["units"][part.rows]
    refused = Counter(counts.refused)
    for code, reason in DROPPED.items():
        if late := int(units[codes == code].sum()):
            refused[reason] += late
    dropped = codes > VALIDATION
    return msgspec.structs.replace(
        counts,
        rows=counts.rows - int(dropped.sum()),
        kept=counts.kept - int(units[dropped].sum()),
        refused=dict(refused),
        rejected=counts.rejected + int(dropped.sum()),
    )


def _source(
    source: Source, inputs: Sequence[InputSummary], results: Results, options: Options
) -> SourceSummary:
    parts = results.of(source)
    hits: Counter[str] = Counter()
    for part in parts:
        hits.update(part.mark.hits)
        for rule, rows in results.outcomes.hits.items():
            hits[rule] += int(rows[part.rows].sum())
    modes = results.modes[source.name]
    notes = sorted(set(hits) - set(modes))
    chars = [results.index["chars"][p.rows][results.outcomes.kept[p.rows]] for p in parts]
    lengths = np.concatenate(chars)
    return SourceSummary(
        name=source.name,
        title=source.title,
        unit=source.unit,
        licence=source.licence,
        counts=sum((one.counts for one in inputs if one.source == source.name), Counts()),
        rules=(
            *(RuleCount(name=name, mode=modes[name], hits=hits[name]) for name in all_rules()),
            *(RuleCount(name=name, mode="count", hits=hits[name]) for name in notes),
        ),
        lengths={name: Lengths.of(lengths[:, at]) for at, name in enumerate(FIELDS)},
        samples=tuple(_samples(source, parts, results, options)),
    )


def _samples(
    source: Source, parts: Sequence[PartRows], results: Results, options: Options
) -> Iterator[Sample]:
    """The kept rows of the smallest hashes, each once."""
    smallest: dict[int, tuple[PartRows, int]] = {}
    for part in parts:
        hashes = results.index["hash"][part.rows, 0]
        kept = np.flatnonzero(results.outcomes.kept[part.rows])
        for number in kept[np.argsort(hashes[kept], kind="stable")[:SAMPLES]].tolist():
            smallest.setdefault(int(hashes[number]), (part, number))
        smallest = {digest: smallest[digest] for digest in sorted(smallest)[:SAMPLES]}
    for part, number in smallest.values():
        sizes = results.index["size"][part.rows]
        start = int(sizes[:number].sum(dtype=np.int64))
        line = read(results.folder, part.key, "rows", start, int(sizes[number]))
        yield Sample.of(_row(line, options), source.licence)


def _row(line: bytes, options: Options) -> Row:
    if not options.conversations:
        return msgspec.json.decode(line, type=Row)
    dialogue = msgspec.json.decode(line, type=Dialogue)
    question, answer = dialogue.messages[-2:]
    return Row(question.content, question.context, answer.content, dialogue.category)
