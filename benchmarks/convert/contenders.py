"""Who runs on what: the contenders, their commands and the inputs they get."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLICE = 0.1  # of the bytes, for contenders that would take many minutes
PARSERS = ("parse-orjson", "parse-msgspec", "parse-simdjson")
ALL_CORES, ONE_JOB, NEAR = "kodolly", "kodolly --jobs 1", "kodolly --rule near-duplicate=count"


@dataclass(frozen=True, slots=True)
class Input:
    """Files of one kind; `bytes` are uncompressed, `rows` question-answer pairs."""

    name: str
    files: tuple[Path, ...]
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table; `once` means in the first round only."""

    name: str
    input: Input
    once: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("kodolly")

    def command(self, out: Path) -> list[str]:
        """The process to measure; it writes below `out`, which is not there yet."""
        files = [str(file) for file in self.input.files]
        if not self.ours:
            head = [sys.executable, "-m", "benchmarks.convert.peers", self.name]
            return [*head, "--out", str(out), *files]
        kodolly = str(Path(sys.executable).with_name("kodolly"))
        command = [kodolly, "convert", *files, "--out", str(out), "--quiet"]
        if self.name == ONE_JOB:
            command += ["--jobs", "1"]
        if self.name == NEAR:
            command += ["--rule", "near-duplicate=count"]
        return command


def contenders(corpus: Path, about: dict[str, Any], quick: bool) -> list[Contender]:
    """All of them in the order of a round; a quick corpus is small enough for everyone."""
    text, pages = (inputs(corpus, about, part) for part in ("text", "korquad2"))
    if quick:
        small_text, small_pages = text, pages
    else:
        small_text = text_slice(text, corpus / "slice")
        small_pages = page_slice(pages, about)
    return [
        Contender(ALL_CORES, text),
        *(Contender(name, text) for name in (*PARSERS, "scan-simdjson")),
        Contender(ONE_JOB, text),
        Contender("plain-json", text, once=True),
        Contender("plain", small_text, once=True),
        Contender("datasets", text, once=True),
        Contender(NEAR, text, once=True),
        Contender(ONE_JOB, pages),
        Contender("chain", pages),
        Contender(ALL_CORES, pages),
        Contender("plain", small_pages, once=True),
        Contender("datasets", small_pages, once=True),
    ]


def inputs(corpus: Path, about: dict[str, Any], part: str) -> Input:
    """The corpus's files below `part`."""
    files = [file for file in about["files"] if file["path"].startswith(f"{part}/")]
    paths = tuple(corpus / file["path"] for file in files)
    return Input(part, paths, sum(f["bytes"] for f in files), sum(f["rows"] for f in files))


def page_slice(pages: Input, about: dict[str, Any]) -> Input:
    """The smallest zip of the pages."""
    smallest = min(
        (file for file in about["files"] if file["source"] == "korquad2"), key=lambda f: f["bytes"]
    )
    path = next(path for path in pages.files if path.name == Path(smallest["path"]).name)
    return Input(f"{pages.name}, {path.name}", (path,), smallest["bytes"], smallest["rows"])


# From the end of one record to the start of the next, in each file's own layout.
_BORDER = re.compile(rb'\},(\s*\{\s*"(?:id": "K|instruction"|paragraphs"))')


def text_slice(text: Input, folder: Path) -> Input:
    """The beginnings of the text files, cut at a record's border; rows by the share of bytes."""
    folder.mkdir(exist_ok=True)
    paths, size = [], 0
    for source in text.files:
        path = folder / source.name
        wanted = int(source.stat().st_size * SLICE)
        start = max(0, wanted - (1 << 20))  # the last border is not far from the end
        end = b"}]}" if source.name.startswith("KorQuAD") else b"}\n]"
        with source.open("rb") as file, path.open("wb") as cut:
            while (left := start - file.tell()) > 0:
                cut.write(file.read(min(left, 1 << 20)))
            tail = file.read(wanted - start)
            *_, border = _BORDER.finditer(tail)
            cut.write(tail[: border.start()] + end)
        paths.append(path)
        size += path.stat().st_size
    return Input(
        f"text, first {SLICE:.0%} of each file",
        tuple(paths),
        size,
        round(text.rows * size / text.bytes),
    )
