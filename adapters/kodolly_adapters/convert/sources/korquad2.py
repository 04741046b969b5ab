"""KorQuAD 2.0 and 2.1: questions about whole Wikipedia pages in HTML, one record a page.

A record is {"title", "url", "context", "raw_html", "qas": [{"id", "question", "answer": {"text", "answer_start",
...}}]}. The context has lost its attributes but not its tags; raw_html is five times as long and stays unread.

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
from ..reading.source import Drafts, Source
from ..schema import Draft, Refusal
from .common import Answer, Named, category_with_context, creative_commons, has_keys, is_blank


class Question(Named, gc=False):
    """One question; the test set has no answers."""

    question: str | None = None
    answer: Answer | None = None


class Record(msgspec.Struct, gc=False):
    """One page; `raw_html` and `url` are not named, so they are skipped unread."""

    context: str
    qas: list[Question]
    title: str | int | None = None


def questions(record: Record) -> int:
    """How many questions the page has: what its drafts' and refusals' units add up to."""
    return len(record.qas)


def drafts(record: Record, options: Options) -> Drafts:
    """One row a question, in the page's order."""
    places = [_place(record.context, question) for question in record.qas]
    spans = [place for place in places if not isinstance(place, Refusal)]
    answers = iter(_answers(record.context, spans, options))
    category, group = category_with_context(options), str(record.title or "")
    for turn, (question, place) in enumerate(zip(record.qas, places, strict=True)):
        name = question.name
        if isinstance(place, Refusal):
            yield place._replace(id=name, turn=turn)
            continue
        context, answer = next(answers)
        if not answer:
            yield Refusal("empty-answer", "the answer's HTML holds no text", name, turn)
        else:
            yield Draft(question.question or "", context, answer, category, name, turn, group)


def _answers(html: str, spans: Sequence[Span], options: Options) -> list[Window]:
    """The answers with their contexts: a window, the whole page, or (as in the study) the HTML as it is."""
    if options.korquad2_context == "html":
        return [Window(html, html[slice(*span)]) for span in spans]
    if options.korquad2_context == "window":
        return windows(html, spans, options.window_tokens, counter(options.tokenizer))
    text, places = render(html, spans)
    return [Window(text, text[slice(*place)] if place else "") for place in places]


def _place(context: str, question: Question) -> Span | Refusal:
    """Where the answer is in the context: as the record says, or else the nearest place that holds its text."""
    if is_blank(question.question):
        return Refusal("empty-question", "the question has no text")
    if question.answer is None or (text := question.answer.text) is None:
        return Refusal("no-answer", "the question has no answer")
    if is_blank(text):
        return Refusal("empty-answer", "the answer has no text")
    written = question.answer.answer_start
    start = 0 if written is None else min(max(written, 0), len(context))
    if written != start or not context.startswith(text, start):
        start = _nearest(context, text, start)
        if start < 0:
            detail = f"answer_start is {written}, and the page does not hold the answer"
            return Refusal("answer-not-found", detail)
    return start, start + len(text)


def _nearest(context: str, text: str, at: int) -> int:
    """Where `text` begins nearest to `at`, or -1; the earlier of two as near."""
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


class LoneQuestion(Named, gc=False):
    """One question and the HTML of its answer."""

    question: str | None = None
    html_answer_text: str | None = None
    title: str | int | None = None


def lone_drafts(record: LoneQuestion, options: Options) -> Drafts:
    """One row a question; with no page to read from, it is an open one under any categories."""
    question, html, name = record.question, record.html_answer_text, record.name
    if question is None or is_blank(question):
        yield Refusal("empty-question", "the question has no text", name)
    elif html is None:
        yield Refusal("no-answer", "the question has no answer", name)
    else:
        html = html.replace("\\n", "\n")
        answer = html if options.korquad2_context == "html" else fragment(html)
        if is_blank(answer):
            yield Refusal("empty-answer", "the answer has no text", name)
        else:
            yield Draft(question, "", answer, id=name, group=str(record.title or ""))


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
