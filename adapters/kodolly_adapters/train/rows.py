"""What the files of a recipe hold: Dolly rows, dialogues and running text, each with file and line.

JSON lines and Parquet, as `kodolly convert` writes them; plain .txt for running text.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
from msgspec import UNSET, UnsetType

from kodolly_adapters.errors import DataError
from kodolly_templates.errors import TemplateError
from kodolly_templates.messages import plain_text

BLOCK = 1 << 20  # bytes read at once
SECTION = 1 << 16  # characters of running text that are tokenized at once
BOM = b"\xef\xbb\xbf"
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of such bytes


class DataFile(NamedTuple):
    """A file of the recipe. `rows` is exact for JSON lines without blank ones and for Parquet, else a guess."""

    path: str
    rows: int
    size: int  # bytes
    sha256: str


class Row(NamedTuple):
    """A dialogue in OpenAI's shape (a Dolly row is one of two messages) and its place.

    `line` counts from 1; in Parquet it is the number of the row.
    """

    messages: list[dict[str, Any]]
    file: str
    line: int

    @property
    def is_empty(self) -> bool:
        """Whether a question or the last answer of it has no text.

        Other messages without text, such as an assistant's that only called a tool, are left out
        of the text by the template.
        """
        questions = (one["content"] for one in self.messages if one["role"] == "user")
        last = (one["content"] for one in self.messages[-1:])
        return any(not text.strip() for text in (*questions, *last))

    @property
    def content(self) -> str:
        """All of it as one text, for hashing: the same from JSON lines and from Parquet."""
        return "\x1f".join(part for message in self.messages for part in message.values())


class Section(NamedTuple):
    """A stretch of running text, cut at a line's end. `first` and `last` of its document."""

    content: str
    first: bool
    last: bool

    @property
    def is_empty(self) -> bool:
        """Whether the document is nothing but whitespace."""
        return self.first and self.last and not self.content.strip()


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str = ""


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    context: str | None = None


class _Record(msgspec.Struct, gc=False):
    """A line of any shape; other fields (category, id) are skipped."""

    instruction: str | UnsetType | None = UNSET
    context: str | None = None
    response: str | UnsetType | None = UNSET
    messages: list[_Message] | None = None
    text: str | UnsetType | None = UNSET


def check_start(paths: Sequence[str], key: str, kind: str) -> None:
    """Raise DataError unless each file can be opened and begins as data.format `kind` says; takes no time.

    `key` is the recipe's ("train").
    """
    for path in paths:
        try:
            next(read_text(path) if kind == "text" else read_rows(path), None)
        except OSError as error:
            raise DataError(f"data.{key}: {path}: {error.strerror or error}") from None


def survey(paths: Sequence[str], key: str) -> list[DataFile]:
    """Size, hash and number of rows of every file. `key` is the recipe's ("train"), for DataError."""
    files = []
    for path in paths:
        sha, lines, size, end = hashlib.sha256(), 0, 0, b"\n"
        try:
            with Path(path).open("rb") as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    lines += block.count(b"\n")
                    size += len(block)
                    end = block[-1:]
        except OSError as error:
            raise DataError(f"data.{key}: {path}: {error.strerror or error}") from None
        if path.endswith(".parquet"):
            lines = _parquet(path).metadata.num_rows
        elif path.endswith(".txt"):
            lines = size // SECTION + 1
        else:
            lines += end != b"\n"
        files.append(DataFile(path, lines, size, sha.hexdigest()))
    return files


def read_rows(path: str) -> Iterator[Row]:
    """The dialogues of one file, in order. Raises DataError naming file and line."""
    for line, record in _records(path):
        if record.messages is not None:
            try:
                messages = [_message(one, index) for index, one in enumerate(record.messages)]
            except TemplateError as error:
                raise DataError(f"{path}:{line}: {error}") from None
        elif record.instruction is not UNSET and record.response is not UNSET:
            messages = [
                _message(_Message("user", record.instruction, record.context)),
                _message(_Message("assistant", record.response)),
            ]
        elif record.text is not UNSET:
            raise DataError(f'{path}:{line}: running text ("text"); set data.format = "text"')
        else:
            raise DataError(
                f'{path}:{line}: neither a Dolly row ("instruction", "response") nor a dialogue '
                f'("messages"){_conversion(path)}'
            )
        yield Row(messages, path, line)


def read_text(path: str) -> Iterator[Section]:
    """The running text of one file; a .txt is one document, else every line is. Raises DataError naming file and line."""
    if path.endswith(".txt"):
        try:
            with Path(path).open(encoding="utf-8-sig") as file:
                yield from _sections(file)
        except UnicodeDecodeError as error:
            with Path(path).open(encoding="utf-8", errors="surrogateescape") as file:
                bad = (number for number, line in enumerate(file, 1) if NOT_UTF8.search(line))
                raise DataError(f"{path}:{next(bad)}: not UTF-8: {error.reason}") from None
        return
    for number, record in _records(path):
        if record.text is UNSET:
            raise DataError(
                f'{path}:{number}: no "text"; for rows and dialogues set data.format = "rows"'
            )
        yield from _sections(StringIO(record.text or ""))


def _records(path: str) -> Iterator[tuple[int, _Record]]:
    """(line, record) of every row; a Parquet's line is the number of its row."""
    number = 0
    try:
        if path.endswith(".parquet"):
            file = _parquet(path)
            fields = [name for name in _Record.__struct_fields__ if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=1_000, columns=fields)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield number, msgspec.convert(row, _Record)
            return
        decode = msgspec.json.Decoder(_Record).decode
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line if number > 1 else line.removeprefix(BOM)
                if text and not text.isspace():
                    yield number, decode(text)
    except msgspec.DecodeError as error:  # no JSON, or of another type
        hint = _conversion(path) if number <= 1 else ""  # later it is one bad row
        raise DataError(f"{path}:{number}: {error}{hint}") from None
    except UnicodeDecodeError as error:
        place = f" rows {number + 1} and on" if path.endswith(".parquet") else str(number)
        raise DataError(f"{path}:{place}: {error}") from None


def _conversion(path: str) -> str:
    """What to do with a file that holds no rows: most often it is a data set as it was downloaded."""
    return (
        f". Data sets as they are published become rows by `kodolly convert {shlex.quote(path)} --out rows`; "
        "train on rows/train.jsonl then"
    )


def _parquet(path: str) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None


def _message(one: _Message, index: int = 0) -> dict[str, Any]:
    """A message as templates read it; null reads as no text, parts are joined as in serving.

    Raises TemplateError, naming the message by `index`, for a part that is no text.
    """
    content = one.content
    if isinstance(content, list):
        content = plain_text([{"type": part.type, "text": part.text} for part in content], index)
    message = {"role": one.role, "content": content or ""}
    if one.context and not one.context.isspace():
        message["context"] = one.context
    return message


def _sections(file: TextIO) -> Iterator[Section]:
    """One document in stretches of about SECTION characters that end with a line; one, "", of an empty one."""
    first, text = True, file.read(SECTION) + file.readline(SECTION)
    while following := file.read(SECTION):  # read ahead: only then is it clear which is the last
        yield Section(text, first, False)
        first, text = False, following + file.readline(SECTION)
    yield Section(text, first, True)
