"""KorQuAD 2 records to rows: each question a row or a rejection, with the answer in its context."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.reading.source import Source
from kodolly_adapters.convert.schema import Draft, Rejection
from kodolly_adapters.convert.sources.korquad2 import KORQUAD2, KORQUAD2_QUESTIONS
from kodolly_adapters.errors import OptionError

FOLDER = SHARED_DATA / "korquad2"
PAGE_FILES = ("korquad2.1_dev_00.hfdummy.json", "korquad2.1_train_00.hfdummy.json")
HTML = (
    "<html><head><title>서울</title></head><body><h1>서울</h1><p><a>서울</a>은 <b>수도</b>이다.</p>"
    "<table><tr><th>해</th><th>일</th></tr><tr><td>1392</td><td>개국</td></tr><tr><td>1394</td><td>천도</td></tr>"
    "</table><ul><li>강남</li><li>강북</li></ul><p>서울에 산다.</p></body></html>"
)
MARKDOWN = (
    "# 서울\n\n서울은 수도이다.\n\n| 해 | 일 |\n| --- | --- |\n| 1392 | 개국 |\n| 1394 | 천도 |\n\n"
    "- 강남\n- 강북\n\n서울에 산다."
)
PAGE = Options(korquad2_context="page")


def record(*qas: Any, source: Source = KORQUAD2) -> Any:
    """A page with these questions, decoded from JSON."""
    page = {"title": "서울", "url": "u", "context": HTML, "raw_html": HTML * 5, "qas": list(qas)}
    return msgspec.json.decode(msgspec.json.encode(page), type=source.record)


def qa(text: str | None, start: int | None = None, **more: Any) -> dict[str, Any]:
    """A question whose answer is `text`, at `start` or else where the page has it."""
    place = HTML.index(text) if start is None and text else start
    return {"id": "7", "question": "무엇?", "answer": {"text": text, "answer_start": place}, **more}


ANSWERS = {
    "a word": ("<b>수도</b>", "수도"),
    "rows": (
        "<tr><td>1392</td><td>개국</td></tr><tr><td>1394</td><td>천도</td></tr>",
        "| 1392 | 개국 |\n| 1394 | 천도 |",
    ),
    "a cell": ("<td>천도</td>", "천도"),
    "a list": ("<ul><li>강남</li><li>강북</li></ul>", "- 강남\n- 강북"),
    "more than one block": ("<li>강북</li></ul><p>서울에 산다.</p>", "- 강북\n\n서울에 산다."),
}


@pytest.mark.parametrize(("html", "response"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_a_part_of_its_page(html: str, response: str) -> None:
    """The whole page as Markdown is the context, and the response is verbatim in it."""
    assert list(KORQUAD2.drafts(record(qa(html)), PAGE)) == [
        Draft("무엇?", MARKDOWN, response, id="7", group="서울")
    ]
    assert response in MARKDOWN


def test_the_study_s_literal_mapping_keeps_html() -> None:
    """With --korquad2-context html, context and response are the source's."""
    (draft,) = KORQUAD2.drafts(record(qa("<b>수도</b>")), Options(korquad2_context="html"))
    assert isinstance(draft, Draft)
    assert (draft.context, draft.response) == (HTML, "<b>수도</b>")


def test_a_window_holds_the_answer() -> None:
    """By default the context is a window: here the row of the answer, under its heading and its table's header."""
    (draft,) = KORQUAD2.drafts(record(qa("천도")), Options(window_tokens=36))
    assert isinstance(draft, Draft)
    assert draft.context.startswith("# 서울\n\n| 해 | 일 |\n| --- | --- |\n| 1394 | 천도 |")


def test_categories_and_turns() -> None:
    """Questions count from 0 in the page's order; rule labels are closed_qa, the study's open_qa."""
    page = record(qa("수도"), qa("강남", id=8), qa("강북", id=None))
    drafts = [
        draft
        for draft in KORQUAD2.drafts(page, replace(PAGE, categories="dolly"))
        if isinstance(draft, Draft)
    ]
    assert [(d.id, d.turn, d.category) for d in drafts] == [
        ("7", 0, "closed_qa"),
        ("8", 1, "closed_qa"),
        ("", 2, "closed_qa"),
    ]
    assert {
        draft.category for draft in KORQUAD2.drafts(page, PAGE) if isinstance(draft, Draft)
    } == {"open_qa"}


@pytest.mark.parametrize("answer_start", [None, -5, 0, 3, 10**9])
def test_a_wrong_answer_start_is_put_right(answer_start: int | None) -> None:
    """An answer that is elsewhere on the page is found there."""
    question = qa("강남")
    question["answer"]["answer_start"] = answer_start
    (draft,) = KORQUAD2.drafts(record(question), PAGE)
    assert isinstance(draft, Draft)
    assert draft.response == "강남"


def test_the_nearest_of_several_places_is_taken() -> None:
    """A start that is off by a little finds the place meant, seen by its window."""
    places = {HTML.index("<a>서울") + 3: "서울은 수도이다.", HTML.rindex("서울"): "서울에 산다."}
    for place, context in places.items():
        for off in (-2, 2):
            (draft,) = KORQUAD2.drafts(record(qa("서울", place + off)), Options(window_tokens=8))
            assert isinstance(draft, Draft)
            assert draft.context == context


