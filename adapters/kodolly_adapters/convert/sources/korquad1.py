"""KorQuAD 1.0: SQuAD 1.1 in Korean.

A record is an article {"title", "paragraphs": [{"context", "qas"}]} of {"data": [...]}, or a bare paragraph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Source
from ..schema import Draft, Refusal
from .common import Answer, Named, category_with_context, creative_commons


class Question(Named, gc=False):
    """One question; SQuAD 2 shapes have some that cannot be answered."""

    question: str | None = None
    answers: list[Answer] | None = None
    is_impossible: bool = False


class Paragraph(msgspec.Struct, gc=False):
    """A text and the questions asked about it."""

    context: str | None = None
    qas: list[Question] | None = None


class Record(Paragraph, gc=False):
    """An article, or a bare paragraph."""

    title: str | None = None
    paragraphs: list[Paragraph] | None = None


def _paragraphs(record: Record) -> list[Paragraph]:
    return [*(record.paragraphs or ()), record]


def questions(record: Record) -> int:
    """How many questions the record holds: what its drafts' and refusals' units add up to."""
    return sum(len(paragraph.qas or ()) for paragraph in _paragraphs(record))


def drafts(record: Record, options: Options) -> Drafts:
    """One row a question."""
    category = category_with_context(options)
    turn = -1
    for paragraph in _paragraphs(record):
        context = paragraph.context or ""
        for question in paragraph.qas or ():
            turn += 1
            answer = question.answers[0] if question.answers else Answer()
            text, start, name = answer.text, answer.answer_start, question.name
            if not text or question.is_impossible:
                yield Refusal("no-answer", "the record has no answer to the question", name, turn)
            elif text not in context:
                yield Refusal("answer-not-found", "the answer is not in the context", name, turn)
            else:
                is_there = start is not None and start >= 0 and context.startswith(text, start)
                yield Draft(
                    question.question or "", context, text, category, name, turn,
                    group=record.title or context, notes=() if is_there else ("answer-start",),
                )  # fmt: skip
    if turn < 0:
        yield Refusal("no-questions", "the article has no questions", record.title or "", units=0)


# What KorQuAD 2, and what KLUE-MRC and SQuAD 2.0 have: other sets with other licences.
FOREIGN = frozenset({"answer", "is_impossible", "plausible_answers", "guid"})


def looks_like(record: Mapping[str, Any]) -> bool:
    """An article of paragraphs, or one paragraph whose questions have `answers` (KorQuAD 2: `answer`)."""
    paragraphs = record.get("paragraphs", [record])
    if "raw_html" in record or not isinstance(paragraphs, list) or not paragraphs:
        return False
    return all(
        isinstance(paragraph, dict)
        and "context" in paragraph
        and isinstance(paragraph.get("qas"), list)
        and all(isinstance(q, dict) and not FOREIGN & q.keys() for q in paragraph["qas"])
        for paragraph in paragraphs
    )


KORQUAD1 = Source(
    name="korquad1",
    title="KorQuAD 1.0",
    licence=creative_commons(
        "BY-ND 2.0 KR", "Converted rows are a derivative: train on them, but do not hand them on."
    ),
    record=Record,
    # A bare paragraph's keys also begin the paragraphs inside an article, so they mark no border.
    first_keys=frozenset({"title", "paragraphs"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("KorQuAD_v1.0_*.json",),
    unit="questions",
    units=questions,
)
