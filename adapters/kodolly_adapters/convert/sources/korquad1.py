"""KorQuAD 1.0: SQuAD 1.1 in Korean.

A record is an article {"title", "paragraphs": [{"context", "qas"}]} of {"data": [...]}, or a bare paragraph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Source
from ..schema import Draft, Rejection
from .common import Answer, WithId, category_with_context, creative_commons


class Question(WithId, gc=False):
    """One question; files in SQuAD 2's shape have some that cannot be answered."""

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
    """How many questions the record holds; the units of its drafts and rejections add up to this."""
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
            text, start, id_ = answer.text, answer.answer_start, question.id_text
            if not text or question.is_impossible:
                yield Rejection("no-answer", "the record has no answer to the question", id_, turn)
            elif text not in context:
                yield Rejection("answer-not-found", "the answer is not in the context", id_, turn)
            else:
                is_at_start = start is not None and start >= 0 and context.startswith(text, start)
                yield Draft(
                    question.question or "", context, text, category, id_, turn,
                    group=record.title or context, notes=() if is_at_start else ("answer-start",),
                )  # fmt: skip
    if turn < 0:
        yield Rejection("no-questions", "the article has no questions", record.title or "", units=0)


# Keys of questions in KorQuAD 2, KLUE-MRC and SQuAD 2.0: other sets with other licences.
FOREIGN_KEYS = frozenset({"answer", "is_impossible", "plausible_answers", "guid"})


def looks_like(record: Mapping[str, Any]) -> bool:
    """Is it an article of paragraphs, or one paragraph, whose questions have no FOREIGN_KEYS?"""
    paragraphs = record.get("paragraphs", [record])
    if "raw_html" in record or not isinstance(paragraphs, list) or not paragraphs:
        return False
    return all(
        isinstance(paragraph, dict)
        and "context" in paragraph
        and isinstance(paragraph.get("qas"), list)
        and all(isinstance(q, dict) and not FOREIGN_KEYS & q.keys() for q in paragraph["qas"])
        for paragraph in paragraphs
    )


KORQUAD1 = Source(
    name="korquad1",
    title="KorQuAD 1.0",
    licence=creative_commons(
        "BY-ND 2.0 KR", "Converted rows are a derivative: train on them, but do not hand them on."
    ),
    record=Record,
    # Without a bare paragraph's keys: paragraphs inside an article begin with them too.
    first_keys=frozenset({"title", "paragraphs"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("KorQuAD_v1.0_*.json",),
    unit="questions",
    units=questions,
)