REJECTED = {
    "answer-not-found": qa("부산", 3),
    "empty-answer": qa(" ", 3),
    "empty-question": qa("수도", question=" "),
    "no-answer": {"id": "7", "question": "무엇?"},
}


@pytest.mark.parametrize(
    ("reason", "question"), [*REJECTED.items(), ("no-answer", {**qa("수도"), "answer": None})]
)
@pytest.mark.parametrize("context", ["window", "page", "html"])
def test_what_becomes_no_row_is_rejected_by_name(
    reason: str, question: dict[str, Any], context: Any
) -> None:
    """The others of the page still become rows, in order, and the rejection says which question it is."""
    page = record(qa("수도", id=1), question, qa("강남", id=3))
    first, rejection, last = KORQUAD2.drafts(page, Options(korquad2_context=context))
    assert isinstance(first, Draft)
    assert isinstance(last, Draft)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.id, rejection.turn, last.turn) == (reason, "7", 1, 2)


def test_an_answer_of_tags_alone_is_empty() -> None:
    """HTML that shows nothing is no answer, once rendered."""
    (rejection,) = KORQUAD2.drafts(record(qa("</b>")), PAGE)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "empty-answer"


def test_a_missing_tokenizer_stops_the_run(tmp_path: Path) -> None:
    """An option that cannot be used is no question's fault."""
    with pytest.raises(OptionError):
        list(KORQUAD2.drafts(record(qa("수도")), Options(tokenizer=tmp_path / "none.json")))


def test_sources_know_their_records() -> None:
    """A page is korquad2, a question alone is korquad2-questions, and KorQuAD 1 is neither."""
    page = {"title": "t", "context": "c", "raw_html": "r", "qas": []}
    alone = {"title": "t", "question": "q", "html_answer_text": "a"}
    for one in (page, alone, {"context": "c", "qas": []}, {"instruction": "i", "output": "o"}):
        assert KORQUAD2.looks_like(one) == (one is page)
        assert KORQUAD2_QUESTIONS.looks_like(one) == (one is alone)
    assert not KORQUAD2.licence.derivatives


QUESTIONS = {
    "plain": ("1392년", "1392년"),
    "written line breaks": ("<td>\\n1위</td>", "1위"),
    "a list": ("<ul><li>가</li>\\n<li>나</li></ul>", "- 가\n- 나"),
}


@pytest.mark.parametrize(("html", "response"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_questions_without_pages(html: str, response: str) -> None:
    """The answer's HTML as Markdown, and no context."""
    alone = KORQUAD2_QUESTIONS.record(question="무엇?", html_answer_text=html, title="서울")
    assert list(KORQUAD2_QUESTIONS.drafts(alone, Options())) == [
        Draft("무엇?", "", response, group="서울")
    ]


@pytest.mark.parametrize(
    ("question", "html", "reason"),
    [
        (" ", "가", "empty-question"),
        ("무엇?", None, "no-answer"),
        ("무엇?", "<a></a>\\n", "empty-answer"),
    ],
)
def test_bad_questions_without_pages_are_rejected(
    question: str, html: str | None, reason: str
) -> None:
    """What has no question or answer is rejected by name."""
    alone = KORQUAD2_QUESTIONS.record(question=question, html_answer_text=html)
    (rejection,) = KORQUAD2_QUESTIONS.drafts(alone, Options())
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason


@needs_shared_data
@pytest.mark.parametrize("context", ["window", "page", "html"])
def test_real_questions_against_an_independent_reading(context: Any) -> None:
    """Three real questions, field by field, against json and BeautifulSoup."""
    soup = pytest.importorskip("bs4").BeautifulSoup
    pages_compared = 0
    for name in PAGE_FILES:
        raw = (FOLDER / name).read_bytes()
        for page in json.loads(raw)["data"]:
            record_of_page = msgspec.convert(page, type=KORQUAD2.record)
            drafts = list(KORQUAD2.drafts(record_of_page, Options(korquad2_context=context)))
            for turn, (question, draft) in enumerate(zip(page["qas"], drafts, strict=True)):
                assert isinstance(draft, Draft)
                answer = question["answer"]["text"]
                assert draft.instruction == question["question"]
                assert (draft.id, draft.turn, draft.group) == (question["id"], turn, page["title"])
                assert draft.category == "open_qa"
                if context == "html":
                    assert (draft.context, draft.response) == (page["context"], answer)
                else:
                    assert draft.response == soup(answer, "html.parser").get_text()
                    assert draft.response in draft.context
                    start = question["answer"]["answer_start"]
                    paragraph = soup(
                        page["context"][:start].rpartition("<p>")[2], "html.parser"
                    ).get_text()
                    assert paragraph.split("[")[0][:20] in draft.context
                pages_compared += 1
    assert pages_compared == 3


@needs_shared_data
def test_all_real_questions_without_pages_become_rows() -> None:
    """Of 10,134 questions only those whose answer shows nothing are rejected."""
    decoder = msgspec.json.Decoder(KORQUAD2_QUESTIONS.record)
    lines = (FOLDER / "korquad2.1_dev_qa.from_yml.jsonl").read_bytes().splitlines()
    drafts = [
        draft
        for line in lines
        for draft in KORQUAD2_QUESTIONS.drafts(decoder.decode(line), Options())
    ]
    rejections = [draft for draft in drafts if isinstance(draft, Rejection)]
    assert len(drafts) == len(lines)
    assert {draft.reason for draft in rejections} <= {"empty-answer"}
    assert len(rejections) < 10
