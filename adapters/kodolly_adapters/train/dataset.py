"""Rows to sequences of tokens: read, encoded, cut where too long, counted, packed, and kept on disk.

A second call with the same files, tokenizer, template and settings finds the first one's work.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import xxhash

from kodolly_adapters.errors import DataError
from kodolly_adapters.files import locked, replacing
from kodolly_adapters.terminal import Progress
from kodolly_templates.definition import Template
from kodolly_templates.tokenizer import TokenizerTemplate

from .encode import IGNORED, Encoder, Fitter, Tokens
from .recipe import Data, Recipe
from .rows import DataFile, Row, Section, read_rows, read_text, survey

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "2"  # of what is written; caches of another one are not used
BATCH_ROWS, BATCH_CHARACTERS = 512, 1 << 20  # tokenized at once, whichever comes first
COUNTS = "outcomes.json"  # written last: a folder with it is whole
SPLITS = ("train", "validation")
OUTCOMES = {
    "kept": "whole",
    "context-cut": "the end of the context cut off",
    "turns-dropped": "the oldest exchanges dropped",
    "instruction-cut": "the middle of the instruction cut out",
    "split": "running text in several sequences",
    "too-long": "refused: does not fit even so",
    "empty": "refused: a question or an answer without text",
}


class Count(msgspec.Struct):
    """Rows of one outcome. `tokens` before anything was cut (0 for empty rows), `kept` after; `learned` of those."""

    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    kept: int = 0
    learned: int = 0


class Outcomes(msgspec.Struct):
    """Counts of every row that was read, by split and outcome (OUTCOMES). `repeat` is not counted in."""

    train: dict[str, Count] = {}
    validation: dict[str, Count] = {}

    @property
    def rows(self) -> int:
        """Rows read."""
        return sum(count.rows for count in (*self.train.values(), *self.validation.values()))

    def add(self, split: str, result: Result) -> None:
        """Count one more row of "train" or "validation"."""
        count = getattr(self, split).setdefault(result.outcome, Count())
        count.rows += 1
        count.sequences += len(result.sequences)
        count.tokens += result.tokens
        count.kept += sum(map(len, result.sequences))
        count.learned += sum(tokens.learned_count for tokens in result.sequences)

    def table(self) -> str:
        """Lines for people, one an outcome."""
        columns = ("rows", "tokens", "kept", "learned")
        lines = [f"{'':<10}  {'outcome':<15}" + "".join(f"{column:>15}" for column in columns)]
        for split in SPLITS:
            counts = getattr(self, split)
            for outcome in filter(counts.__contains__, OUTCOMES):
                figures = "".join(f"{getattr(counts[outcome], name):>15,}" for name in columns)
                lines.append(f"{split:<10}  {outcome:<15}{figures}  {OUTCOMES[outcome]}")
        return "\n".join(lines)


class Result(NamedTuple):
    """What a row becomes. `tokens` is its length before anything was cut."""

    outcome: str
    tokens: int
    sequences: list[Tokens]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sequences for the trainer: columns input_ids, labels (-100 where not learned), length.

    `validation` is None when no row was set aside. `folder` is the cache's, named by all that decided it.
    """

    train: Dataset
    validation: Dataset | None
    outcomes: Outcomes
    files: tuple[DataFile, ...]
    folder: Path

    def ids_from(self, first: int) -> list[int]:
        """The token ids of at least `first` that occur in a sequence, ascending."""
        ids: set[int] = set()
        for dataset in filter(None, (self.train, self.validation)):
            for chunk in dataset.data.column("input_ids").iterchunks():
                values = chunk.flatten().to_numpy()
                ids.update(np.unique(values[values >= first]).tolist())
        return sorted(ids)


def prepare(
    recipe: Recipe,
    tokenizer: Any,
    template: Template | TokenizerTemplate,
    cache: Path,
    progress: Progress | None = None,
) -> Prepared:
    """Prepare the recipe's data, or find it prepared in `cache`; the tokenizer has the template's tokens already.

    Raises DataError for a file or row that cannot be read (naming file and line) and when nothing is left
    to learn from, BaseError for a tokenizer that cannot be used, RecipeError for a template that cannot.
    """
    from datasets import Dataset, concatenate_datasets

    progress = progress or Progress("train", show=False)
    data, encoder = recipe.data, Encoder(tokenizer, template)
    files = {split: survey(getattr(data, split), split) for split in SPLITS}
    key = _key(data, files, encoder)
    folder = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{key}.lock", wait=True):  # torchrun's processes wait here for the first
        if not (folder / COUNTS).is_file():
            with replacing(folder) as part:
                _write(part, files, data, encoder, progress)
    outcomes = msgspec.json.decode((folder / COUNTS).read_bytes(), type=Outcomes)
    progress.reach(outcomes.rows, outcomes.rows)
    train, validation = (
        Dataset.from_file(str(path)) if path.is_file() else None
        for path in (folder / f"{split}.arrow" for split in SPLITS)
    )
    if data.repeat > 1:
        train = concatenate_datasets([train] * data.repeat)
    return Prepared(train, validation, outcomes, (*files["train"], *files["validation"]), folder)


def pack(dataset: Dataset, recipe: Recipe, stem: Path) -> Dataset:
    """Where the recipe packs: several sequences in one, still apart (seq_lengths); by TRL, kept beside `stem`."""
    plain = dataset.select_columns(["input_ids", "labels"])
    if not recipe.data.packing:
        return plain
    from datasets.utils.logging import disable_progress_bar
    from trl import pack_dataset

    disable_progress_bar()
    seed, length = recipe.train.seed, recipe.data.max_length
    file = Path(f"{stem}-packed-{length}-{seed}-{recipe.data.repeat}.arrow")
    # Neighbours in a file are alike (one source after another); a packed sequence should not be.
    mixed = plain.shuffle(seed=seed, keep_in_memory=True)
    with locked(file.with_suffix(".lock"), wait=True):
        return pack_dataset(mixed, length, "bfd", {"cache_file_name": str(file)})


