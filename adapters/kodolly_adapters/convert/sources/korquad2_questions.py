"""Questions of KorQuAD 2.1 without their pages: a community extract of the dev set, one question a line.

A record is {"title", "question", "html_answer_text"}; a line break is written as a backslash and an n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..markdown.page import fragment
from ..options import Options
from ..reading.source import Drafts, Source
from ..schema import Draft, Refusal
from .korquad2 import LICENCE


class Record(msgspec.Struct, gc=False):
    """One question and the HTML of its answer."""

    question: str | None = None
    html_answer_text: str | None = None
    title: str | int | None = None
    id: str | int | None = None


def drafts(record: Record, options: Options) -> Drafts:
    """One row a question; with no page to read from, it is an open one under any categories."""
    name = "" if record.id is None else str(record.id)
    if not record.question or record.question.isspace():
        yield Refusal("empty-question", "the question has no text", name)
        return
    if record.html_answer_text is None:
        yield Refusal("no-answer", "the question has no answer", name)
        return
    html = record.html_answer_text.replace("\\n", "\n")
    response = html if options.korquad2_context == "html" else fragment(html)
    if not response or response.isspace():
        yield Refusal("empty-answer", "the answer has no text", name)
        return
    yield Draft(record.question, "", response, id=name, group=str(record.title or ""))


def looks_like(record: Mapping[str, Any]) -> bool:
    """A question and its answer's HTML."""
    return "question" in record and "html_answer_text" in record


KORQUAD2_QUESTIONS = Source(
    name="korquad2-questions",
    title="KorQuAD 2.1 questions without pages",
    licence=LICENCE,
    record=Record,
    first_keys=frozenset({"title", "question", "html_answer_text", "id"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("korquad2.1_*_qa*.jsonl",),
    unit="questions",
)
