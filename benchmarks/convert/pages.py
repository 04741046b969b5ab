"""Made-up encyclopedia pages in KorQuAD 2's two forms: the raw page, and its context without attributes.

A page is written once as pieces of both forms at the same time, so that the answers' offsets in both are
counted and never searched for. Lengths follow the published means: 90,259 characters raw, 19,864 context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

from benchmarks.convert.korean import Korean, particle

MEAN_CONTEXT = 19_864
MEAN_RAW = 90_259
MAX_ANSWER = 11_901  # characters of the longest answer known
# Where an answer lies, in percent, and how often it is a long one: a paragraph, a whole table or list.
PLACES = {"text": 67.4, "table": 22.0, "list": 10.5}
LONG = 0.178
_ENTITIES = ("&amp;", "&lt;", "&gt;", "\xa0", "\xa0", "&amp;")
_STYLE = (
    '<style data-mw-deduplicate="TemplateStyles:r1">.mw-parser-output .navbox{border:1px solid #a2a9b1;'
    "width:100%;clear:both;font-size:88%;text-align:center}</style><script>mw.loader.state({});</script>\n"
)
_SITE = "//upload.example.org/images/thumb"


class Span(NamedTuple):
    """A possible answer: half-open ranges in the context and in the raw page."""

    start: int
    end: int
    raw_start: int
    raw_end: int


class _Parts:
    """Both forms of a page under construction."""

    def __init__(self) -> None:
        self.raw: list[str] = []
        self.context: list[str] = []
        self.at = self.raw_at = 0
        self.spans: dict[tuple[str, bool], list[Span]] = {}

    def add(self, context: str, raw: str | None = None) -> None:
        """Appends to both forms; without `raw`, the same text."""
        raw = context if raw is None else raw
        self.context.append(context)
        self.raw.append(raw)
        self.at += len(context)
        self.raw_at += len(raw)

    @contextmanager
    def answer(self, place: str, long: bool = False) -> Iterator[None]:
        """What is added inside may be asked for."""
        start, raw_start = self.at, self.raw_at
        yield
        if 0 < self.at - start <= MAX_ANSWER:
            span = Span(start, self.at, raw_start, self.raw_at)
            self.spans.setdefault((place, long), []).append(span)


class Pages:
    """Makes pages; everything follows from `random`."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.korean = Korean(random, style="study")
        self._links = [_link(self.korean.noun(), self.korean) for _ in range(8_000)]
        self._sources = [_source(self.korean) for _ in range(3_000)]

    def page(self, questions: int, number: int) -> dict[str, Any]:
        """One record of the data set, with `questions` questions whose ids begin at `number`."""
        title = self.korean.title()
        # Log-normal, mean MEAN_CONTEXT; a page has some 3,400 characters of frame.
        target = min(self.random.lognormvariate(9.27, 0.95), 180_000.0)
        parts = _Parts()
        self._frame_start(parts, title)
        self._infobox(parts, title)
        self._paragraph(parts, title)
        sections = [self.korean.phrase(self.random.randint(2, 12)) for _ in range(24)]
        self._toc(parts, sections[:8])
        section = 0
        while parts.at < target:
            self._heading(parts, sections[section % 24], title, section)
            self._section(parts, target)
            section += 1
        self._frame_end(parts, title)
        context, raw = "".join(parts.context), "".join(parts.raw)
        qas = [self._qa(parts, context, raw, title, number + i) for i in range(questions)]
        url = f"https://ko.wikipedia.org/wiki/{title.replace(' ', '_')}"
        return {"title": title, "url": url, "context": context, "raw_html": raw, "qas": qas}

    def _qa(self, parts: _Parts, context: str, raw: str, title: str, number: int) -> dict[str, Any]:
        long = self.random.random() < LONG
        place = self.random.choices(list(PLACES), list(PLACES.values()))[0]
        found = parts.spans.get((place, long)) or parts.spans.get(("text", long))
        span = self.random.choice(found or parts.spans["text", False])
        answer = {
            "text": context[span.start : span.end],
            "html_answer_start": span.raw_start,
            "html_answer_text": raw[span.raw_start : span.raw_end],
            "answer_start": span.start,
        }
        length = self.random.randint(18, 50)
        return {
            "answer": answer,
            "question": self.korean.question(length, title),
            "id": str(number),
        }

    def _section(self, parts: _Parts, target: float) -> None:
        random = self.random
        with parts.answer("text", long=True):
            for _ in range(min(round(random.lognormvariate(0.6, 0.8)) or 1, 12)):
                self._paragraph(parts)
        kind = random.random()
        if kind < 0.3:
            rows = min(round(random.lognormvariate(2.1, 0.8)) + 2, 80)
            self._table(parts, rows, random.randint(2, 6))
        elif kind < 0.6:
            self._list(parts, random.randint(2, 14))
        elif kind < 0.66:
            self._definitions(parts)
        if random.random() < 0.3:
            self._thumbnail(parts)
        if parts.at >= target or random.random() < 0.15:
            self._references(parts, random.randint(2, 12))

    def _paragraph(self, parts: _Parts, subject: str | None = None) -> None:
        random = self.random
        with parts.answer("text", long=True):
            parts.add("<p>")
            if subject:
                parts.add(f"<b>{subject}</b>은(는) ")
            for _ in range(random.randint(1, 5)):
                for sentence in self.korean.run(random.randint(20, 110)):
                    self._prose(parts, sentence)
            parts.add("\n</p>")

    def _prose(self, parts: _Parts, sentence: str) -> None:
        """A sentence with a link, a bold word, a footnote, or an entity now and then."""
        random = self.random
        kind = random.random()
        if kind < 0.75:
            with parts.answer("text"):
                parts.add(*random.choice(self._links))
            parts.add("의 ")
        elif kind < 0.78:
            parts.add(f"<b>{self.korean.noun()}</b>{random.choice(_ENTITIES)} ")
        head, _, tail = sentence.partition(" ")
        with parts.answer("text"):
            parts.add(head)
        parts.add(f" {tail} ")
        if kind > 0.6:
            number = random.randint(1, 90)
            parts.add(
                f"<sup><a>[{number}]</a></sup>",
                f'<sup class="reference" id="cite_ref-{number}">'
                f'<a href="#cite_note-{number}">[{number}]</a></sup>',
            )

    def _cell(self, parts: _Parts, place: str) -> None:
        random = self.random
        if random.random() < 0.35:
            with parts.answer(place):
                parts.add(*random.choice(self._links))
        else:
            with parts.answer(place):
                number = random.randint(1, 90_000)
                parts.add(random.choice((f"{number:,}", self.korean.date(), self.korean.noun())))

    def _table(self, parts: _Parts, rows: int, columns: int) -> None:
        random = self.random
        with parts.answer("table", long=True):
            style = ' class="wikitable sortable" style="text-align:center; font-size:95%"'
            parts.add("<table>\n<tbody><tr>\n", f"<table{style}>\n<tbody><tr>\n")
            for _ in range(columns):
                parts.add("<th>", '<th scope="col" style="background:#efefef; width:7em;">')
                parts.add(self.korean.noun() + "\n</th>\n")
            covered = 0  # rows that the first cell of an earlier one still covers
            for row in range(rows):
                parts.add("</tr>\n<tr>\n")
                if covered == 0 and rows - row > 2 and random.random() < 0.2:
                    covered = random.randint(2, rows - row)
                    self._td(parts, f' rowspan="{covered}"')
                elif covered == 0:
                    self._td(parts, "")
                covered = max(covered - 1, 0)
                for _ in range(columns - 1):
                    self._td(parts, "")
            parts.add("</tr></tbody></table>")
        parts.add("\n")

    def _td(self, parts: _Parts, span: str) -> None:
        with parts.answer("table"):
            parts.add(f"<td{span}>", f'<td align="left"{span} style="padding:2px 4px;">')
            self._cell(parts, "table")
            parts.add("\n</td>")
        parts.add("\n")

    def _list(self, parts: _Parts, items: int, depth: int = 0) -> None:
        tag = "ol" if self.random.random() < 0.2 else "ul"
        with parts.answer("list", long=True):
            parts.add(f"<{tag}>\n")
            for _ in range(items):
                with parts.answer("list"):
                    parts.add("<li>")
                    self._cell(parts, "list")
                    parts.add(f": {self.korean.sentence()}")
                    if depth < 2 and self.random.random() < 0.12:
                        parts.add("\n")
                        self._list(parts, self.random.randint(1, 4), depth + 1)
                    parts.add("</li>")
                parts.add("\n")
            parts.add(f"</{tag}>")
        parts.add("\n")

    def _definitions(self, parts: _Parts) -> None:
        with parts.answer("list", long=True):
            parts.add("<dl>")
            for _ in range(self.random.randint(1, 6)):
                parts.add("<dt>")
                self._cell(parts, "list")
                parts.add(f"</dt>\n<dd>{self.korean.sentence()}</dd>\n")
            parts.add("</dl>")
        parts.add("\n")

    def _infobox(self, parts: _Parts, title: str) -> None:
        style = ' cellspacing="3" class="infobox vcard" style="border-spacing:3px; width:300px;"'
        parts.add("<table><tbody>", f"<table{style}><tbody>")
        parts.add(
            f'<tr><th colspan="2">{title}</th></tr>',
            f'<tr><th class="summary" colspan="2" style="text-align:center;">{title}</th></tr>',
        )
        for _ in range(self.random.randint(3, 10)):
            name = self.korean.noun()
            parts.add(f"<tr><th>{name}</th>\n", f'<tr class=""><th scope="row">{name}</th>\n')
            parts.add("<td>\n", '<td class="" style="">\n')
            self._cell(parts, "table")
            parts.add("</td></tr>")
        parts.add("\n</tbody></table>\n")

    def _heading(self, parts: _Parts, name: str, title: str, number: int) -> None:
        level = "h2" if number % 3 == 0 else "h3"
        parts.add(
            f"<{level}><span></span><span>{name}</span><span><span>[</span><a>편집</a>"
            f"<span>]</span></span></{level}>\n",
            f'<{level}><span id=".{number}"></span><span class="mw-headline" id="{name}">{name}</span>'
            f'<span class="mw-editsection"><span class="mw-editsection-bracket">[</span><a href="/w/index.php'
            f'?title={quote(title)}&amp;action=edit&amp;section={number}" title="부분 편집: {name}">편집</a>'
            f'<span class="mw-editsection-bracket">]</span></span></{level}>\n',
        )

    def _thumbnail(self, parts: _Parts) -> None:
        caption, number = self.korean.sentence(), self.random.randint(1000, 9999)
        source = f"{_SITE}/{number % 10}/{number}/Figure_{number}.jpg/220px-Figure_{number}.jpg"
        parts.add(
            f"<div><div><a><img></a> <div><div><a></a></div>{caption}</div></div></div>\n",
            f'<div class="thumb tright"><div class="thumbinner" style="width:222px;"><a class="image" '
            f'href="/wiki/file:{number}"><img alt="" class="thumbimage" decoding="async" height="165" src="{source}"'
            f' srcset="{source} 1.5x, {source} 2x" width="220"/></a> <div class="thumbcaption"><div '
            f'class="magnify"><a class="internal" href="/wiki/file:{number}"></a></div>{caption}</div></div></div>\n',
        )

    def _references(self, parts: _Parts, count: int) -> None:
        parts.add("<div><ol>\n", '<div class="reflist" style="list-style-type:decimal;"><ol>\n')
        for context, raw in self.random.choices(self._sources, k=count):
            parts.add(context, raw)
        parts.add("</ol></div>\n")

    def _toc(self, parts: _Parts, names: list[str]) -> None:
        parts.add("<div><input><div><h2>목차</h2></div>\n<ul>\n")
        for number, name in enumerate(names, 1):
            parts.add(
                f"<li><a><span>{number}</span> <span>{name}</span></a></li>\n",
                f'<li class="toclevel-1 tocsection-{number}"><a href="#{name}"><span class="tocnumber">{number}'
                f'</span> <span class="toctext">{name}</span></a></li>\n',
            )
        parts.add("</ul>\n</div>\n")

    def _frame_start(self, parts: _Parts, title: str) -> None:
        names = [self.korean.phrase(12) for _ in range(12)]
        script = f'RLCONF={{"wgPageName":"{title}","wgCategories":{names},"wgIsArticle":!0}};'
        modules = "".join(f'"ext.module.{i}","mediawiki.part.{i}",' for i in range(40))
        parts.add("<!DOCTYPE html>\n<html>\n<head>\n<meta>\n")
        parts.add(f"<title>{title} - 위키백과, 우리 모두의 백과사전</title>\n")
        parts.add("\n<link>\n", f"<script>{script}RLPAGEMODULES=[{modules}];</script>\n<link>\n")
        parts.add("<meta>\n<link>\n" * 5 + "\n</head>\n<body>\n<div></div>\n<div>\n")
        parts.add(f"<h1>{title}</h1>\n<div>위키백과, 우리 모두의 백과사전.</div>\n")
        parts.add("<a>둘러보기로 가기</a>\n<a>검색하러 가기</a>\n<div><div>")

    def _frame_end(self, parts: _Parts, title: str) -> None:
        links = self.random.choices(self._links, k=self.random.randint(3, 18))
        # The rest of a raw page's surplus is scripts and styles: 4.14 characters for one of context.
        surplus = int(parts.at * 4.2 + 7_000) - parts.raw_at
        filler = _STYLE * (max(surplus, 0) // len(_STYLE))
        parts.add("</div></div>\n", f"</div>\n<!-- \nNewPP limit report\n-->\n{filler}</div>\n")
        parts.add("<div><a>분류</a>: <ul>")
        for context, raw in links:
            parts.add(f"<li>{context}</li>", f"<li>{raw}</li>")
        parts.add("</ul></div>\n<h2>둘러보기 메뉴</h2>\n")
        for name, entries in _MENUS.items():
            parts.add(f"<div>\n<h3>{name}</h3>\n<div>\n<ul>\n")
            for entry in entries:
                parts.add(
                    f"<li><a>{entry}</a></li>",
                    f'<li id="n-{len(entry)}"><a accesskey="z" href="/wiki/{quote(entry)}" title="{entry} [z]">'
                    f"{entry}</a></li>",
                )
            parts.add(" </ul>\n</div>\n</div>\n")
        parts.add(
            f"<ul>\n<li> {particle(title, '은는')} 2019년에 마지막으로 편집되었습니다.</li>\n</ul>\n"
        )
        parts.add("</div>\n\n\n</body>\n</html>\n")


_MENUS = {
    "개인 도구": ("토론", "기여", "계정 만들기", "로그인"),
    "이름공간": ("문서", "토론"),
    "보기": ("읽기", "편집", "역사 보기"),
    "둘러보기": (
        "대문",
        "사용자 모임",
        "요즘 화제",
        "최근 바뀜",
        "모든 문서 보기",
        "임의 문서로",
        "도움말",
        "기부",
    ),
    "도구": (
        "여기를 가리키는 문서",
        "가리키는 글의 최근 바뀜",
        "파일 올리기",
        "특수 문서 목록",
        "고유 링크",
    ),
    "인쇄/내보내기": ("책 만들기", "PDF로 다운로드", "인쇄용 판"),
}


def _link(name: str, korean: Korean) -> tuple[str, str]:
    """A link in both forms; one in ten goes through a redirect, whose class is long."""
    target = name if korean.random.random() < 0.4 else f"{name} ({korean.noun()})"
    kind = ' class="mw-redirect"' if korean.random.random() < 0.1 else ""
    return f"<a>{name}</a>", f'<a{kind} href="/wiki/{quote(target)}" title="{target}">{name}</a>'


def _source(korean: Korean) -> tuple[str, str]:
    """A footnote with the machine-readable citation that makes raw pages long."""
    number, title = korean.random.randint(1, 200), korean.sentence()
    when = korean.date()
    context = (
        f"<li><span>↑</span> <span><cite>{korean.name()}. <a>“{title}”</a>. {when}에 확인함.</cite>"
        f"<span></span></span></li>\n"
    )
    coins = f"ctx_ver=Z39.88-2004&amp;rft_val_fmt=info%3Aofi%2Ffmt%3Akev%3Amtx%3Abook&amp;rft.btitle={quote(title)}"
    raw = (
        f'<li id="cite_note-{number}"><span class="mw-cite-backlink">↑</span> <span class="reference-text"><cite '
        f'class="citation news">{korean.name()}. <a class="external text" href="https://news.example.org/view/'
        f'{number:08d}" rel="nofollow">“{title}”</a>. {when}에 확인함.</cite><span class="Z3988" title="{coins}">'
        f"</span></span></li>\n"
    )
    return context, raw