def _write(
    folder: Path, files: dict[str, list[DataFile]], data: Data, encoder: Encoder, progress: Progress
) -> None:
    """Read the files once and write both splits, as Arrow streams that datasets maps into memory, and the counts.

    Raises DataError when there is nothing to learn.
    """
    import pyarrow

    limit, outcomes = data.max_rows or 1 << 62, Outcomes()
    total = sum(min(sum(file.rows for file in files[split]), limit) for split in SPLITS)
    share = 0.0 if files["validation"] else data.validation_share
    read: Callable[[str], Iterator[Any]] = read_text if data.format == "text" else read_rows
    encode = _encode_sections if data.format == "text" else _encode_rows
    empty = Result("empty", 0, [])
    schema = _record_batch([]).schema
    with ExitStack() as stack:
        streams = {
            split: stack.enter_context(pyarrow.ipc.new_stream(f"{folder}/{split}.arrow", schema))
            for split in SPLITS
        }
        for split in SPLITS:
            rows = (row for file in files[split] for row in read(file.path))
            for batch in _batches(islice(rows, limit)):
                sequences: dict[str, list[Tokens]] = defaultdict(list)
                results = encode([row for row in batch if not row.is_empty], encoder, data)
                for row in batch:
                    result = empty if row.is_empty else next(results)
                    # By a hash of the row alone: the same row is always in the same split.
                    aside = (
                        share and xxhash.xxh3_64_intdigest(row.content.encode()) / 2.0**64 < share
                    )
                    target = "validation" if aside else split
                    sequences[target] += result.sequences
                    outcomes.add(target, result)
                for target, tokens in sequences.items():
                    streams[target].write_batch(_record_batch(tokens))
                progress.reach(outcomes.rows, max(total, outcomes.rows))
    if not any(count.sequences for count in outcomes.train.values()):
        table = f":\n{outcomes.table()}" if outcomes.rows else ": the files are empty"
        raise DataError(f"data.train: no row is left to learn from{table}")
    if not any(count.sequences for count in outcomes.validation.values()):
        (folder / "validation.arrow").unlink()
    (folder / COUNTS).write_bytes(msgspec.json.encode(outcomes))


def _encode_rows(rows: list[Any], encoder: Encoder, data: Data) -> Iterator[Result]:
    """Dolly rows and dialogues, of which the answers are learned; a row is one sequence."""
    fitter = Fitter(encoder, data.max_length)
    encoded = encoder.encode([encoder.row_text(row) for row in rows])
    for row, tokens in zip(rows, encoded, strict=True):
        if len(tokens) <= data.max_length:
            yield Result("kept", len(tokens), [tokens])
        else:
            outcome, rest = fitter.fit(row.messages)
            yield Result(outcome, len(tokens), [] if rest is None else [rest])


def _encode_sections(sections: list[Any], encoder: Encoder, data: Data) -> Iterator[Result]:
    """Running text, every token of which is learned, in as few sequences as can be, of even lengths.

    A document begins as the tokenizer begins a text and ends with its end token.
    """
    encoded = encoder.plain_ids([section.content for section in sections])
    for section, ids in zip(sections, encoded, strict=True):
        before = encoder.bos_ids if section.first else []
        whole = [*before, *ids, *([encoder.eos_id] if section.last else [])]
        count = -(-len(whole) // data.max_length)
        borders = [len(whole) * number // count for number in range(count + 1)]
        pieces = [Tokens(whole[a:b], [(0, b - a)]) for a, b in pairwise(borders)]
        yield Result("kept" if count == 1 else "split", len(whole), pieces)


def _record_batch(sequences: Sequence[Tokens]) -> Any:
    """Columns input_ids, labels and length, made of whole arrays: a Python object a token would take as long as
    the tokenizer."""
    import pyarrow

    ids, ends = array("i"), [0]
    for tokens in sequences:
        ids.extend(tokens.ids)
        ends.append(len(ids))
    values = np.array(ids, np.int32)
    labels = np.full(len(values), IGNORED, np.int32)
    for tokens, offset in zip(sequences, ends, strict=False):
        for start, end in tokens.learned:
            labels[offset + start : offset + end] = values[offset + start : offset + end]
    offsets = np.array(ends, np.int32)
    lists = [pyarrow.ListArray.from_arrays(offsets, numbers) for numbers in (values, labels)]
    columns = {"input_ids": lists[0], "labels": lists[1], "length": np.diff(offsets)}
    return pyarrow.record_batch(columns)


def _batches(rows: Iterable[Row | Section]) -> Iterator[list[Row | Section]]:
    """Rows in lists that are worth a call of the tokenizer and keep memory flat."""
    batch: list[Row | Section] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.content)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _key(data: Data, files: dict[str, list[DataFile]], encoder: Encoder) -> str:
    """A name for everything that decides the sequences."""
    hashes = [f"{s} {file.sha256} {Path(file.path).suffix}" for s in SPLITS for file in files[s]]
    settings = data.model_dump_json(exclude={"train", "validation", "packing", "repeat"})
    deciding = json.dumps([VERSION, hashes, settings, encoder.definition])
    return hashlib.sha256(deciding.encode()).hexdigest()[:24]
