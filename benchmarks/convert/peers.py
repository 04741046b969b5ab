"""What the converter is held against; each runs in a process of its own.

    python -m benchmarks.convert.peers NAME --out DIR FILE...

- plain: the script a person writes: json.load, BeautifulSoup's get_text(" ") on every text, json.dumps.
- plain-json: the same without BeautifulSoup on the text sources, which then keep their entities.
- datasets: Hugging Face datasets: load_dataset("json"), map with two processes (BeautifulSoup with lxml
  on HTML contexts), to_json.
- parse-orjson, parse-msgspec, parse-simdjson: read and parse, nothing else. msgspec is told the fields it
  shall keep; simdjson hands out every field as a Python string, as an application would ask for.
- scan-simdjson: simdjson alone, without a Python value; no application can be this fast.
- chain: for HTML pages: ijson, drop raw_html, resiliparse to text, orjson to JSONL.

All map as the study did: one row a question-answer pair. Prints a JSON object with rows and seconds a file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import GenericAlias
from typing import Any, BinaryIO, cast

Row = dict[str, str]
Clean = Callable[[str], str]


def members(path: Path) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """The JSON files behind a path: itself, or the members of a zip."""
    if path.suffix != ".zip":
        yield path.name, lambda: path.open("rb")
        return
    archive = zipfile.ZipFile(path)
    for name in archive.namelist():
        yield name, cast("Callable[[], BinaryIO]", lambda name=name: archive.open(name))


def row(question: str, context: str, answer: str) -> Row:
    """A row as the study has it."""
    return {
        "instruction": question,
        "context": context,
        "response": answer,
        "category": "open_qa",
    }


def records_of(data: Any) -> list[Any]:
    """The records of a parsed file: an array, or what `data` holds."""
    records: list[Any] = data["data"] if isinstance(data, dict) else data
    return records


def rows_of(record: Any, clean: Clean, html: Clean) -> Iterator[Row]:
    """A record's rows; `clean` is for plain text and `html` for pages and their answers."""
    if "conversations" in record:
        turns = record["conversations"]
        for ask, answer in itertools.pairwise(turns):
            if ask["from"] in _HUMAN and answer["from"] in _MACHINE:
                yield row(clean(ask["value"]), "", clean(answer["value"]))
    elif "paragraphs" in record:
        for paragraph in record["paragraphs"]:
            context = clean(paragraph["context"])
            for qa in paragraph["qas"]:
                yield row(clean(qa["question"]), context, clean(qa["answers"][0]["text"]))
    elif "raw_html" in record:
        context = html(record["context"])
        for qa in record["qas"]:
            yield row(qa["question"], context, html(qa["answer"]["text"]))
    else:
        yield row(clean(record["instruction"]), clean(record["input"]), clean(record["output"]))


_HUMAN, _MACHINE = ("human", "user"), ("gpt", "chatgpt")


def plain(path: Path, out: Path, clean: Clean | None = None) -> int:
    """json.load, BeautifulSoup with html.parser, json.dumps: the whole file in memory."""
    from bs4 import BeautifulSoup

    def text(markup: str) -> str:
        return str(BeautifulSoup(markup, "html.parser").get_text(" "))

    count = 0
    for name, open_ in members(path):
        with open_() as file:
            records = records_of(json.load(file))
        with (out / f"{name}l").open("w", encoding="utf-8") as lines:
            for record in records:
                for made in rows_of(record, clean or text, text):
                    lines.write(json.dumps(made, ensure_ascii=False) + "\n")
                    count += 1
    return count


def plain_json(path: Path, out: Path) -> int:
    """As `plain`, and nothing done to plain text."""
    return plain(path, out, clean=lambda text: text)


