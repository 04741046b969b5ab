"""Writes the files that training reads, from our rows and two public sets: text, Dolly rows, held-out rows."""

from __future__ import annotations

import csv
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kodolly_ko import DATA
from kodolly_ko.reading import Pair, Row, lists, passages, reading_rows, sums
from kodolly_ko.variations import normalise, normalise_core, vary

SEED = 20231222
HELD_OUT_ONE_IN = 10
PROSE_CHARACTERS = 600  # of one document
EVERYDAY = "0"  # ChatbotData's label of small talk; 1 and 2 are about parting and love

# How much of each kind: as much as one core can train on in three quarters of an hour.
PROSE_ONE_IN = 6  # documents: software help teaches grammar, but not how people talk
PASSAGES, LISTS, OWN_PASSES_TEXT = 12000, 4000, 3
TALK_PASSAGES, TALK_OWN_PASSES, TALK_CHAT_ONE_IN, TALK_SUMS_PASSES = 1300, 4, 6, 2
READING_ROWS, MORE_ROWS_ONE_IN, CHAT_ROWS_ONE_IN = 800, 6, 30
# A dialogue has one introduction for many answers, so that the same answers need a third of the tokens.
DIALOGUES, PASSAGE_DIALOGUES, LONGEST_DIALOGUE = 1000, 300, 10
VARIED_SHARE = 0.6  # of the questions; `vary` changes them
# Not the headings of a template, but of the same signs and words. So the base learns all tokens of a template,
# which LoRA cannot teach it later, as it does not train embeddings.
HEADINGS = (("물음", "대답"), ("질문", "응답"), ("명령어", "답"))


@dataclass(frozen=True, slots=True)
class Sources:
    """The two public sets, which are not part of KoDolly; None: go without it."""

    chatbot: Path | None  # ChatbotData.csv (MIT): columns Q, A, label
    prose: Path | None  # Korean prose, one paragraph a line (MPL-2.0: LibreOffice's help)


def own_rows() -> list[Row]:
    """The rows written for KoDolly, in their order."""
    return _lines("rows.jsonl")


def more_rows() -> list[Row]:
    """More ways to ask, one Dolly row each, without those that are a fixed prompt or a held-out row."""
    return [
        _row(question, line["response"], line["category"])
        for line in _lines("phrasings.jsonl")
        for question in line["questions"]
        if not is_reserved(question)
    ]


def is_held_out(row: Row) -> bool:
    """Is `row` in the held-out tenth? Only its own text decides."""
    text = row["instruction"] + "\n" + row["context"]
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def is_reserved(question: str) -> bool:
    """Is `question` that of a fixed prompt or a held-out row, apart from spaces, punctuation and openings?"""
    return not _reserved().isdisjoint({normalise(question), normalise_core(question)})


def write_corpus(sources: Sources, out: Path, share: float = 1.0) -> None:
    """Write pretrain.jsonl, talk.jsonl, tune.jsonl and heldout.jsonl into `out`.

    The same sources give the same bytes. No held-out row is in the other three. `share` (0 to 1)
    keeps only that share of each file's lines, for a quick try.
    """
    files: dict[str, Sequence[Any]] = {
        "pretrain.jsonl": [{"text": text} for text in pretraining_texts(sources)],
        "talk.jsonl": [{"text": text} for text in talk_texts(sources)],
        "tune.jsonl": tuning_rows(sources),
        "heldout.jsonl": held_out_rows(),
    }
    for name, lines in files.items():
        _write(out / name, lines[: round(share * len(lines))])


def held_out_rows() -> list[Row]:
    """The held-out tenth of our rows, and reading questions about people whose names are in no training file."""
    return [
        *filter(is_held_out, own_rows()),
        *({**row, "source": "reading"} for row in _lines("reading.jsonl")),
    ]


def pretraining_texts(sources: Sources) -> list[str]:
    """Documents for the base: prose, questions and answers, passages with questions, lists and sums, shuffled."""
    draw = random.Random(SEED)
    texts = list(_prose(sources.prose))[::PROSE_ONE_IN]
    chat = [pair for pair, _ in _chat(sources.chatbot)]
    own = _pairs(draw, _without_held_out(own_rows()), OWN_PASSES_TEXT)
    arithmetic = [_pair(row) for row in _without_held_out(sums())]
    texts += _talks(draw, [*chat, *own, *arithmetic])
    texts += _passages(draw, SEED + 2, PASSAGES)
    texts += itertools.islice(lists(SEED + 6), LISTS)
    draw.shuffle(texts)
    return texts


def talk_texts(sources: Sources) -> list[str]:
    """Documents for the base's second stage: mostly our own questions and answers, several times each."""
    draw = random.Random(SEED + 4)
    chat = [pair for pair, label in _chat(sources.chatbot) if label == EVERYDAY]
    own = _pairs(draw, [*_without_held_out(own_rows()), *more_rows()], TALK_OWN_PASSES)
    arithmetic = [_pair(row) for row in _without_held_out(sums())] * TALK_SUMS_PASSES
    texts = _talks(draw, [*chat[::TALK_CHAT_ONE_IN], *own, *arithmetic])
    texts += _passages(draw, SEED + 5, TALK_PASSAGES)
    draw.shuffle(texts)
    return texts


