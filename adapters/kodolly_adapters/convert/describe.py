"""From finished parts to the summary: every count, length and sample."""

from __future__ import annotations

import multiprocessing
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from .children import without_interrupts
from .cleaning.rules import all_rules, modes_of
from .dedupe import DROPPED, Resolved
from .options import Options
from .output.pictures import draw, prepare
from .output.summary import (
    FIELDS,
    SAMPLES,
    Counts,
    InputSummary,
    Lengths,
    LicenceSummary,
    RuleCount,
    Sample,
    SkippedFile,
    SourceSummary,
    Summary,
    command_line,
    plain_options,
)
from .part import SPLITS, VALIDATION, Done, index_of, section
from .reading.plan import Input, Plan
from .reading.source import Source
from .schema import Row
from .shard import Dialogue

BLOCK = 1_000_000  # rows whose lengths are counted at once
LARGE = 160 << 10  # KiB, as the kernel counts a process's peak


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a run in order, and what was decided over them; `modes` are the rules' by source."""

    folder: Path
    marks: Sequence[tuple[str, Done]]
    resolved: Resolved
    modes: Mapping[str, Mapping[str, str]]


def summarise(plan: Plan, parts: Parts, options: Options, version: str) -> Summary:
    """The whole conversion in numbers, but for what is only known once it is written: splits and rejected."""
    inputs = tuple(_input(one, parts) for one in plan.inputs)
    sources = {one.source.name: one.source for one in plan.inputs}
    summaries = tuple(_source(source, inputs, parts, options) for source in sources.values())
    return Summary(
        version=version,
        options=plain_options(options),
        rules=modes_of(options.rules),
        command=command_line(
            options, plan.arguments, source=plan.source.name if plan.source else None
        ),
        inputs=inputs,
        sources=summaries,
        splits=(),
        skipped=tuple(SkippedFile(name=name, why=why) for name, why in plan.skipped),
        duplicates=parts.resolved.duplicates,
    )


@contextmanager
def drawing(jobs: int) -> Iterator[Callable[[Summary, Path], Callable[[], list[str]]]]:
    """Somewhere to draw the pictures: beside the body when there are processes for it.

    Yields a function that begins to draw into a folder; what it gives waits for the pictures' names. The
    process is started at once, since its imports take as long as the drawing. A single process that has
    grown large draws in another one all the same, so that its memory stays what the work took.
    """
    if jobs == 1:
        yield _drawn_alone
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        with without_interrupts():
            beside.submit(prepare)
        yield lambda summary, folder: beside.submit(draw, summary, folder).result


def _drawn_alone(summary: Summary, folder: Path) -> Callable[[], list[str]]:
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < LARGE:
        names = draw(summary, folder)
    else:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
            with without_interrupts():
                drawn = beside.submit(draw, summary, folder)
            names = drawn.result()
    return lambda: names


def _input(one: Input, parts: Parts) -> InputSummary:
    mine = [item for item in parts.marks if item[0].startswith(f"{one.number:04d}-")]
    return InputSummary(
        name=one.name,
        source=one.source.name,
        bytes=one.size,
        sha256=one.sha256,
        licence=one.source.licence.name,
        counts=sum((_counts(key, mark, parts) for key, mark in mine), Counts()),
    )


def _counts(key: str, mark: Done, parts: Parts) -> Counts:
    """One part's counts, with its rows that were dropped for the sake of the whole moved to `refused`."""
    counts = mark.counts
    fates = parts.resolved.fates_of(key, mark)
    units = index_of(parts.folder, key)["units"]
    refused = Counter(counts.refused)
    for code, reason in DROPPED.items():
        if late := int(units[fates == code].sum()):
            refused[reason] += late
    dropped = fates > VALIDATION
    return Counts(
        records=counts.records,
        units=counts.units,
        rows=counts.rows - int(dropped.sum()),
        kept=counts.kept - int(units[dropped].sum()),
        refused=dict(refused),
        rejected=counts.rejected + int(dropped.sum()),
    )