def datasets(path: Path, out: Path) -> int:
    """load_dataset("json"), map with two processes, to_json."""
    # Its own cache, empty at the start; nothing is asked of a hub.
    os.environ |= {"HF_HOME": str(out / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    import datasets as library
    from bs4 import MarkupResemblesLocatorWarning  # noqa: F401  (bs4 before workers are forked)

    library.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        count = 0
        for name, open_ in members(path):
            place = path
            if path.suffix == ".zip":  # the loader would read every member at once
                place = Path(scratch) / name
                with open_() as source, place.open("wb") as target:
                    while block := source.read(1 << 20):
                        target.write(block)
            field = "data" if "KorQuAD" in path.name else None
            data = library.load_dataset("json", data_files=str(place), field=field, split="train")
            made = data.map(
                _batch, batched=True, batch_size=100, num_proc=2, remove_columns=data.column_names
            )
            made.to_json(str(out / f"{name}l"), force_ascii=False)
            count += len(made)
    return count


def _batch(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
    """datasets hands over columns and wants columns back."""
    from bs4 import BeautifulSoup

    def html(markup: str) -> str:
        return str(BeautifulSoup(markup, "lxml").get_text(" "))

    names = list(batch)
    columns: dict[str, list[str]] = {key: [] for key in row("", "", "")}
    for values in zip(*batch.values(), strict=True):
        for made in rows_of(dict(zip(names, values, strict=True)), lambda text: text, html):
            for key, value in made.items():
                columns[key].append(value)
    return columns


def _each(path: Path, parse: Callable[[bytes], int]) -> int:
    count = 0
    for _, open_ in members(path):
        with open_() as file:
            count += parse(file.read())
    return count


def parse_orjson(path: Path, out: Path) -> int:
    """Every value of the file as a Python object."""
    import orjson

    return _each(path, lambda data: len(records_of(orjson.loads(data))))


def parse_msgspec(path: Path, out: Path) -> int:
    """The named fields only, typed; the rest is skipped."""
    import msgspec

    kind = _msgspec_type(path.name)
    decoder: Any = msgspec.json.Decoder(kind)

    def parse(data: bytes) -> int:
        value = decoder.decode(data)
        return len(value.data if hasattr(value, "data") else value)

    return _each(path, parse)


def _msgspec_type(name: str) -> Any:
    """Shape of a file, by its name."""
    import msgspec

    def struct(kind: str, **fields: Any) -> Any:
        return msgspec.defstruct(kind, list(fields.items()), gc=False)

    def many(kind: Any) -> Any:
        return GenericAlias(list, (kind,))

    if "ko_dataset" in name:
        turns = many(struct("Turn", **{"from": str, "value": str}))
        return many(struct("Talk", id=str, conversations=turns))
    if "alpaca" in name:
        return many(struct("Task", instruction=str, input=str, output=str))
    if "v1.0" in name:
        answers = many(struct("Answer", text=str, answer_start=int))
        qas = many(struct("QA", question=str, id=str, answers=answers))
        paragraphs = many(struct("Paragraph", context=str, qas=qas))
        records = many(struct("Article", title=str, paragraphs=paragraphs))
    else:
        answer = struct("Answer", text=str, answer_start=int)
        qas = many(struct("QA", question=str, id=str, answer=answer))
        records = many(struct("Page", title=str, context=str, qas=qas))
    return struct("File", data=records)


def parse_simdjson(path: Path, out: Path) -> int:
    """simdjson's tape, then every value as a Python object."""
    import simdjson

    def parse(data: bytes) -> int:
        document: Any = simdjson.Parser().parse(data)
        value = document.as_list() if hasattr(document, "as_list") else document.as_dict()
        return len(records_of(value))

    return _each(path, parse)


def scan_simdjson(path: Path, out: Path) -> int:
    """simdjson's tape only: checked bytes, no values."""
    import simdjson

    def parse(data: bytes) -> int:
        document: Any = simdjson.Parser().parse(data)
        return len(document if hasattr(document, "as_list") else document["data"])

    return _each(path, parse)


def chain(path: Path, out: Path) -> int:
    """The fastest bare steps from an HTML page to rows, one page in memory at a time."""
    import ijson  # type: ignore[import-untyped]
    import orjson
    from resiliparse.extract.html2text import extract_plain_text

    count = 0
    for name, open_ in members(path):
        with open_() as file, (out / f"{name}l").open("wb") as lines:
            # Its default of 64 KiB halves the rate: pages are longer than that.
            for page in ijson.items(file, "data.item", buf_size=4 << 20):
                del page["raw_html"]
                context = extract_plain_text(page["context"])
                for qa in page["qas"]:
                    made = row(qa["question"], context, qa["answer"]["text"])
                    lines.write(orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE))
                    count += 1
    return count


PEERS: dict[str, Callable[[Path, Path], int]] = {
    "plain": plain,
    "plain-json": plain_json,
    "datasets": datasets,
    "parse-orjson": parse_orjson,
    "parse-msgspec": parse_msgspec,
    "parse-simdjson": parse_simdjson,
    "scan-simdjson": scan_simdjson,
    "chain": chain,
}


def run(name: str, files: Iterable[Path], out: Path) -> dict[str, Any]:
    """One peer over the files in turn: rows (records for the parsers) and seconds of each file."""
    counts, seconds = {}, {}
    for path in files:
        start = time.perf_counter()
        counts[path.name] = PEERS[name](path, out)
        seconds[path.name] = round(time.perf_counter() - start, 4)
    return {"rows": counts, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    json.dump(run(options.name, options.files, options.out), sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
