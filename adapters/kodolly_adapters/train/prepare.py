"""Rows to sequences of tokens: read, rendered, tokenized, masked, fitted and counted, then kept on disk.

    prepared = prepare(recipe, tokenizer, template, Path("cache"))
    prepared.train[0]  # {"input_ids": [...], "labels": [-100, ...], "length": 314}

A second call with the same files, tokenizer, template and settings finds the first one's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kodolly_adapters.errors import DataError
from kodolly_templates.definition import Template
from kodolly_templates.tokenizer import TokenizerTemplate

from .cache import DONE, Sink, building, is_whole, key_of, locked
from .fates import Fates
from .makers import RowMaker, TextMaker
from .mask import Encoder
from .recipe import Data, Recipe
from .render import Renderer, guarded
from .rows import DataFile, Row, Section, read_rows, read_text, survey

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"  # of what is written; another one makes old caches unknown
BATCH_ROWS, BATCH_CHARACTERS = 512, 1 << 20  # tokenized at once, whichever comes first
SPLITS = ("train", "validation")

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sequences ready for the trainer: columns input_ids, labels (-100 where not learned), length.

    `validation` is None when no row was set aside. `folder` is the cache's, named by all that decided it.
    """

    train: Dataset
    validation: Dataset | None
    fates: Fates
    files: tuple[DataFile, ...]
    folder: Path


def prepare(
    recipe: Recipe,
    tokenizer: Any,
    template: Template | TokenizerTemplate,
    cache: Path,
    report: Report = lambda done, total: None,
) -> Prepared:
    """Prepare the recipe's data, or find it prepared in `cache`.

    `tokenizer` is a fast transformers tokenizer that has the template's special tokens already; its special
    tokens are guarded here. `report` is told rows done and rows there are, about that.

    Raises DataError for a file or row that cannot be read (naming file and line) and when nothing is left
    to learn from, BaseError for a tokenizer that cannot be used, RecipeError for a template that cannot.
    """
    data = recipe.data
    encoder = Encoder(tokenizer)
    renderer = Renderer(guarded(template, tokenizer), encoder)
    files = {split: survey(getattr(data, split), split) for split in SPLITS}
    with locked(cache, _key(data, files, encoder, renderer)) as folder:
        if not is_whole(folder):
            with building(folder) as part:
                _Preparation(data, encoder, renderer, report).write(part, files)
    fates = msgspec.json.decode((folder / DONE).read_bytes(), type=Fates)
    report(fates.rows, fates.rows)
    train, validation = (_opened(folder / f"{split}.arrow") for split in SPLITS)
    assert train is not None, folder
    repeated = _repeated(train, data.repeat)
    return Prepared(repeated, validation, fates, (*files["train"], *files["validation"]), folder)


class _Preparation:
    """One pass over the files of a recipe."""

    def __init__(self, data: Data, encoder: Encoder, renderer: Renderer, report: Report) -> None:
        self._data = data
        self._report = report
        self._is_text = data.format == "text"
        self._maker: RowMaker | TextMaker = (
            TextMaker(encoder, data.max_length)
            if self._is_text
            else RowMaker(renderer, encoder, data.max_length)
        )
        self._fates = Fates()

    def write(self, folder: Path, files: dict[str, list[DataFile]]) -> None:
        """Both splits and the fates into `folder`. Raises DataError when there is nothing to learn."""
        limit = self._data.max_rows
        total = sum(
            min(sum(file.rows for file in files[split]), limit or 1 << 62) for split in SPLITS
        )
        share = 0.0 if files["validation"] else self._data.validation_share
        with ExitStack() as stack:
            sinks = {s: stack.enter_context(Sink(folder / f"{s}.arrow")) for s in SPLITS}
            for split in SPLITS:
                rows = islice(self._read(files[split]), limit)
                for batch in _batches(rows):
                    self._add(batch, sinks, split, share)
                    self._report(self._fates.rows, max(total, self._fates.rows))
        if not sinks["train"].rows:
            read = f":\n{self._fates.table()}" if self._fates.rows else ": the files are empty"
            raise DataError(f"data.train: no row is left to learn from{read}")
        if not sinks["validation"].rows:
            (folder / "validation.arrow").unlink()
        (folder / DONE).write_bytes(msgspec.json.encode(self._fates))

    def _read(self, files: Iterable[DataFile]) -> Iterator[Row | Section]:
        read: Callable[[str], Iterator[Row | Section]] = read_text if self._is_text else read_rows
        return chain.from_iterable(read(file.path) for file in files)

    def _add(self, batch: list[Any], sinks: dict[str, Sink], split: str, share: float) -> None:
        for row, made in zip(batch, self._maker.make(batch), strict=True):
            goes = "validation" if share and _place(row.content) < share else split
            for tokens in made.sequences:
                sinks[goes].add(tokens)
            self._fates.count(goes, made.fate).add(
                len(made.sequences),
                made.tokens,
                sum(map(len, made.sequences)),
                sum(tokens.learned_count for tokens in made.sequences),
            )


def _batches(rows: Iterator[Row | Section]) -> Iterator[list[Row | Section]]:
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


def _place(content: str) -> float:
    """A number from 0 to below 1 that follows from the row alone: the same row always goes the same way."""
    import xxhash

    return xxhash.xxh3_64_intdigest(content.encode()) / 2.0**64


def _key(data: Data, files: dict[str, list[DataFile]], encoder: Encoder, renderer: Renderer) -> str:
    hashes = [
        f"{split} {file.sha256} {Path(file.path).suffix}"
        for split in SPLITS
        for file in files[split]
    ]
    settings = data.model_dump_json(exclude={"train", "validation", "packing", "repeat"})
    return key_of([VERSION, *hashes, settings, encoder.definition, renderer.definition])


def _opened(path: Path) -> Dataset | None:
    from datasets import Dataset

    return Dataset.from_file(str(path)) if path.is_file() else None


def _repeated(dataset: Dataset, times: int) -> Dataset:
    from datasets import concatenate_datasets

    return dataset if times == 1 else concatenate_datasets([dataset] * times)
