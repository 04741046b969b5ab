"""Questions about a paragraph, in SQuAD's shape: KorQuAD 1.0, KLUE-MRC, AI-Hub's reading sets.

A record is an article {"title", "paragraphs": [{"context", "qas"}]} of {"data": [...]}, or a bare paragraph. In
AI-Hub's files keys have other names, and an answer is one object. In the flat form of the Hugging Face hub a record
is one question beside its context, and its answers are {"text": [...], "answer_start": [...]}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from ..options import Options
from ..reading.licences import creative_commons
from ..reading.source import Drafts, Source
from ..schema import Draft, Rejection
from .common import WithId, category_with_context


class Answers(msgspec.Struct, gc=False):
    """One answer and where in the context it starts, in characters; or those of all answers as lists.

    Of any type, so that an odd answer costs its own question and not the whole article.
    """

    text: Any = None
    answer_start: Any = None


class Question(WithId, gc=False):
    """One question; files in SQuAD 2's shape have some that cannot be answered."""

    question: str | None = None
    answers: list[Answers] | Answers | None = None
    answer: Answers | None = None
    is_impossible: Any = None
    question_id: str | int | None = None
    guid: str | None = None

    def first_answer(self) -> tuple[str, Any]:
        """The first answer's text, "" without one, and its start."""
        answers = self.answers or self.answer
        first = answers[0] if isinstance(answers, list) else answers or Answers()
        text, start = (
            next(iter(value), None) if isinstance(value, list) else value
            for value in (first.text, first.answer_start)
        )
        return text if isinstance(text, str) else "", start


class Paragraph(msgspec.Struct, gc=False):
    """A text and the questions asked about it."""

    context: str | None = None
    qas: list[Question] | None = None


class Record(Paragraph, gc=False):
    """An article, or a bare paragraph."""

    title: str | None = None
    doc_title: str | None = None
    paragraphs: list[Paragraph] | None = None


class FlatRecord(Question, gc=False):
    """One question beside its context."""

    context: str | None = None
    title: str | None = None


def _paragraphs(record: Record) -> list[Paragraph]:
    return [*(record.paragraphs or ()), record]


def questions(record: Record) -> int:
    """How many questions the record holds, at least 1; the units of its drafts and rejections add up to this."""
    return sum(len(paragraph.qas or ()) for paragraph in _paragraphs(record)) or 1


def drafts(record: Record, options: Options) -> Drafts:
    """One row a question."""
    title, turn = record.title or record.doc_title or "", 0
    for paragraph in _paragraphs(record):
        for question in paragraph.qas or ():
            yield _draft(question, paragraph.context or "", title, turn, options)
            turn += 1
    if not turn:
        yield Rejection("no-questions", "the article has no questions", title)


def flat_drafts(record: FlatRecord, options: Options) -> Drafts:
    """One row a record."""
    yield _draft(record, record.context or "", record.title or "", 0, options)


def _draft(
    question: Question, context: str, title: str, turn: int, options: Options
) -> Draft | Rejection:
    given = (question.id, question.question_id, question.guid)
    id_ = next((str(one) for one in given if one is not None), "")
    text, start = question.first_answer()
    if question.is_impossible is True:
        detail = "the set marks the question as impossible to answer"
        return Rejection("impossible-question", detail, id_, turn)
    if not text:
        return Rejection("no-answer", "the record has no answer to the question", id_, turn)
    if text not in context:
        return Rejection("answer-not-found", "the answer is not in the context", id_, turn)
    is_at_start = isinstance(start, int) and start >= 0 and context.startswith(text, start)
    return Draft(
        question.question or "", context, text, category_with_context(options), id_, turn,
        group=title or context, notes=() if is_at_start else ("answer-start",),
    )  # fmt: skip


def looks_like(record: Mapping[str, Any]) -> bool:
    """Is it an article of paragraphs, or one paragraph, with questions? KorQuAD 2's pages are none."""
    paragraphs = record.get("paragraphs", [record])
    if "raw_html" in record or not isinstance(paragraphs, list) or not paragraphs:
        return False
    return all(
        isinstance(paragraph, dict)
        and "context" in paragraph
        and isinstance(paragraph.get("qas"), list)
        and all(isinstance(one, dict) for one in paragraph["qas"])
        and not _is_html(paragraph)
        for paragraph in paragraphs
    )


def _is_html(paragraph: Mapping[str, Any]) -> bool:
    """Is it one of KorQuAD 2's pages, whose questions have one answer?"""
    is_page = str(paragraph["context"]).lstrip().startswith("<")
    return is_page and any("answer" in one for one in paragraph["qas"])


def is_flat(record: Mapping[str, Any]) -> bool:
    """Is it a question beside its context, whose answers are objects?"""
    answers = record.get("answers", record.get("answer"))
    return {"question", "context"} <= record.keys() and isinstance(answers, dict | list)


SQUAD = Source(
    name="squad",
    title="Questions about paragraphs",
    record=Record,
    # Without a bare paragraph's keys: paragraphs inside an article begin with them too.
    first_keys=frozenset({"title", "paragraphs", "doc_id", "doc_title"}),
    looks_like=looks_like,
    drafts=drafts,
    unit="questions",
    units=questions,
)
KORQUAD1 = replace(
    SQUAD,
    name="korquad1",
    title="KorQuAD 1.0",
    licence=creative_commons(
        "BY-ND 2.0 KR", "Converted rows are a derivative: train on them, but do not hand them on."
    ),
    patterns=("KorQuAD_v1.0_*",),
    by_name=True,
)
KLUE_MRC = replace(
    SQUAD,
    name="klue-mrc",
    title="KLUE-MRC",
    licence=creative_commons(
        "BY-SA 4.0", "Rows may be handed on under the same licence, with their authors named."
    ),
    patterns=("klue-mrc-v1*",),
    by_name=True,
)
SQUAD_FLAT = Source(
    name="squad-flat",
    title="Questions beside their paragraphs",
    record=FlatRecord,
    first_keys=frozenset({"id", "guid", "title", "context", "question"}),
    looks_like=is_flat,
    drafts=flat_drafts,
    unit="questions",
)
KORQUAD1_FLAT = replace(
    SQUAD_FLAT,
    name="korquad1-flat",
    title="KorQuAD 1.0, from the Hugging Face hub",
    licence=KORQUAD1.licence,
    patterns=("squad_kor_v1*",),
    by_name=True,
)
