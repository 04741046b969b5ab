"""From rows and free text to the files training reads: running text, Dolly rows, rows kept apart."""

from __future__ import annotations

import csv
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.embedded.korean.reading import Asked, Row, lists, passages, reading_rows, sums
from kodolly_adapters.embedded.korean.variations import core, normalised, vary

SEED = 20231222
HELD_OUT_ONE_IN = 10
PROSE_CHARACTERS = 600  # of one document
EVERYDAY = "0"  # ChatbotData's label of small talk; 1 and 2 are about parting and love

# How much of what, within the CPU time that three quarters of an hour of one core give.
PROSE_ONE_IN = 6  # documents: software help teaches grammar, but little of how people talk
PASSAGES, LISTS, OWN_PASSES_TEXT = 12000, 4000, 3
TALK_PASSAGES, TALK_OWN_PASSES, TALK_CHAT_ONE_IN, TALK_SUMS_PASSES = 1300, 4, 6, 2
READING_ROWS, MORE_ROWS_ONE_IN, CHAT_ROWS_ONE_IN = 800, 6, 30
# Most of what is learned stands in dialogues: one introduction, a third of the tokens, serves many answers.
DIALOGUES, PASSAGE_DIALOGUES, LONGEST_DIALOGUE = 1000, 300, 10
VARIED = 0.6  # of the questions, how many are asked another way than they are written down


@dataclass(frozen=True, slots=True)
class Sources:
    """The two sets from elsewhere; neither is part of KoDolly. None leaves one out."""

    chatbot: Path | None  # ChatbotData.csv (MIT): columns Q, A, label
    prose: Path | None  # Korean prose, one paragraph a line (MPL-2.0: LibreOffice's help)


def own_rows() -> list[Row]:
    """The rows that come with KoDolly, in their order."""
    return _lines("rows.jsonl")


def more_rows() -> list[Row]:
    """More ways to ask, one Dolly row each. None is a fixed prompt or a row kept apart."""
    found = []
    for line in _lines("phrasings.jsonl"):
        for asked in line["asked"]:
            if not is_reserved(asked):
                row = {"instruction": asked, "context": "", "response": line["response"]}
                found.append({**row, "category": line["category"]})
    return found


def is_held_out(row: Row) -> bool:
    """Whether `row` is one of the tenth that is kept apart, by its own text alone."""
    text = row["instruction"] + "\n" + row["context"]
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def is_reserved(asked: str) -> bool:
    """Whether `asked` is, but for spaces, marks and an opening, a fixed prompt or a row kept apart."""
    return bool({normalised(asked), core(asked)} & _reserved())


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
    own = [row for row in own_rows() if is_held_out(row)]
    return [*own, *({**row, "source": "reading"} for row in _lines("reading.jsonl"))]


def pretraining_texts(sources: Sources) -> list[str]:
    """Documents for the base: prose, talk, passages with questions, lists and sums, shuffled."""
    draw = random.Random(SEED)
    texts = list(_prose(sources.prose))[::PROSE_ONE_IN]
    chat = [pair for pair, _ in _chat(sources.chatbot)]
    own = _pairs(draw, _trained(own_rows()), OWN_PASSES_TEXT)
    arithmetic = [_pair(row) for row in _trained(sums())]
    texts += _talks(draw, [*chat, *own, *arithmetic])
    texts += _passages(draw, SEED + 2, PASSAGES)
    texts += itertools.islice(lists(SEED + 6), LISTS)
    draw.shuffle(texts)
    return texts


def talk_texts(sources: Sources) -> list[str]:
    """Documents for the base's second stage: our own questions and answers, many times over."""
    draw = random.Random(SEED + 4)
    chat = [pair for pair, label in _chat(sources.chatbot) if label == EVERYDAY]
    own = _pairs(draw, [*_trained(own_rows()), *more_rows()], TALK_OWN_PASSES)
    arithmetic = [_pair(row) for row in _trained(sums())] * TALK_SUMS_PASSES
    texts = _talks(draw, [*chat[::TALK_CHAT_ONE_IN], *own, *arithmetic])
    texts += _passages(draw, SEED + 5, TALK_PASSAGES)
    draw.shuffle(texts)
    return texts