def tuning_rows(sources: Sources) -> list[Any]:
    """Dolly rows, and dialogues made of them, shuffled."""
    draw = random.Random(SEED)
    more = more_rows()
    own = [*_without_held_out(own_rows()), *more]
    chat = [
        _row(question, answer, "general_qa")
        for (question, answer), label in _chat(sources.chatbot)
        if label == EVERYDAY
    ]
    reading = list(itertools.islice(reading_rows(SEED + 3), READING_ROWS))
    arithmetic = _without_held_out(sums())
    ours = [*_without_held_out(own_rows()), *more[::MORE_ROWS_ONE_IN]]
    single = [_variation(draw, row) for row in ours]
    single += [*chat[::CHAT_ROWS_ONE_IN], *reading]
    pools = {0.82: own, 0.08: chat or own, 0.03: reading, 0.07: arithmetic}
    dialogues = []
    for _ in range(DIALOGUES):
        size = draw.randint(4, LONGEST_DIALOGUE)
        sample = draw.choices(list(pools.values()), list(pools), k=size)
        dialogues.append(_dialogue([_pair(_variation(draw, draw.choice(pool))) for pool in sample]))
    for text, questions in itertools.islice(passages(SEED + 7), PASSAGE_DIALOGUES):
        (first, answer), *rest = questions[:LONGEST_DIALOGUE]
        dialogues.append(_dialogue([(f"{text}\n{first}", answer), *rest]))
    rows: list[Any] = [*single, *dialogues]
    draw.shuffle(rows)
    return rows


@cache
def _reserved() -> frozenset[str]:
    """The normalised questions of the fixed prompts and of the held-out rows without a context."""
    prompts = [row["instruction"] for row in _lines("prompts.jsonl")]
    rows = [row["instruction"] for row in own_rows() if is_held_out(row) and not row["context"]]
    return frozenset(map(normalise, [*prompts, *rows]))


def _variation(draw: random.Random, row: Row) -> Row:
    """`row`, or a row that asks the same in another way."""
    if draw.random() >= VARIED_SHARE:
        return row
    question = vary(draw, row["instruction"])
    return row if is_reserved(question) else {**row, "instruction": question}


def _row(question: str, answer: str, category: str) -> Row:
    return {"instruction": question, "context": "", "response": answer, "category": category}


def _without_held_out(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not is_held_out(row)]


def _pairs(draw: random.Random, rows: Sequence[Row], passes: int) -> list[Pair]:
    return [_pair(_variation(draw, row)) for _ in range(passes) for row in rows]


def _pair(row: Row) -> Pair:
    return f"{row['context']}\n{row['instruction']}".lstrip("\n"), row["response"]


def _talks(draw: random.Random, pairs: list[Pair]) -> list[str]:
    """All `pairs`, shuffled, as documents of one to eight pairs."""
    texts = []
    draw.shuffle(pairs)
    while pairs:
        size = draw.choice((1, 1, 2, 4, 8))
        texts.append(_talk(draw, pairs[-size:]))
        del pairs[-size:]
    return texts


def _talk(draw: random.Random, pairs: Sequence[Pair]) -> str:
    """One document of questions and answers, as plain lines or under headings."""
    if draw.random() < 0.6:
        return "\n\n".join(f"{question}\n{answer}" for question, answer in pairs)
    return f"{_under_headings(draw, pairs)}\n\n### 끝"


def _passages(draw: random.Random, seed: int, number: int) -> list[str]:
    """`number` documents of a text and questions about it, which come after or before it."""
    return [_passage(draw, *passage) for passage in itertools.islice(passages(seed), number)]


def _passage(draw: random.Random, text: str, pairs: list[Pair]) -> str:
    kind = draw.random()
    if kind < 0.35:
        return "\n".join([text, *(f"{question}\n{answer}" for question, answer in pairs)])
    if kind < 0.55:
        return f"### 맥락:\n{text}\n\n{_under_headings(draw, pairs)}\n\n### 끝"
    ask, reply = draw.choice(HEADINGS)
    return "\n\n".join(
        f"### {ask}:\n{question}\n\n### 맥락:\n{text}\n\n### {reply}:\n{answer}\n\n### 끝"
        for question, answer in pairs[:2]
    )


def _under_headings(draw: random.Random, pairs: Sequence[Pair]) -> str:
    ask, reply = draw.choice(HEADINGS)
    return "\n\n".join(f"### {ask}:\n{q}\n\n### {reply}:\n{a}" for q, a in pairs)


def _dialogue(pairs: Sequence[Pair]) -> dict[str, Any]:
    messages = []
    for question, answer in pairs:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": messages}


def _prose(path: Path | None) -> Iterator[str]:
    """Documents of whole lines, each of PROSE_CHARACTERS or a little more."""
    if path is None:
        return
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        lines.append(line.strip())
        if sum(map(len, lines)) >= PROSE_CHARACTERS:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _chat(path: Path | None) -> Iterator[tuple[Pair, str]]:
    """((question, answer), label) of every line, each pair once, without reserved questions."""
    if path is None:
        return
    pairs = set()
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            pair = (line["Q"].strip(), line["A"].strip())
            if all(pair) and pair not in pairs and not is_reserved(pair[0]):
                pairs.add(pair)
                yield pair, line["label"].strip()


def _lines(name: str) -> list[Any]:
    """The values in one of the files in data/, by its name."""
    text = (DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write(path: Path, lines: Sequence[Any]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