def _source(
    source: Source, inputs: Sequence[InputSummary], parts: Parts, options: Options
) -> SourceSummary:
    marks = [(key, mark) for key, mark in parts.marks if mark.source == source.name]
    mine = [one.counts for one in inputs if one.source == source.name]
    hits: Counter[str] = Counter()
    for key, mark in marks:
        hits.update(mark.counts.hits)
        hits.update(parts.resolved.hits[key])
    modes = parts.modes[source.name]
    notes = sorted(set(hits) - set(modes))
    return SourceSummary(
        name=source.name,
        title=source.title,
        unit=source.unit,
        licence=LicenceSummary.of(source.licence),
        counts=sum(mine, Counts()),
        rules=(
            *(RuleCount(name=name, mode=modes[name], hits=hits[name]) for name in all_rules()),
            *(RuleCount(name=name, mode="count", hits=hits[name]) for name in notes),
        ),
        lengths=_lengths(marks, parts),
        samples=tuple(_samples(source, marks, parts, options)),
    )


def _lengths(marks: Sequence[tuple[str, Done]], parts: Parts) -> dict[str, Lengths]:
    counters: list[Counter[int]] = [Counter() for _ in FIELDS]
    for chars in _blocks(marks, parts):
        for column, counter in enumerate(counters):
            values, times = np.unique(chars[:, column], return_counts=True)
            counter.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    return {name: Lengths.of(counter) for name, counter in zip(FIELDS, counters, strict=True)}


def _blocks(marks: Sequence[tuple[str, Done]], parts: Parts) -> Iterator[NDArray[np.uint32]]:
    """Lengths of kept rows, shape (rows, FIELDS), of many parts at once: counting has a price a call."""
    gathered: list[NDArray[np.uint32]] = []
    rows = 0
    for key, mark in marks:
        gathered.append(
            index_of(parts.folder, key)["chars"][parts.resolved.fates_of(key, mark) <= VALIDATION]
        )
        rows += len(gathered[-1])
        if rows >= BLOCK:
            yield np.concatenate(gathered)
            gathered, rows = [], 0
    if gathered:
        yield np.concatenate(gathered)


def _samples(
    source: Source, marks: Sequence[tuple[str, Done]], parts: Parts, options: Options
) -> Iterator[Sample]:
    """The kept rows of the smallest hashes, each once."""
    least: dict[int, tuple[str, int]] = {}
    for key, mark in marks:
        hashes = index_of(parts.folder, key)["hash"][:, 0]
        kept = np.flatnonzero(parts.resolved.fates_of(key, mark) <= VALIDATION)
        small = _smallest(hashes[kept])
        for number in kept[small].tolist():
            least.setdefault(int(hashes[number]), (key, number))
        least = {digest: least[digest] for digest in sorted(least)[:SAMPLES]}
    for place in least.values():
        yield Sample.of(_row(_line(parts.folder, *place), options), source.licence)


def _smallest(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places of the SAMPLES smallest, smallest first, of equals the first."""
    if len(hashes) > SAMPLES:
        few = np.flatnonzero(hashes <= np.partition(hashes, SAMPLES - 1)[SAMPLES - 1])
    else:
        few = np.arange(len(hashes))
    return few[np.argsort(hashes[few], kind="stable")[:SAMPLES]]


def _line(folder: Path, key: str, number: int) -> bytes:
    """The JSON line of a part's row."""
    index = index_of(folder, key)
    split, size = int(index["split"][number]), int(index["size"][number])
    before = index[:number]
    start = int(before["size"][before["split"] == split].sum(dtype=np.int64))
    return section(folder, key, f"rows.{SPLITS[split]}", start, size)


def _row(line: bytes, options: Options) -> Row:
    if not options.conversations:
        return msgspec.json.decode(line, type=Row)
    dialogue = msgspec.json.decode(line, type=Dialogue)
    question, answer = dialogue.messages[-2:]
    return Row(question.content, question.context, answer.content, dialogue.category)
