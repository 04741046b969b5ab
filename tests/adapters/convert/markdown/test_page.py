"""Wikipedia HTML to Markdown: what people read stays, in order, and an answer keeps its place."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.convert.markdown.page import fragment, render

PAGE_FILES = ("korquad2.1_dev_00.hfdummy.json", "korquad2.1_train_00.hfdummy.json")
TAGS = [
    "a",
    "b",
    "span",
    "sup",
    "sub",
    "p",
    "div",
    "br",
    "h1",
    "h2",
    "h3",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "tbody",
    "tr",
    "td",
    "th",
    "caption",
    "pre",
    "form",
    "head",
    "script",
    "math",
]

CASES = {
    "inline tags join with nothing": ("<p><a>한국</a>은 <b>나</b>라</p>", "한국은 나라"),
    "blocks are apart": ("<p>하나</p><p>둘</p>", "하나\n\n둘"),
    "a block in text is apart": ("앞<div>안</div>뒤", "앞\n\n안\n\n뒤"),
    "headings by depth": (
        "<h2>역사</h2><p>글</p><h4>근대</h4>글",
        "## 역사\n\n글\n\n#### 근대\n\n글",
    ),
    "no edit links": (
        "<h2><span>역사</span><span>[</span><a>편집</a><span>]</span></h2>글",
        "## 역사\n\n글",
    ),
    "entities and nbsp": ("<p>A&amp;B&nbsp;&lt;b&gt;\xa0C &#44032;</p>", "A&B <b> C 가"),
    "white space": ("<p>\n 가 \n 나\t다 </p>", "가 나 다"),
    "line breaks": ("<p>가<br>나<br/>다</p>", "가\n나\n다"),
    "citations go": ("<p>갔다.<sup><a>[1]</a></sup><sup>[주 2]</sup> 왔다.</p>", "갔다. 왔다."),
    "exponents stay": ("<p>10<sup>6</sup>m<sup>2</sup> H<sub>2</sub>O</p>", "10^6m^2 H2O"),
    "other superscripts": ("<p>1<sup>st</sup></p>", "1st"),
    "unordered": ("<ul><li>가</li>\n<li><a>나</a>다</li></ul>", "- 가\n- 나다"),
    "nested": (
        "<ul><li>가<ol><li>나</li><li>다</li></ol></li><li>라</li></ul>끝",
        "- 가\n  1. 나\n  2. 다\n- 라\n\n끝",
    ),
    "blocks in an item": ("<ol><li><p>가</p><p>나</p></li><li>다</li></ol>", "1. 가\n   나\n2. 다"),
    "empty items": ("<ul><li></li><li>가</li></ul>", "- 가"),
    "definitions": ("<dl><dt>말</dt><dd>뜻</dd><dd>또</dd></dl>", "말\n: 뜻\n: 또"),
    "indented talk is no definition": ("<dl><dd>들여쓰기</dd></dl>", "들여쓰기"),
    "preformatted": ("<pre>a = 1\n  b = 2\n</pre>", "a = 1\n  b = 2"),
    "a table": (
        "<table><tr><th>해</th><th>상</th></tr><tr><td>2005</td><td>가|나<br>다</td></tr></table>",
        "| 해 | 상 |\n| --- | --- |\n| 2005 | 가\\|나 / 다 |",
    ),
    "a list in a cell": (
        "<table><tr><th>a</th><td>b</td></tr><tr><th>c</th><td><ul><li>d</li><li>e</li></ul></td></tr></table>",
        "| a | b |\n| --- | --- |\n| c | d / e |",
    ),
    "rowspan says a short cell again": (
        '<table><tr><td rowspan="2">가</td><td>1</td></tr><tr><td>2</td></tr></table>',
        "| 가 | 1 |\n| --- | --- |\n| 가 | 2 |",
    ),
    "rowspan in the middle and at the end": (
        (
            '<table><tr><td>a</td><td rowspan="2">b</td><td rowspan=3>c</td></tr><tr><td>d</td></tr>'
            "<tr><td>e</td><td>f</td></tr></table>"
        ),
        "| a | b | c |\n| --- | --- | --- |\n| d | b | c |\n| e | f | c |",
    ),
    "colspan keeps columns in line": (
        '<table><tr><th colspan="2">가</th><th>나</th></tr><tr><td>1</td><td>2</td><td>3</td></tr></table>',
        "| 가 |  | 나 |\n| --- | --- | --- |\n| 1 | 2 | 3 |",
    ),
    "a block over rows and columns": (
        (
            '<table><tr><td colspan="2" rowspan="2">가</td><td>1</td></tr><tr><td>2</td></tr>'
            "<tr><td>x</td><td>y</td><td>z</td></tr></table>"
        ),
        "| 가 |  | 1 |\n| --- | --- | --- |\n| 가 |  | 2 |\n| x | y | z |",
    ),
    "short rows are filled": (
        "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
        "| a | b |\n| --- | --- |\n| c |  |",
    ),
    "a caption": (
        "<table><caption>표</caption><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>",
        "표\n\n| a | b |\n| --- | --- |\n| c | d |",
    ),
    "one column is lines": ("<table><tr><td>a</td></tr><tr><td>b</td></tr></table>", "a\nb"),
    "one row is a line": ("<table><tr><th>a</th><td>b</td></tr></table>", "a | b"),
    "columns of lists are lists": (
        "<table><tr><td><ul><li>a</li><li>b</li></ul></td><td><ul><li>c</li></ul></td></tr></table>",
        "- a\n- b\n\n- c",
    ),
    "a table in a table": (
        (
            "<table><tr><td>앞</td></tr><tr><td><table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr>"
            "</table></td></tr></table>뒤"
        ),
        "앞\n\n| a | b |\n| --- | --- |\n| c | d |\n\n뒤",
    ),
    "cells without a table": ("<td>a</td>\n<td>b</td>", "a | b"),
    "hidden parts": (
        "<head><title>t</title></head><script>x</script><style>y</style>가<!-- z -->",
        "가",
    ),
    "a longer name is not hidden": ("<header>가</header>", "가"),
    "the contents box": (
        (
            "<p>가</p><div><input><div><h2>목차</h2><span><label></label></span></div>\n<ul><li><a>1 나</a>"
            "<ul><li>1.1</li></ul></li></ul>\n</div><h2>나</h2>"
        ),
        "가\n\n## 나",
    ),
    "site chrome": (
        (
            "<div>위키백과, 우리 모두의 백과사전.</div><a>둘러보기로 가기</a>\n<a>검색하러 가기</a><p>가</p>"
            '<div>원본 주소 "<a>https://x</a>"</div><h2>둘러보기 메뉴</h2>'
        ),
        "가",
    ),
    "view links": (
        (
            "<div><ul><li><a><abbr>v</abbr></a></li><li><a><abbr>d</abbr></a></li><li><a><abbr>e</abbr></a></li>"
            "</ul></div>가"
        ),
        "가",
    ),
    "back links of notes": (
        "<ol><li><span>↑ <sup><a>가</a></sup> <sup><a>나</a></sup></span> 책</li></ol>",
        "1. 책",
    ),
    "formulas": (
        "<p>값 <math><mi>x</mi><annotation>{\\displaystyle x^{2}}</annotation></math>이다</p>",
        "값 $x^{2}$ 이다",
    ),
    "a cell with an edit link alone": (
        "<table><tr><td><h2>[편집]</td></tr></table>가",
        "## \n\n가",
    ),
    "not well-formed": ("</li></table>가<td>나<p>다</ul>", "가\n\n나\n\n다"),
    "no tag at all": ("3 < 5 & 7 > 6", "3 < 5 & 7 > 6"),
    "upper case and attributes": ('<P CLASS="x">가</P><A HREF="y">나</A>', "가\n\n나"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("html", "text"), CASES.values(), ids=CASES.keys())
def test_html_becomes_markdown(html: str, text: str) -> None:
    """Each kind of HTML has its Markdown."""
    assert render(html).text == text


ANSWERS = {
    "in a sentence": ("<p>가 <a>", "나</a>", "다 라</p>", "나"),
    "whole items have their bullets": (
        "<p>가</p>",
        "<ul><li>나</li><li>다</li></ul>",
        "",
        "- 나\n- 다",
    ),
    "one item is its text": ("<ul>", "<li>나</li>", "<li>다</li></ul>", "나"),
    "a cell": (
        "<table><tr><td>a</td>",
        "<td>b</td>",
        "</tr><tr><td>c</td><td>d</td></tr></table>",
        "b",
    ),
    "rows": (
        "<table><tr><th>a</th><th>b</th></tr>",
        "<tr><td>c</td><td>d</td></tr>",
        "<tr><td>e</td><td>f</td></tr></table>",
        "| c | d |",
    ),
    "a spanned cell is not taken twice": (
        "<table><tr>",
        '<td rowspan="2">a</td><td>b</td>',
        "</tr><tr><td>c</td></tr></table>",
        "| a | b |",
    ),
    "white space around": ("<p>가", " 나 ", "다</p>", "나"),
    "an edge in a tag": ("<p>가<b", ">나</b>", "</p>", "나"),
    "an edge in an entity": ("<p>가 &am", "p; 나", "</p>", "& 나"),
    "in the contents box": ("<div><h2>목차</h2></div><ul><li>", "1 나", "</li></ul>", "1 나"),
    "in the footer": ('<p>가</p><div>원본 주소 "<a>x</a>"</div>', "분류", "", "분류"),
    "in the head": ("<head><title>", "제목", "</title></head>글", "제목"),
    "in a citation": ("<p>가<sup><a>", "[1]", "</a></sup></p>", "[1]"),
    "nothing to read": ("<p>가", "<b> </b>", "나</p>", None),
}


@pytest.mark.parametrize(
    ("before", "answer", "after", "text"), ANSWERS.values(), ids=ANSWERS.keys()
)
def test_an_answer_keeps_its_place(before: str, answer: str, after: str, text: str | None) -> None:
    """The span of an answer in the source is a span of the rendering, and chrome that holds one stays."""
    page = render(before + answer + after, [(len(before), len(before) + len(answer))])
    (span,) = page.spans
    assert (None if span is None else page.text[slice(*span)]) == text


def test_many_answers_on_one_page() -> None:
    """Forty answers, some the same, some one in another, all come out of one rendering."""
    words = [f"말{n}" for n in range(20)]
    html = "".join(f"<li><a>{word}</a>은 말</li>" for word in words)
    spans = [
        (html.index(f">{word}<") + 1, html.index(f">{word}<") + 1 + len(word)) for word in words
    ]
    outer = [(start, end + len("</a>은")) for start, end in spans]
    page = render(html, spans + outer)
    results = [page.text[slice(*span)] for span in page.spans if span]
    assert results == words + [f"{word}은" for word in words]
    assert page.text == render(html).text


def test_characters_for_private_use_in_a_page_stay() -> None:
    """What the marks are taken from may stand in a page itself."""
    html = "<p>\ufdd0 가 \ue000</p>"
    page = render(html, [(5, 6)])
    assert page.text == "\ufdd0 가 \ue000"
    assert page.spans == ((2, 3),)


html_soup = st.lists(
    st.one_of(
        st.sampled_from(TAGS).map("<{}>".format),
        st.sampled_from(TAGS).map("</{}>".format),
        st.sampled_from(
            [
                "<td rowspan=3>",
                '<td colspan="2" rowspan="2">',
                "<",
                "&",
                "&amp;",
                "[1]",
                "|",
                "목차",
                "\n",
            ]
        ),
        st.text(max_size=6),
        st.sampled_from(["가", "나 다", " 라."]),
    ),
    max_size=40,
).map("".join)


@given(st.one_of(html_soup, st.text()), st.data())
def test_any_text_is_rendered_and_spans_keep_their_order(html: str, data: st.DataObject) -> None:
    """Nothing raises; spans lie in the text, not reversed, one after another as in the source."""
    edges = sorted(data.draw(st.lists(st.integers(0, len(html)), min_size=4, max_size=4)))
    page = render(html, [(edges[0], edges[1]), (edges[2], edges[3])])
    results = [span for span in page.spans if span is not None]
    assert all(0 <= start < end <= len(page.text) for start, end in results)
    if len(results) == 2:
        ahead = page.text[results[1][0] : results[0][0]]  # a line's mark may be taken along
        assert results[0][0] < results[1][1]
        assert re.fullmatch(r"[ |#:.\d-]*", ahead)


@given(html_soup)
@example("<table><tr><td rowspan=3>가<td rowspan=3>나</td></tr></table>")
def test_every_row_of_a_table_has_as_many_cells(html: str) -> None:
    """Beside each rule line, all rows have its number of cells."""
    for table in re.findall(
        r"(?:^\| .*\|\n)(?:^\|(?: ---| \|)+\n?)(?:^\| .*\|\n?)*", render(html).text, re.MULTILINE
    ):
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in table.strip("\n").split("\n")}
        assert len(widths) == 1


def pages() -> list[dict[str, Any]]:
    """The real pages."""
    files = [SHARED_DATA / "korquad2" / name for name in PAGE_FILES]
    return [page for file in files for page in msgspec.json.decode(file.read_bytes())["data"]]


SYNTHETIC = (
    "<div><p>서울<b>특별</b>시는 <a>대한민국</a>의 수도이다.</p><h2>역사</h2><ul><li>조선<ul><li>태조</li></ul></li></ul>"
    "<table><tr><th>이름</th><th>해</th></tr><tr><td>가&amp;나</td><td>1392<br/>1394</td></tr></table></div>"
)


def words_of(text: str) -> Counter[str]:
    """Words without Markdown's signs, note marks and back links."""
    text = re.sub(r"\[(?:\d+|편집)\]", "", text).replace("\\|", "|")
    return Counter(
        word for word in re.split(r"[\s|/•↑]+", text) if not re.fullmatch(r"[#\-:]*|\d+\.", word)
    )


