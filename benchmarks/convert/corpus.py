"""A made-up corpus of the study's size: 923,590 rows in the files' own shapes and lengths.

    python -m benchmarks.convert.corpus --out DIR [--scale 1.0] [--seed 0]

DIR/text holds the text sources, DIR/korquad2 the zips of HTML pages, DIR/corpus.json what was made.
KorQuAD 2's pages are a tenth of the original's (4,323 of 43,232; 9,365 of 93,651 questions), as is said
wherever their rows are counted: 714,138 + 49,620 + 66,181 + 93,651 = 923,590. No real row is in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import orjson

from benchmarks.convert import rows
from benchmarks.convert.korean import Korean
from benchmarks.convert.pages import Pages

VERSION = 1  # a corpus made by another version is made anew
STUDY_ROWS = 923_590
KORQUAD2_QUESTIONS = 93_651  # in the original
PAIRS = 310_000  # of each conversation file
CONVERSATIONS, BROKEN = 84_260, 811
ALPACA_STYLE, ALPACA = 94_138, 49_620
KORQUAD1 = {"train": (60_407, 9_681), "dev": (5_774, 964)}  # questions, paragraphs
# A tenth of KorQuAD 2.1: pages and questions of each JSON file, zip by zip.
KORQUAD2: dict[str, dict[str, tuple[int, int]]] = {
    "KorQuAD_2.1_train_00.zip": {f"korquad2.1_train_{i:02}.json": (1000, 2169) for i in range(3)},
    "KorQuAD_2.1_train_01.zip": {"korquad2.1_train_03.json": (850, 1842)},
    "KorQuAD_2.1_dev_00.zip": {"korquad2.1_dev_00.json": (473, 1016)},
}


@dataclass(frozen=True, slots=True)
class Made:
    """One file: `rows` are question-answer pairs, good or bad; bytes are uncompressed."""

    path: str
    source: str
    rows: int
    bytes: int
    bytes_on_disk: int


def make(out: Path, scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """The corpus in `out`, made by two processes; what is there already is kept."""
    wanted = {"version": VERSION, "scale": scale, "seed": seed}
    index = out / "corpus.json"
    if index.exists():
        found: dict[str, Any] = json.loads(index.read_text())
        if all(found[key] == value for key, value in wanted.items()):
            return found
    for part in ("text", "korquad2"):
        (out / part).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # Spawned: the same bytes come out whatever the caller has imported.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        jobs = [pool.submit(_run, name, str(out), scale, seed) for name in _jobs()]
        made = sorted((one for job in as_completed(jobs) for one in job.result()), key=_path)
    about: dict[str, Any] = {**wanted, "seconds": round(time.monotonic() - start, 1)}
    about["files"] = [asdict(one) for one in made]
    about["rows"] = sum(one.rows for one in made)
    if scale == 1.0:
        pages = sum(one.rows for one in made if one.source == "korquad2")
        about["study_rows"] = about["rows"] - pages + KORQUAD2_QUESTIONS
    index.write_text(json.dumps(about, indent=2) + "\n")
    return about


def _path(made: Made) -> str:
    return made.path


def _jobs() -> list[str]:
    """Names of the jobs, longest first."""
    return ["kovicuna", *KORQUAD2, "alpaca-style", "korquad1", "alpaca"]


def _run(name: str, out: str, scale: float, seed: int) -> list[Made]:
    """One job in a process of a pool; its text follows from its name and the seed alone."""
    random = Random(f"{seed}/{name}")
    if name in KORQUAD2:
        return [_korquad2(name, Path(out), scale, random)]
    jobs: dict[str, Callable[[Path, float, Random], list[Made]]] = {
        "kovicuna": _kovicuna,
        "alpaca-style": _alpaca_style,
        "alpaca": _alpaca,
        "korquad1": _korquad1,
    }
    return jobs[name](Path(out) / "text", scale, random)


def scaled(number: int, scale: float) -> int:
    """At least one of everything."""
    return max(round(number * scale), 1)


def shares(random: Random, total: int, parts: int) -> list[int]:
    """`total` dealt out at random to `parts`, at least one each."""
    counts = [1] * parts
    for part in random.choices(range(parts), k=max(total - parts, 0)):
        counts[part] += 1
    return counts


def indented(records: Iterable[Any], file: BinaryIO) -> None:
    """A JSON array as `json.dump(..., indent=2, ensure_ascii=False)` writes it, without holding it."""
    mark = b"[\n  "
    for record in records:
        file.write(mark)
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2).replace(b"\n", b"\n  "))
        mark = b",\n  "
    file.write(b"\n]")


def _kovicuna(folder: Path, scale: float, random: Random) -> list[Made]:
    """Both conversation files at once: the second is the first without its broken conversations."""
    good, broken = scaled(CONVERSATIONS, scale), scaled(BROKEN, scale)
    pairs = shares(random, scaled(PAIRS, scale), good)
    paths = [folder / "ko_dataset.json", folder / "ko_dataset_2.json"]
    odd = frozenset(random.sample(range(good), min(broken, good)))
    maker = rows.Conversations(random)
    with paths[0].open("wb") as first, paths[1].open("wb") as second:

        def everything() -> Iterator[Any]:
            mark = b"[\n  "
            for number, count in enumerate(pairs):
                if number in odd:
                    yield maker.broken(number)
                record = maker.good(number, count)
                text = orjson.dumps(record, option=orjson.OPT_INDENT_2)
                second.write(mark + text.replace(b"\n", b"\n  "))
                mark = b",\n  "
                yield orjson.Fragment(text)
            second.write(b"\n]")

        indented(everything(), first)
    return [_made(path, "kovicuna", sum(pairs)) for path in paths]


def _alpaca_style(folder: Path, scale: float, random: Random) -> list[Made]:
    path, count = folder / "ko_alpaca_style_dataset.json", scaled(ALPACA_STYLE, scale)
    with path.open("wb") as file:
        indented(rows.long_instructions(random, count), file)
    return [_made(path, "kovicuna", count)]


def _alpaca(folder: Path, scale: float, random: Random) -> list[Made]:
    path, count = folder / "ko_alpaca_data.json", scaled(ALPACA, scale)
    with path.open("wb") as file:
        mark = b"[\n"
        for row in rows.instructions(random, count):
            parts = (f'    "{key}":'.encode() + orjson.dumps(text) for key, text in row.items())
            file.write(mark + b"  {\n" + b",\n".join(parts) + b"\n  }")
            mark = b",\n"
        file.write(b"\n]")
    return [_made(path, "alpaca", count)]


def _korquad1(folder: Path, scale: float, random: Random) -> list[Made]:
    """SQuAD 1.1 in one line, escaped to ASCII; an article holds some seven paragraphs."""
    made, korean, number = [], Korean(random, style="study"), 0
    for part, (questions, paragraphs) in KORQUAD1.items():
        counts = shares(random, scaled(questions, scale), scaled(paragraphs, scale))
        path = folder / f"KorQuAD_v1.0_{part}.json"
        with path.open("w", encoding="ascii", newline="") as file:
            file.write(f'{{"version": "KorQuAD_v1.0_{part}", "data": [')
            mark = ""
            for start in range(0, len(counts), 7):
                article = rows.article(korean, counts[start : start + 7], number)
                number += sum(counts[start : start + 7])
                file.write(mark + json.dumps(article))
                mark = ", "
            file.write("]}")
        made.append(_made(path, "korquad1", sum(counts)))
    return made


def _korquad2(name: str, out: Path, scale: float, random: Random) -> Made:
    """One zip; its JSON is escaped to ASCII in one line, as the only pages at hand are."""
    path, pages, size, number = out / "korquad2" / name, Pages(random), 0, 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, (count, questions) in KORQUAD2[name].items():
            parts = shares(random, scaled(questions, scale), scaled(count, scale))
            info = zipfile.ZipInfo(member, date_time=(2019, 9, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(b'{"version": "KorQuAD_2.1", "data": [')
                for place, share in enumerate(parts):
                    record = json.dumps(pages.page(share, number))
                    file.write((", " if place else "").encode() + record.encode("ascii"))
                    number += share
                file.write(b"]}")
            size += archive.getinfo(member).file_size
    return Made(f"korquad2/{name}", "korquad2", number, size, path.stat().st_size)


def _made(path: Path, source: str, count: int) -> Made:
    size = path.stat().st_size
    return Made(f"text/{path.name}", source, count, size, size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    about = make(options.out, options.scale, options.seed)
    for file in about["files"]:
        print(f"{file['bytes'] / 1e6:10,.1f} MB {file['rows']:9,} rows  {file['path']}")
    rows_text = f"{about['rows']:,} rows"
    if "study_rows" in about:
        rows_text += f"; with all of KorQuAD 2's questions {about['study_rows']:,}"
    print(f"{rows_text}; made in {about['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
