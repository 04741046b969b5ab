"""A window cut from some sections of a page is the one cut from the whole page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from random import Random

import pytest
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.convert.cleaning.tokens import TokenCounter
from kodolly_adapters.convert.markdown.marks import Span
from kodolly_adapters.convert.markdown.page import render
from kodolly_adapters.convert.markdown.window import cut
from kodolly_adapters.convert.markdown.windows import part_around, section_starts, windows

PARAGRAPH = (
    "<p>" + "<a>서울</a>은 <b>수도</b>이다. 사람이 산다.<sup><a>[1]</a></sup> " * 4 + "\n</p>\n"
)
TABLE = "<table><tr><th>해</th><th>일</th></tr><tr><td>1392</td><td rowspan=2>개국</td></tr><tr><td>1394</td></tr></table>"
LIST = "<ul><li>강남<ol><li>역</li></ol></li><li></li><li>강북</li></ul>"
SOUND = (
    *(
        PARAGRAPH,
        PARAGRAPH * 3,
        "<p># 표시 하나.</p>",
        "<p>| 줄 하나.</p>",
        "<p>첫째.<br>둘째.</p>",
    ),
    *(
        "<h2>역사</h2>",
        "<h3>근대<a>[편집]</a></h3>",
        "<h2> </h2>",
        "<pre>a\n# b</pre>",
        "&#35; 표 ",
    ),
    *(TABLE, TABLE * 2, TABLE.replace("1394", LIST), LIST, LIST.replace("강북", "<h3>안</h3>")),
    *(
        "<dl><dt>말</dt><dd>뜻</dd></dl>",
        "<dl><dt>말</dt><dd></dd></dl>",
        "맨글. ",
        "<br>",
        "<div>",
    ),
    *("<form><p>숨은 글.</p></form>", "<math><annotation>x</annotation></math>", "</div>"),
)
BROKEN = (
    *(
        "<div><h2>목차</h2></div>\n<ul><li>1 역사</li></ul>",
        "<h2>목차</h2><p>목차</p>",
        "<dd>",
        "<P>",
    ),
    *(
        "<ul>",
        "</ul>",
        "<table>",
        "</table>",
        "</dl>",
        "</h2>",
        "<h2>",
        "<li>홀로",
        "<td>홀로",
        "<UL>",
    ),
    *(
        "<form>",
        "</form>",
        "<!-- <p>숨은 글.</p> -->",
        '<div>원본 주소 "',
        "<h2>둘러보기 메뉴</h2>",
    ),
)


def unlike(html: str, spans: list[Span], budget: int) -> list[object]:
    """What windows cut from sections and from the whole page do not have in common."""
    counter = TokenCounter()
    text, answers = render(html, spans)
    whole = [
        (cut(text, *answer, budget, counter), text[slice(*answer)]) if answer else ("", "")
        for answer in answers
    ]
    pairs = zip(windows(html, spans, budget, counter), whole, strict=True)
    return [(tuple(one), other) for one, other in pairs if tuple(one) != other]


@pytest.mark.parametrize("budget", [4, 16, 60, 150, 384])
def test_a_window_from_sections_is_that_of_the_page(budget: int) -> None:
    """Whatever a page is made of, in order or, in half of them, not, and wherever the answers are."""
    random = Random(budget)
    for number in range(300):
        pieces = random.choices(SOUND, k=random.choice((5, 15, 40)))
        if number % 2:
            pieces.insert(random.randrange(len(pieces)), random.choice(BROKEN))
        html = "<h1>서울</h1>" + "".join(pieces)
        starts = random.choices(range(len(html)), k=3)
        spans = [(at, min(len(html), at + random.choice((1, 5, 90)))) for at in starts]
        assert unlike(html, spans, budget) == [], (html, spans)


def test_windows_of_long_pages_are_those_of_the_whole_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up encyclopedia pages of the published length, every question."""
    monkeypatch.syspath_prepend(Path(__file__).parents[4])
    pages = importlib.import_module("benchmarks.convert.pages").Pages(Random(7))
    for number in range(12):
        page = pages.page(6, number)
        answers = [question["answer"] for question in page["qas"]]
        spans = [(a["answer_start"], a["answer_start"] + len(a["text"])) for a in answers]
        for budget in (16, 100, 384, 1200):
            assert unlike(page["context"], spans, budget) == []
            assert unlike(page["context"], spans[:1], budget) == []


@needs_shared_data
@pytest.mark.parametrize("budget", [16, 100, 384, 1200])
def test_windows_of_real_pages_are_those_of_the_whole_page(budget: int) -> None:
    """Around the words of real pages, one in forty characters."""
    for name in ("korquad2.1_dev_00.hfdummy.json", "korquad2.1_train_00.hfdummy.json"):
        for page in json.loads((SHARED_DATA / "korquad2" / name).read_bytes())["data"]:
            html = page["context"]
            spans = [(at, at + 12) for at in range(0, len(html), 401)]
            answers = [question["answer"] for question in page["qas"]]
            spans += [(a["answer_start"], a["answer_start"] + len(a["text"])) for a in answers]
            for span in spans:
                assert unlike(html, [span], budget) == []
            assert unlike(html, spans, budget) == []


def test_a_window_does_not_take_the_whole_page() -> None:
    """Of a long page only the sections near the answer are rendered."""
    html = "<h1>서울</h1>" + ("<h2>절</h2>" + PARAGRAPH * 3 + TABLE + LIST) * 40
    low, high = part_around(section_starts(html), (9000, 9010), 500, len(html))
    assert 7000 < low <= 8500
    assert 9510 <= high < 11_000
    assert html.startswith("<h2>", low)
    assert html.startswith("<h2>", high)


@pytest.mark.parametrize("odd", ["<ul>", "<li>홀로", "</table>", "<UL>", "<!-- -->", "<h2>"])
def test_an_odd_page_is_not_cut(odd: str) -> None:
    """Where elements overlap or stand alone there is no safe place to cut."""
    html = "<h1>서울</h1><h2>절</h2>" + PARAGRAPH
    assert section_starts(html) == [0, len("<h1>서울</h1>")]
    assert section_starts(html + odd + html) == []