def tuning_rows(sources: Sources) -> list[Any]:
    """Dolly rows and dialogues of them, shuffled."""
    draw = random.Random(SEED)
    more = more_rows()
    own = [*_trained(own_rows()), *more]
    chat = [
        {"instruction": asked, "context": "", "response": answer, "category": "general_qa"}
        for (asked, answer), label in _chat(sources.chatbot)
        if label == EVERYDAY
    ]
    reading = list(itertools.islice(reading_rows(SEED + 3), READING_ROWS))
    arithmetic = _trained(sums())
    single = [_varied(draw, row) for row in [*_trained(own_rows()), *more[::MORE_ROWS_ONE_IN]]]
    single += [*chat[::CHAT_ROWS_ONE_IN], *reading]
    pools = {0.82: own, 0.08: chat or own, 0.03: reading, 0.07: arithmetic}
    dialogues = []
    for _ in range(DIALOGUES):
        chosen = draw.choices(
            list(pools.values()), list(pools), k=draw.randint(4, LONGEST_DIALOGUE)
        )
        pairs = [_pair(_varied(draw, draw.choice(pool))) for pool in chosen]
        dialogues.append(_dialogue(pairs))
    for text, asked in itertools.islice(passages(SEED + 7), PASSAGE_DIALOGUES):
        (first, answer), *rest = asked[:LONGEST_DIALOGUE]
        dialogues.append(_dialogue([(f"{text}\n{first}", answer), *rest]))
    rows: list[Any] = [*single, *dialogues]
    draw.shuffle(rows)
    return rows


@cache
def _reserved() -> frozenset[str]:
    prompts = [row["instruction"] for row in _lines("prompts.jsonl")]
    held = [row["instruction"] for row in own_rows() if is_held_out(row) and not row["context"]]
    return frozenset(normalised(asked) for asked in (*prompts, *held))


def _varied(draw: random.Random, row: Row) -> Row:
    """`row`, or a row that asks the same another way."""
    asked = vary(draw, row["instruction"]) if draw.random() < VARIED else row["instruction"]
    return row if is_reserved(asked) else {**row, "instruction": asked}


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not is_held_out(row)]


def _pairs(draw: random.Random, rows: Sequence[Row], passes: int) -> list[Asked]:
    return [_pair(_varied(draw, row)) for _ in range(passes) for row in rows]


def _pair(row: Row) -> Asked:
    asked = f"{row['context']}\n{row['instruction']}" if row["context"] else row["instruction"]
    return asked, row["response"]


def _talks(draw: random.Random, pairs: list[Asked]) -> list[str]:
    """All `pairs`, shuffled, in documents of one to eight."""
    texts = []
    draw.shuffle(pairs)
    while pairs:
        size = draw.choice((1, 1, 2, 4, 8))
        texts.append(_talk(draw, pairs[-size:]))
        del pairs[-size:]
    return texts


def _talk(draw: random.Random, pairs: Sequence[Asked]) -> str:
    """One document of questions and answers: bare lines, or under headings.

    The headings are not a template's keys, but they use the marks and words of them, so that no
    token of a template is unknown to the base: LoRA cannot teach the embeddings.
    """
    if draw.random() < 0.6:
        return "\n\n".join(f"{asked}\n{answer}" for asked, answer in pairs)
    asks, answers = _headings(draw)
    body = "\n\n".join(f"### {asks}:\n{a}\n\n### {answers}:\n{b}" for a, b in pairs)
    return f"{body}\n\n### 끝"


def _passages(draw: random.Random, seed: int, number: int) -> list[str]:
    """`number` documents of a text and questions about it, which stand behind it or before."""
    return [_passage(draw, *passage) for passage in itertools.islice(passages(seed), number)]


def _passage(draw: random.Random, text: str, pairs: list[Asked]) -> str:
    kind = draw.random()
    if kind < 0.35:
        return "\n".join([text, *(f"{asked}\n{answer}" for asked, answer in pairs)])
    asks, answers = _headings(draw)
    if kind < 0.55:
        body = "\n\n".join(f"### {asks}:\n{a}\n\n### {answers}:\n{b}" for a, b in pairs)
        return f"### 맥락:\n{text}\n\n{body}\n\n### 끝"
    return "\n\n".join(
        f"### {asks}:\n{asked}\n\n### 맥락:\n{text}\n\n### {answers}:\n{answer}\n\n### 끝"
        for asked, answer in pairs[:2]
    )


def _headings(draw: random.Random) -> tuple[str, str]:
    return draw.choice((("물음", "대답"), ("질문", "응답"), ("명령어", "답")))


def _dialogue(pairs: Sequence[Asked]) -> dict[str, Any]:
    messages = []
    for asked, answer in pairs:
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


def _chat(path: Path | None) -> Iterator[tuple[Asked, str]]:
    """((question, answer), label) of every line, each pair once; none that is kept apart."""
    if path is None:
        return
    seen = set()
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            pair = (line["Q"].strip(), line["A"].strip())
            if all(pair) and pair not in seen and not is_reserved(pair[0]):
                seen.add(pair)
                yield pair, line["label"].strip()


def _lines(name: str) -> list[Any]:
    source = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in source.splitlines()]


def _write(path: Path, lines: Sequence[Any]) -> int:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return len(lines)
