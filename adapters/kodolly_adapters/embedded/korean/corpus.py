"""From rows and free text to the files training reads: running text, Dolly rows, rows kept apart."""

from __future__ import annotations

import csv
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.embedded.korean.reading import (
    HELD_OUT_NAMES,
    Row,
    reading_rows,
    sums,
)

SEED = 20231222
HELD_OUT_ONE_IN = 10
PROSE_CHARACTERS = 600  # of one document
EVERYDAY = "0"  # ChatbotData's label of small talk; 1 and 2 are about parting and love

# How much of what, within the CPU time that half an hour of one core gives.
READING_TEXTS, OWN_PASSES_TEXT, CHAT_PASSES_TEXT = 4000, 4, 2
PROSE_ONE_IN = 3  # documents: software help teaches grammar, but little of how people talk
TALK_READING, TALK_OWN_PASSES, TALK_CHAT_ONE_IN, TALK_SUMS_PASSES = 1500, 16, 2, 3
READING_ROWS, OWN_PASSES_ROWS, CHAT_ROWS_ONE_IN = 400, 2, 10
# Most of what is learned stands in dialogues: one introduction, a third of the tokens, serves many answers.
DIALOGUES, LONGEST_DIALOGUE = 1000, 10
HELD_OUT_READING = 60


@dataclass(frozen=True, slots=True)
class Sources:
    """The two sets from elsewhere; neither is part of KoDolly. None leaves one out."""

    chatbot: Path | None  # ChatbotData.csv (MIT): columns Q, A, label
    prose: Path | None  # Korean prose, one paragraph a line (MPL-2.0: LibreOffice's help)


def own_rows() -> list[Row]:
    """The rows that come with KoDolly, in their order."""
    source = resources.files(__package__).joinpath("rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in source.splitlines()]


def is_held_out(row: Row) -> bool:
    """Whether `row` is one of the tenth that is kept apart, by its own text alone."""
    text = row["instruction"] + "\n" + row["context"]
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def write_corpus(sources: Sources, out: Path) -> dict[str, int]:
    """Write pretrain.jsonl, talk.jsonl, tune.jsonl and heldout.jsonl into `out`; returns lines of each.

    The same sources give the same bytes. No held-out row is in the other three.
    """
    files: dict[str, Sequence[Any]] = {
        "pretrain.jsonl": [{"text": text} for text in pretraining_texts(sources)],
        "talk.jsonl": [{"text": text} for text in talk_texts(sources)],
        "tune.jsonl": tuning_rows(sources),
        "heldout.jsonl": held_out_rows(),
    }
    return {name: _write(out / name, lines) for name, lines in files.items()}


def held_out_rows() -> list[Row]:
    """The tenth of our rows kept apart, and reading questions about people never trained on."""
    reading = itertools.islice(reading_rows(SEED + 1, HELD_OUT_NAMES), HELD_OUT_READING)
    own = [row for row in own_rows() if is_held_out(row)]
    return [*own, *({**row, "source": "reading"} for row in reading)]


def pretraining_texts(sources: Sources) -> list[str]:
    """Documents for the base: prose, talk, reading pieces and sums, shuffled."""
    draw = random.Random(SEED)
    texts = list(_prose(sources.prose))[::PROSE_ONE_IN]
    chat = [pair for pair, _ in _chat(sources.chatbot)] * CHAT_PASSES_TEXT
    own = [_pair(row) for row in _trained(own_rows())] * OWN_PASSES_TEXT
    reading = map(_pair, itertools.islice(reading_rows(SEED + 2), READING_TEXTS))
    arithmetic = [_pair(row) for row in _trained(sums())]
    pairs = [*chat, *own, *reading, *arithmetic]
    texts += _talks(draw, pairs)
    draw.shuffle(texts)
    return texts


def talk_texts(sources: Sources) -> list[str]:
    """Documents for the base's second stage: our own questions and answers, many times over."""
    draw = random.Random(SEED + 4)
    chat = [pair for pair, label in _chat(sources.chatbot) if label == EVERYDAY]
    own = [_pair(row) for row in _trained(own_rows())] * TALK_OWN_PASSES
    reading = map(_pair, itertools.islice(reading_rows(SEED + 5), TALK_READING))
    arithmetic = [_pair(row) for row in _trained(sums())] * TALK_SUMS_PASSES
    return _talks(draw, [*chat[::TALK_CHAT_ONE_IN], *own, *reading, *arithmetic])


def _talks(draw: random.Random, pairs: list[tuple[str, str]]) -> list[str]:
    """All `pairs`, shuffled, in documents of one to eight."""
    texts = []
    draw.shuffle(pairs)
    while pairs:
        size = draw.choice((1, 1, 2, 4, 8))
        texts.append(_talk(draw, pairs[-size:]))
        del pairs[-size:]
    return texts


def tuning_rows(sources: Sources) -> list[Any]:
    """Dolly rows and dialogues of them, shuffled."""
    draw = random.Random(SEED)
    own = _trained(own_rows())
    chat = [
        {"instruction": asked, "context": "", "response": answer, "category": "general_qa"}
        for (asked, answer), label in _chat(sources.chatbot)
        if label == EVERYDAY
    ]
    reading = list(itertools.islice(reading_rows(SEED + 3), READING_ROWS))
    arithmetic = _trained(sums())
    single = [*chat[::CHAT_ROWS_ONE_IN], *reading, *own * OWN_PASSES_ROWS]
    pools = {0.75: own, 0.12: chat or own, 0.05: reading, 0.08: arithmetic}
    dialogues = []
    for _ in range(DIALOGUES):
        chosen = draw.choices(
            list(pools.values()), list(pools), k=draw.randint(4, LONGEST_DIALOGUE)
        )
        dialogues.append(_dialogue([draw.choice(pool) for pool in chosen]))
    rows: list[Any] = [*single, *dialogues]
    draw.shuffle(rows)
    return rows


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not is_held_out(row)]


def _pair(row: Row) -> tuple[str, str]:
    asked = f"{row['context']}\n{row['instruction']}" if row["context"] else row["instruction"]
    return asked, row["response"]


def _talk(draw: random.Random, pairs: Sequence[tuple[str, str]]) -> str:
    """One document of questions and answers: bare lines, or under headings.

    The headings are not a template's keys, but they use the marks and words of them, so that no
    token of a template is unknown to the base: LoRA cannot teach the embeddings.
    """
    if draw.random() < 0.6:
        return "\n\n".join(f"{asked}\n{answer}" for asked, answer in pairs)
    asks, answers = draw.choice((("물음", "대답"), ("질문", "응답"), ("명령어", "답")))
    body = "\n\n".join(f"### {asks}:\n{a}\n\n### {answers}:\n{b}" for a, b in pairs)
    return f"{body}\n\n### 끝"


def _dialogue(rows: Sequence[Row]) -> dict[str, Any]:
    messages = []
    for row in rows:
        asked, answer = _pair(row)
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": messages}


def _prose(path: Path | None) -> Iterator[str]:
    """Documents of whole lines, each of PROSE_CHARACTERS or a little more."""
    if path is None:
        return
    held: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        held.append(line.strip())
        if sum(map(len, held)) >= PROSE_CHARACTERS:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def _chat(path: Path | None) -> Iterator[tuple[tuple[str, str], str]]:
    """((question, answer), label) of every line, each pair once."""
    if path is None:
        return
    seen = set()
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            pair = (line["Q"].strip(), line["A"].strip())
            if all(pair) and pair not in seen:
                seen.add(pair)
                yield pair, line["label"].strip()


def _write(path: Path, lines: Sequence[Any]) -> int:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return len(lines)
