"""What a conversion did, in numbers: the data of `convert.json` and of the data card.

It holds no time and no path of this machine, so that the same input gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..cleaning.rules import COUNT, all_rules, modes_of
from ..dedupe import DROP_RULES, Duplicates, Outcomes
from ..options import Options, command_line, plain_options
from ..part import Counts, Index, StoredPart
from ..reading.plan import Input, Plan
from ..reading.source import MAPPED, Licence, Source
from ..schema import SUMMARY_FILE, VALIDATION, Dialogue, Row

FIELDS = ("instruction", "context", "response")
# Half octaves, as whole characters: bin i counts lengths from EDGES[i] up to below EDGES[i + 1].
EDGES = (1, *(round(2 ** (step / 2)) for step in range(2, 41)))
SAMPLES = 3  # rows a source
SAMPLE_CHARS = 300  # of a field of a sample


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long one field is over all kept rows, in characters; rows where it is empty only count in `empty`.

    `bins` has one count for each of EDGES; the last bin has no upper end. All figures are exact.
    """

    rows: int = 0
    empty: int = 0
    min: int = 0
    mean: float = 0.0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    max: int = 0
    bins: tuple[int, ...] = (0,) * len(EDGES)

    @classmethod
    def of(cls, chars: NDArray[np.integer[Any]]) -> Lengths:
        """From the field's length in each row."""
        lengths = np.sort(chars[chars > 0])
        filled = len(lengths)
        if not filled:
            return cls(rows=len(chars), empty=len(chars))
        p50, p90, p99 = np.percentile(lengths, (50, 90, 99), method="inverted_cdf").tolist()
        bins = np.bincount(np.searchsorted(EDGES, lengths, "right") - 1, minlength=len(EDGES))
        return cls(
            rows=len(chars),
            empty=len(chars) - filled,
            min=int(lengths[0]),
            mean=round(int(lengths.sum(dtype=np.int64)) / filled, 1),
            p50=p50,
            p90=p90,
            p99=p99,
            max=int(lengths[-1]),
            bins=tuple(bins.tolist()),
        )


class InputSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the input. `bytes` and `sha256` are those of the unpacked file; a zip's is named `zip!member`.

    `licence_from` is what states the licence: its file name, a file beside it or a flag; "": nothing does.
    `read_as` is its encoding or kind, such as CP949 or Parquet; "" for UTF-8 text.
    """

    name: str
    source: str
    bytes: int
    sha256: str
    licence: str
    licence_from: str = ""
    read_as: str = ""
    counts: Counts = Counts()


class RuleCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of a source a rule applied to, and its mode for that source."""

    name: str
    mode: str
    hits: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row as an example, its fields cut to SAMPLE_CHARS characters.

    `row` is None where no licence is known that lets people hand on converted rows.
    """

    lengths: dict[str, int]
    category: str
    row: dict[str, str] | None = None

    @classmethod
    def of(cls, row: Row, licences: Iterable[Licence]) -> Sample:
        """A sample of a source whose files are under `licences`."""
        texts = {name: getattr(row, name) for name in FIELDS}
        lengths = {name: len(text) for name, text in texts.items()}
        for name, text in texts.items():
            texts[name] = text[:SAMPLE_CHARS] + "…" * (len(text) > SAMPLE_CHARS)
        excerpt = texts if all(licence.derivatives for licence in licences) else None
        return cls(lengths=lengths, category=row.category, row=excerpt)


class SourceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One source over all its files, `licences` are theirs. `lengths` has an entry for each of FIELDS, counted over kept rows.

    `samples` are the SAMPLES kept rows with the smallest hash.
    """

    name: str
    title: str
    unit: str
    licences: tuple[Licence, ...]
    counts: Counts = Counts()
    rules: tuple[RuleCount, ...] = ()
    lengths: dict[str, Lengths] = {}
    samples: tuple[Sample, ...] = ()


class SplitSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One file of rows that was written; `file` is relative to the output folder."""

    name: str
    rows: int
    bytes: int
    file: str
    sha256: str


class SkippedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a folder or archive of the input that was not converted, and why."""

    name: str
    why: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One whole conversion. `rules` maps each rule to its mode, except where a source has another default."""

    version: str
    options: dict[str, Any]
    rules: dict[str, str]
    command: tuple[str, ...]
    inputs: tuple[InputSummary, ...]
    sources: tuple[SourceSummary, ...]
    splits: tuple[SplitSummary, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    duplicates: Duplicates = Duplicates()
    rejected_lines: int = msgspec.field(name="rejected", default=0)  # in rejected.jsonl

    def faults(self) -> list[str]:
        """A sentence for each place where the counts do not add up; [] if nothing was lost."""
        return [fault for is_right, fault in self._checks() if not is_right]

    def _checks(self) -> Iterator[tuple[bool, str]]:
        """Each check of the counts: whether they are right, and the sentence for when they are not."""
        entries: list[InputSummary | SourceSummary] = [*self.inputs, *self.sources]
        for one in entries:
            units, kept = one.counts.units, one.counts.kept_units
            rejected = one.counts.rejected_units
            fault = f"{one.name}: {units:,} units in, but {kept:,} kept + {rejected:,} rejected"
            yield units == kept + rejected, fault
        for source in self.sources:
            name, rows = source.name, source.counts.rows
            files = _total(one for one in self.inputs if one.source == name)
            fault = "the counts of its files do not add up to the counts of the source"
            yield files == source.counts, f"{name}: {fault}"
            for field, lengths in source.lengths.items():
                fault = f"{name}: {rows:,} rows kept, but {lengths.rows:,} lengths of {field}"
                yield lengths.rows == rows, fault
        for name in sorted({one.source for one in self.inputs} - {s.name for s in self.sources}):
            yield False, f"{name}: read, but not among the sources"
        total, written = _total(self.sources), sum(split.rows for split in self.splits)
        yield total.rows == written, f"{total.rows:,} rows kept, but {written:,} written"
        lines = total.rejected_lines
        fault = f"{lines:,} rejections, but {self.rejected_lines:,} lines in rejected.jsonl"
        yield lines == self.rejected_lines, fault


def _total(entries: Iterable[InputSummary | SourceSummary]) -> Counts:
    return sum((one.counts for one in entries), Counts())


def write_summary(summary: Summary, folder: Path) -> None:
    """Write `convert.json`: fields in this file's order, the keys of maps sorted."""
    encoded = msgspec.json.encode(summary, order="deterministic")
    (folder / SUMMARY_FILE).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


