"""KorQuAD 2.0 and 2.1: questions about whole Wikipedia pages in HTML, one record a page.

A record is {"title", "url", "context", "raw_html", "qas": [{"id", "question", "answer": {"text", "answer_start",
...}}]}. The context is HTML without attributes; raw_html is five times as long and is not read.

There is also a community extract of the 2.1 dev questions without their pages, one a line: {"title", "question",
"html_answer_text"}, in which a line break is written as a backslash and an n.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..cleaning.tokens import counter
from ..markdown.marks import Span
from ..markdown.page import fragment, render
from ..markdown.windows import Window, windows
from ..options import Options
from ..reading.licences import creative_commons
from ..reading.source import Drafts, Source
from ..schema import Draft, Rejection
from .common import Answer, WithId, category_with_context, has_keys, is_blank


class Question(WithId, gc=False):
    """One question; the test set has no answers."""

    question: str | None = None
    answer: Answer | None = None


class Record(msgspec.Struct, gc=False):
    """One page; `raw_html` and `url` are no fields here, so the parser skips them."""

    context: str
    qas: list[Question]
    title: str | int | None = None


def questions(record: Record) -> int:
    """How many questions the page has, at least 1; the units of its drafts and rejections add up to this."""
    return len(record.qas) or 1


def drafts(record: Record, options: Options) -> Drafts:
    """One row a question, in the page's order."""
    places = [_place(record.context, question) for question in record.qas]
    spans = [place for place in places if not isinstance(place, Rejection)]
    answers = iter(_answers(record.context, spans, options))
    category, group = category_with_context(options), str(record.title or "")
    if not places:
        yield Rejection("no-questions", "the page has no questions", group)
    for turn, (question, place) in enumerate(zip(record.qas, places, strict=True)):
        id_ = question.id_text
        if isinstance(place, Rejection):
            yield place._replace(id=id_, turn=turn)
            continue
        context, answer = next(answers)
        if not answer:
            yield Rejection("empty-answer", "the answer's HTML holds no text", id_, turn)
        else:
            yield Draft(question.question or "", context, answer, category, id_, turn, group)


def _answers(html: str, spans: Sequence[Span], options: Options) -> list[Window]:
    """Each answer with its context: a window, the whole page, or (as in the study) the page's HTML."""
    if options.korquad2_context == "html":
        return [Window(html, html[slice(*span)]) for span in spans]
    if options.korquad2_context == "window":
        return windows(html, spans, options.window_tokens, counter(options.tokenizer))
    text, places = render(html, spans)
    return [Window(text, text[slice(*place)] if place else "") for place in places]


def _place(context: str, question: Question) -> Span | Rejection:
    """Where the answer is in the context: at its answer_start, or else the nearest place with its text."""
    if is_blank(question.question):
        return Rejection("empty-question", "the question has no text")
    if question.answer is None or (text := question.answer.text) is None:
        return Rejection("no-answer", "the question has no answer")
    if is_blank(text):
        return Rejection("empty-answer", "the answer has no text")
    answer_start = question.answer.answer_start
    start = 0 if answer_start is None else min(max(answer_start, 0), len(context))
    if answer_start != start or not context.startswith(text, start):
        start = _nearest(context, text, start)
        if start < 0:
            detail = f"answer_start is {answer_start}, and the page does not hold the answer"
            return Rejection("answer-not-found", detail)
    return start, start + len(text)


def _nearest(context: str, text: str, at: int) -> int:
    """The occurrence of `text` nearest to `at`, or -1; of two at the same distance the earlier."""
    after = context.find(text, at)
    before = context.rfind(text, 0, at + len(text) - 1)
    if before < 0 or after < 0:
        return max(before, after)
    return before if at - before <= after - at else after


LICENCE = creative_commons(
    "BY-ND 2.0 KR", "Converted rows are derivatives: train on them, but do not hand them on."
)

KORQUAD2 = Source(
    name="korquad2",
    title="KorQuAD 2.0 / 2.1",
    licence=LICENCE,
    record=Record,
    first_keys=frozenset({"title", "url", "context", "raw_html", "qas"}),
    looks_like=has_keys({"context", "qas", "raw_html"}, {"context", "qas", "url"}),
    drafts=drafts,
    patterns=("KorQuAD_2.[01]_*.json", "korquad2.[01]_*.json"),
    unit="questions",
    units=questions,
)


class LoneQuestion(WithId, gc=False):
    """One question and the HTML of its answer."""

    question: str | None = None
    html_answer_text: str | None = None
    title: str | int | None = None


def lone_drafts(record: LoneQuestion, options: Options) -> Drafts:
    """One row a question; as the page is missing, its category is open_qa under any `categories`."""
    question, html, id_ = record.question, record.html_answer_text, record.id_text
    if question is None or is_blank(question):
        yield Rejection("empty-question", "the question has no text", id_)
    elif html is None:
        yield Rejection("no-answer", "the question has no answer", id_)
    else:
        html = html.replace("\\n", "\n")
        answer = html if options.korquad2_context == "html" else fragment(html)
        if is_blank(answer):
            yield Rejection("empty-answer", "the answer has no text", id_)
        else:
            yield Draft(question, "", answer, id=id_, group=str(record.title or ""))


KORQUAD2_QUESTIONS = Source(
    name="korquad2-questions",
    title="KorQuAD 2.1 questions without pages",
    licence=LICENCE,
    record=LoneQuestion,
    first_keys=frozenset({"title", "question", "html_answer_text", "id"}),
    looks_like=has_keys({"question", "html_answer_text"}),
    drafts=lone_drafts,
    patterns=("korquad2.1_*_qa*.jsonl",),
    unit="questions",
)
