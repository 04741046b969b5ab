"""KorQuAD 2.0 and 2.1: questions about whole Wikipedia pages in HTML, one record a page.

A record is {"title", "url", "context", "raw_html", "qas": [{"id", "question", "answer": {"text", "answer_start",
...}}]}. The context has lost its attributes but not its tags; raw_html is five times as long and stays unread.

There is also a community extract of the 2.1 dev questions without their pages, one a line: {"title", "question",
"html_answer_text"}, in which a line break is written as a backslash and an n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..cleaning.tokens import counter
from ..markdown.page import fragment, render
from ..markdown.windows import Window, windows
from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import CLOSED_QA, OPEN_QA, Draft, Refusal

Span = tuple[int, int]


class Answer(msgspec.Struct, gc=False):
    """HTML of the answer and where it begins in the context, in characters."""

    text: str | None = None
    answer_start: int | None = None


class Question(msgspec.Struct, gc=False):
    """One question; the test set has no answers."""

    question: str | None = None
    answer: Answer | None = None
    id: str | int | None = None


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
    rows = (
        _as_written(record, places)
        if options.korquad2_context == "html"
        else _rendered(record, places, options)
    )
    category = CLOSED_QA if options.categories == "dolly" else OPEN_QA
    group = str(record.title or "")
    for turn, (question, row) in enumerate(zip(record.qas, rows, strict=True)):
        name = "" if question.id is None else str(question.id)
        if isinstance(row, Refusal):
            yield row._replace(id=name, turn=turn)
        else:
            context, response = row
            yield Draft(question.question or "", context, response, category, name, turn, group)


Place = Span | Refusal
Texts = tuple[str, str] | Refusal


def _as_written(record: Record, places: list[Place]) -> Iterator[Texts]:
    """The study's literal mapping: the page's HTML and the answer's."""
    for place in places:
        yield (
            place
            if isinstance(place, Refusal)
            else (record.context, record.context[place[0] : place[1]])
        )


def _rendered(record: Record, places: list[Place], options: Options) -> Iterator[Texts]:
    """Each answer as the part of its rendered page that it is, in a window or the whole page."""
    html = record.context
    spans = [place for place in places if not isinstance(place, Refusal)]
    if options.korquad2_context == "page":
        text, answers = render(html, spans)
        found = [Window(text, text[slice(*span)]) if span else Window(None, "") for span in answers]
    else:
        found = windows(html, spans, options.window_tokens, counter(options.tokenizer))
    rendered = iter(found)
    for place in places:
        if isinstance(place, Refusal):
            yield place
            continue
        context, answer = next(rendered)
        if not answer:
            yield Refusal("empty-answer", "the answer's HTML holds no text")
        elif context is None:
            yield Refusal("answer-cut", "no window of the page holds the answer")
        else:
            yield context, answer


def _place(context: str, question: Question) -> Place:
    """Where the answer is in the context: as told, or else at the nearest place its text is found."""
    if not question.question or question.question.isspace():
        return Refusal("empty-question", "the question has no text")
    answer = question.answer
    if answer is None or answer.text is None:
        return Refusal("no-answer", "the question has no answer")
    if not answer.text or answer.text.isspace():
        return Refusal("empty-answer", "the answer has no text")
    told = answer.answer_start
    start = 0 if told is None else min(max(told, 0), len(context))
    if told != start or not context.startswith(answer.text, start):
        start = _nearest(context, answer.text, start)
        if start < 0:
            return Refusal(
                "answer-not-found", f"answer_start is {told}, and the page does not hold the answer"
            )
    return start, start + len(answer.text)


def _nearest(context: str, text: str, at: int) -> int:
    """Where `text` begins nearest to `at`, or -1; the earlier of two as near."""
    after = context.find(text, at)
    before = context.rfind(text, 0, at + len(text) - 1)
    if before < 0 or after < 0:
        return max(before, after)
    return before if at - before <= after - at else after


def looks_like(record: Mapping[str, Any]) -> bool:
    """A page with its questions."""
    return "context" in record and "qas" in record and ("raw_html" in record or "url" in record)


LICENCE = Licence(
    "CC BY-ND 2.0 KR",
    "https://creativecommons.org/licenses/by-nd/2.0/kr/",
    commercial=True,
    derivatives=False,
    consequence="Converted rows are derivatives: train on them, but do not hand them on.",
)

KORQUAD2 = Source(
    name="korquad2",
    title="KorQuAD 2.0 / 2.1",
    licence=LICENCE,
    record=Record,
    first_keys=frozenset({"title", "url", "context", "raw_html", "qas"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("KorQuAD_2.[01]_*.json", "korquad2.[01]_*.json"),
    unit="questions",
    units=questions,
)


class LoneQuestion(msgspec.Struct, gc=False):
    """One question and the HTML of its answer."""

    question: str | None = None
    html_answer_text: str | None = None
    title: str | int | None = None
    id: str | int | None = None


def lone_drafts(record: LoneQuestion, options: Options) -> Drafts:
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


def looks_like_lone(record: Mapping[str, Any]) -> bool:
    """A question and its answer's HTML."""
    return "question" in record and "html_answer_text" in record


KORQUAD2_QUESTIONS = Source(
    name="korquad2-questions",
    title="KorQuAD 2.1 questions without pages",
    licence=LICENCE,
    record=LoneQuestion,
    first_keys=frozenset({"title", "question", "html_answer_text", "id"}),
    looks_like=looks_like_lone,
    drafts=lone_drafts,
    patterns=("korquad2.1_*_qa*.jsonl",),
    unit="questions",
)