@dataclass(frozen=True, slots=True)
class Results:
    """All parts of a run in order, the index and outcomes of their rows, and each source's modes by rule."""

    parts: Sequence[StoredPart]
    index: Index
    outcomes: Outcomes
    modes: Mapping[str, Mapping[str, str]]


def summarise(plan: Plan, results: Results, options: Options, version: str) -> Summary:
    """The whole conversion in numbers; `splits` and `rejected_lines` are added after writing."""
    inputs = tuple(_input(one, results) for one in plan.inputs)
    sources = {one.source.name: one.source for one in plan.inputs}
    return Summary(
        version=version,
        options=plain_options(options),
        rules=modes_of(options.rules),
        command=command_line(options, plan.arguments, _source_flags(plan)),
        inputs=inputs,
        sources=tuple(
            _source(source, plan, inputs, results, options) for source in sources.values()
        ),
        skipped=tuple(SkippedFile(name=name, why=why) for name, why in plan.skipped),
        duplicates=results.outcomes.duplicates,
    )


def _source_flags(plan: Plan) -> list[str]:
    """The flags of the command that say which source and licence the files have."""
    source, flags = plan.user_source, []
    if source and source.name == MAPPED:
        for field, names in (source.columns or {}).items():
            flags += ["--map", f"{field}={names[0]}"]
    elif source:
        flags = ["--source", source.name]
    return [*flags, "--license", plan.user_licence] if plan.user_licence else flags


def _input(one: Input, results: Results) -> InputSummary:
    own = [part for part in results.parts if part.path.name.startswith(f"{one.number:04d}-")]
    return InputSummary(
        name=one.name,
        source=one.source.name,
        bytes=one.size,
        sha256=one.sha256,
        licence=one.licence.name,
        licence_from=one.licence_from,
        read_as=one.read_as,
        counts=sum((_counts(part, results) for part in own), Counts()),
    )


def _counts(part: StoredPart, results: Results) -> Counts:
    """One part's counts; its duplicates and leaks are moved from the kept units to the rejected ones."""
    codes, units = results.outcomes.codes[part.rows], results.index["units"][part.rows]
    by_rule = {rule: int(units[codes == code].sum()) for code, rule in DROP_RULES.items()}
    dropped_rows = int((codes > VALIDATION).sum())
    return part.mark.counts + Counts(
        rows=-dropped_rows,
        kept_units=-sum(by_rule.values()),
        rejections={rule: count for rule, count in by_rule.items() if count},
        rejected_lines=dropped_rows,
    )


def _source(
    source: Source,
    plan: Plan,
    inputs: Sequence[InputSummary],
    results: Results,
    options: Options,
) -> SourceSummary:
    licences = tuple(
        dict.fromkeys(one.licence for one in plan.inputs if one.source.name == source.name)
    )
    parts = [part for part in results.parts if part.mark.source == source.name]
    hits: Counter[str] = Counter()
    for part in parts:
        hits.update(part.mark.hits)
        for rule, rows in results.outcomes.hits.items():
            hits[rule] += int(rows[part.rows].sum())
    modes = {name: results.modes[source.name][name] for name in all_rules()}
    modes |= dict.fromkeys(sorted(set(hits) - set(modes)), COUNT)  # the source's own notes
    in_split = results.outcomes.in_split
    lengths = np.concatenate([results.index["chars"][p.rows][in_split[p.rows]] for p in parts])
    return SourceSummary(
        name=source.name,
        title=source.title,
        unit=source.unit,
        licences=licences,
        counts=_total(one for one in inputs if one.source == source.name),
        rules=tuple(
            RuleCount(name=name, mode=mode, hits=hits[name]) for name, mode in modes.items()
        ),
        lengths={name: Lengths.of(lengths[:, at]) for at, name in enumerate(FIELDS)},
        samples=tuple(Sample.of(row, licences) for row in _samples(parts, results, options)),
    )


def _samples(parts: Sequence[StoredPart], results: Results, options: Options) -> Iterator[Row]:
    """The SAMPLES kept rows with the smallest hashes, without duplicates."""
    smallest: dict[int, tuple[StoredPart, int]] = {}
    for part in parts:
        hashes = results.index["hash"][part.rows, 0]
        rows = np.flatnonzero(results.outcomes.in_split[part.rows])
        for number in rows[np.argsort(hashes[rows], kind="stable")[:SAMPLES]].tolist():
            smallest.setdefault(int(hashes[number]), (part, number))
        smallest = {digest: smallest[digest] for digest in sorted(smallest)[:SAMPLES]}
    for part, number in smallest.values():
        sizes = results.index["size"][part.rows]
        start = int(sizes[:number].sum(dtype=np.int64))
        line = part.read("rows", start, int(sizes[number]))
        if options.conversations:
            dialogue = msgspec.json.decode(line, type=Dialogue)
            question, answer = dialogue.messages[-2:]
            yield Row(question.content, question.context, answer.content, dialogue.category)
        else:
            yield msgspec.json.decode(line, type=Row)
