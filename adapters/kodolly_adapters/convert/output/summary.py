"""What a conversion did, in numbers: the data of `convert.json` and of the data card.

Everything here is plain, holds no time and no path of a machine: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..dedupe import Duplicates
from ..options import Options
from ..part import Counts
from ..reading.source import Licence
from ..schema import SUMMARY_FILE, Row

FIELDS = ("instruction", "context", "response")
# Half octaves, as whole characters: bin i counts lengths from EDGES[i] up to below EDGES[i + 1].
EDGES = (1, *(round(2 ** (step / 2)) for step in range(2, 41)))
SAMPLES = 3  # rows a source
SAMPLE_CHARS = 300  # of a field of a sample


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long one field is over all kept rows, in characters. Empty fields only count in `empty`.

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
        # The nearest rank: the first length that so many in a hundred do not pass.
        p50, p90, p99 = (int(lengths[(filled * share + 99) // 100 - 1]) for share in (50, 90, 99))
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
    """One file read; `name` as `plain_name` gives it, a zip's member as `zip!member`.

    `bytes` and `sha256` are of the file as it was unpacked: what the records were read from.
    """

    name: str
    source: str
    bytes: int
    sha256: str
    licence: str
    counts: Counts = Counts()


class RuleCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often a rule found something in a source, and the mode it ran in there."""

    name: str
    mode: str
    hits: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row to look at; `row` is None where the licence forbids handing on converted rows."""

    lengths: dict[str, int]
    category: str
    row: dict[str, str] | None = None

    @classmethod
    def of(cls, row: Row, licence: Licence) -> Sample:
        """The row with its fields cut to SAMPLE_CHARS, or its lengths alone under a no-derivatives licence."""
        texts = {"instruction": row.instruction, "context": row.context, "response": row.response}
        return cls(
            lengths={name: len(text) for name, text in texts.items()},
            category=row.category,
            row={name: shortened(text) for name, text in texts.items()}
            if licence.derivatives
            else None,
        )


class SourceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One source over all its files. `lengths` has an entry for each of FIELDS, counted over kept rows.

    `samples` are the SAMPLES kept rows with the smallest hash.
    """

    name: str
    title: str
    unit: str
    licence: Licence
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
    """A file in a given folder or archive that is no source's."""

    name: str
    why: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One whole conversion. `rules` maps each rule to the mode it ran in where a source has no own."""

    version: str
    options: dict[str, Any]
    rules: dict[str, str]
    command: tuple[str, ...]
    inputs: tuple[InputSummary, ...]
    sources: tuple[SourceSummary, ...]
    splits: tuple[SplitSummary, ...]
    skipped: tuple[SkippedFile, ...] = ()
    duplicates: Duplicates = Duplicates()
    rejected: int = 0  # lines written to rejected.jsonl

    def reconciles(self) -> list[str]:
        """Every place where the counts do not add up, a sentence each; [] if nothing was lost."""
        return [
            *(wrong for one in self.inputs for wrong in _lost(one.name, one.counts)),
            *(wrong for source in self.sources for wrong in self._source_differs(source)),
            *self._totals_differ(),
        ]

    def _source_differs(self, source: SourceSummary) -> Iterable[str]:
        yield from _lost(source.name, source.counts)
        files = sum((i.counts for i in self.inputs if i.source == source.name), Counts())
        if files != source.counts:
            yield f"{source.name}: the counts of its files do not add up to the counts of the source"
        for field, lengths in source.lengths.items():
            if lengths.rows != source.counts.rows:
                yield (
                    f"{source.name}: {source.counts.rows:,} rows kept, "
                    f"but {lengths.rows:,} lengths of {field}"
                )

    def _totals_differ(self) -> Iterable[str]:
        for name in sorted({one.source for one in self.inputs} - {s.name for s in self.sources}):
            yield f"{name}: read, but not among the sources"
        total = sum((source.counts for source in self.sources), Counts())
        written = sum(split.rows for split in self.splits)
        if total.rows != written:
            yield f"{total.rows:,} rows kept, but {written:,} written"
        if total.rejected != self.rejected:
            yield f"{total.rejected:,} refusals, but {self.rejected:,} lines in rejected.jsonl"


def _lost(name: str, counts: Counts) -> Iterable[str]:
    refused = sum(counts.refused.values())
    if counts.units != counts.kept + refused:
        yield f"{name}: {counts.units:,} units in, but {counts.kept:,} kept + {refused:,} refused"


def shortened(text: str, chars: int = SAMPLE_CHARS) -> str:
    """The text, or its first `chars` characters and a mark that there was more."""
    return text if len(text) <= chars else text[:chars] + "…"


def plain_name(name: str) -> str:
    """A file's name without the path of a machine: absolute and upward paths keep their last part."""
    archive, bang, member = name.partition("!")
    path = Path(archive)
    plain = path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    return plain + bang + member


def plain_options(options: Options) -> dict[str, Any]:
    """The options as JSON holds them; of the tokenizer's path its last part."""
    return {
        **{field.name: getattr(options, field.name) for field in fields(options)},
        "rules": dict(options.rules),
        "tokenizer": options.tokenizer and options.tokenizer.name,
    }


def command_line(
    options: Options, inputs: Iterable[str], out: str = "OUT", source: str | None = None
) -> tuple[str, ...]:
    """The words of the shortest command that makes the same bytes again.

    Only what differs from the defaults is named; `inputs` are the SOURCE arguments as given.
    """
    defaults = plain_options(Options())
    words = ["kodolly", "convert", *map(plain_name, inputs), "--out", out]
    if source:
        words += ["--source", source]
    for name, value in plain_options(options).items():
        flag = "--" + name.replace("_", "-")
        if name == "rules":
            for rule, mode in sorted(value.items()):
                words += ["--rule", f"{rule}={mode}"]
        elif value != defaults[name]:
            words += [flag] if value is True else [flag, str(value)]
    return tuple(words)


def write_summary(summary: Summary, folder: Path) -> Path:
    """Write `convert.json`: fields in this file's order, the keys of maps sorted."""
    encoded = msgspec.json.encode(summary, order="deterministic")
    path = folder / SUMMARY_FILE
    path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    return path


def read_summary(folder: Path) -> Summary:
    """What `write_summary` wrote. Raises msgspec.ValidationError if the file is something else."""
    return msgspec.json.decode((folder / SUMMARY_FILE).read_bytes(), type=Summary)