def test_the_words_are_those_another_extractor_reads() -> None:
    """Rendering keeps every word that resiliparse keeps, in real pages (chrome cut before) and a made-up one."""
    html2text = pytest.importorskip("resiliparse.extract.html2text")
    sources = [SYNTHETIC]
    if SHARED_DATA.is_dir():
        for page in pages():
            body = page["context"].split("<a>검색하러 가기</a>")[1].split('<div>원본 주소 "')[0]
            body = re.sub(r"<div><input><div><h2>목차.*?</ul>\n</div>", "", body, flags=re.DOTALL)
            sources.append(re.sub(r"<ul><li><a><abbr>v</abbr>.*?</ul>", "", body))
    for html in sources:
        ours, theirs = words_of(render(html).text), words_of(html2text.extract_plain_text(html))
        assert ours == theirs


@needs_shared_data
def test_no_chrome_is_left_in_real_pages() -> None:
    """Neither menus nor the contents box nor edit links are in the rendering of a real page; its title is."""
    for page in pages():
        text = render(page["context"]).text
        assert not [
            sign
            for sign in ("둘러보기", "[편집]", "목차", "숨은 분류", "위키백과,", "<", "↑")
            if sign in text
        ]
        assert text.startswith("# " + page["title"].replace("_", " "))


@needs_shared_data
def test_ten_thousand_real_answers_have_text() -> None:
    """Every answer of the community extract that holds more than tags renders to text without tags."""
    file = SHARED_DATA / "korquad2" / "korquad2.1_dev_qa.from_yml.jsonl"
    for line in file.read_bytes().splitlines():
        html = msgspec.json.decode(line)["html_answer_text"].replace("\\n", "\n")
        text = fragment(html)
        assert bool(text) == bool(re.sub(r"<[^>]*>|\s", "", html)), html
        assert not re.search(r"</?(?:a|b|p|td|tr|li|ul|span)>", text), html
        assert text == text.strip()
