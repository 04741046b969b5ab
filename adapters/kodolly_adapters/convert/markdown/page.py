"""Wikipedia HTML, as KorQuAD 2 keeps it, to readable Markdown in which an answer's place is known.

A page is rendered once for all its questions: private marks are put into the source at every border of an
answer, travel through the rendering, and are taken out of the text, which leaves the borders' new places.
So a rendered answer is a part of the rendered page by construction, whatever the renderer does.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from html import unescape
from typing import NamedTuple

from .blocks import Blocks, Marks

Span = tuple[int, int]

_TAG = re.compile(r"(</?[a-zA-Z][^<>]*>|<![a-zA-Z\[][^<>]*>)")
_COMMON = ("<a>", "</a>", "<span>", "</span>", "<b>", "</b>", "<i>", "</i>")  # replace() is fastest
_HIDDEN = ("head", "title", "script", "style", "noscript", "form", "template")

_FOOTER = ('<div>원본 주소 "', "<h2>둘러보기 메뉴</h2>")
_CHROME = (
    "<div>위키백과, 우리 모두의 백과사전.</div>",
    "<a>둘러보기로 가기</a>",
    "<a>검색하러 가기</a>",
)
_CONTENTS = re.compile(r"<h2>\s*목차\s*</h2>\s*(?:<label>\s*</label>\s*)?(?:</div>\s*)?(?=<ul>)")
_LIST_EDGE = re.compile(r"<(/?)ul>")
_ABBR = r"<li>(?:<abbr>)?{}(?:</abbr>)?</li>\s*"
_VIEW_LINKS = re.compile(
    rf"<ul>\s*{_ABBR.format('v')}{_ABBR.format('[dt]')}{_ABBR.format('e')}(?:{_ABBR.format('h')})?</ul>"
)
_DOTTED_VIEW_LINKS = (
    "v • d • e • h",
    "v • d • e",
    "v • t • e",
    "v · d · e · h",
    "v · d · e",
    "v · t · e",
)
_SUP = re.compile(r"<sup\b[^<>]*>([^<>]*)</sup\s*>", re.IGNORECASE)
_CITATION = re.compile(r"\s*(?:\[[^\[\]]{1,40}\]\s*)+")
_EXPONENT = re.compile(r"\s*([-+−]?[0-9]{1,4}|[nkxyz])\s*")
_BACK_LINK = re.compile(r"↑\s*(?:이동:\s*)?(?:<sup>[^<>]{0,20}</sup>,?\s*)*")
_ANNOTATION = re.compile(r"<annotation\b[^<>]*>([^<>]*)</annotation>")
_DISPLAY_STYLE = re.compile(r"\s*\{\\(?:display|text)style (.*)\}\s*", re.DOTALL)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_LINE_MARK = re.compile(r" *(?:#{1,6} |- |[0-9]+\. |: |[| ]+)*")


class Rendered(NamedTuple):
    """Markdown, and where the wanted spans of the source are in it (None: nothing legible was in it)."""

    text: str
    spans: tuple[Span | None, ...]


def render(html: str, spans: Sequence[Span] = ()) -> Rendered:
    """Render a page or a fragment; `spans` are [start, end) offsets into `html`.

    Chrome (head, scripts, table of contents, site navigation, edit links) is left out unless a span touches it.
    Any text can be given: what is not well-formed is read as well as it can be.
    """
    return Page(html, spans).render()


class Page:
    """A page with the places of its answers, to be rendered as a whole or in part."""

    __slots__ = ("_borders", "_marks", "_where", "html", "spans")

    def __init__(self, html: str, spans: Sequence[Span] = ()) -> None:
        self._marks = Marks.absent_from(html, 2 * len(spans))
        formulas = "<math" in html  # looking back for one from every border takes much longer
        moved = [_outside(html, *edge, formulas) for edge in _edges(html, spans)]
        self.spans = list(zip(moved[::2], moved[1::2], strict=True))  # out of tags and the like
        self._borders = sorted([(at, number) for number, at in enumerate(moved)])
        self._where = [at for at, _ in self._borders]
        self.html = _without_footer(html, self._where[-1] if moved else -1)

    def render(self, *parts: Span) -> Rendered:
        """The parts of `html` as if nothing else were there, one after another; without any, all of it.

        A span that is in none of the parts is None.
        """
        marks = self._marks
        html = "".join([self._marked(*part) for part in parts or ((0, len(self.html)),)])
        text = Blocks(marks).render(_TAG.split(_flat(html, marks)))
        if not self._borders:
            return Rendered(text, ())
        text, places = marks.take_out(text)
        found = [places.get(mark) for mark in marks.all]
        pairs = zip(found[::2], found[1::2], strict=True)
        return Rendered(text, tuple([_tidy(text, start, end) for start, end in pairs]))

    def _marked(self, low: int, high: int) -> str:
        """A part of the source with a mark at every border."""
        pieces: list[str] = []
        for at, number in self._borders[
            bisect_left(self._where, low) : bisect_right(self._where, high)
        ]:
            pieces += (self.html[low:at], self._marks.all[number])
            low = at
        pieces.append(self.html[low:high])
        return "".join(pieces)


def fragment(html: str) -> str:
    """The Markdown of an answer's HTML alone."""
    text, (span,) = render(html, ((0, len(html)),))
    return text[span[0] : span[1]] if span else ""


# --- before the blocks: hidden parts, chrome and inline tags -------------------------------------------------


def _flat(html: str, marks: Marks) -> str:
    """The source with nothing but text and block tags left."""
    html = _without_hidden(html, marks)
    for chrome in _CHROME:
        html = html.replace(chrome, "")
    html = _replace_ranges(html, "<math", "</math>", _formula)
    for tag in _COMMON:
        html = html.replace(tag, "")
    html = _without_contents(html, marks)
    if ">v</" in html:
        html = _VIEW_LINKS.sub("", html)
    if "v • " in html or "v · " in html:
        for links in _DOTTED_VIEW_LINKS:
            html = html.replace(links, "")
    if "↑" in html:
        html = _BACK_LINK.sub("", html)
    if "<sup" in html:
        html = _SUP.sub(lambda match: _superscript(match, marks), html)
    return html


def _without_footer(html: str, last: int) -> str:
    """The page up to its footer, if the last border is before that."""
    for sign in _FOOTER:
        at = html.rfind(sign)
        if at >= last and at >= 0:
            html = html[:at]
    return html


def _without_hidden(html: str, marks: Marks) -> str:
    def dropped(element: str) -> str | None:
        return None if marks.holds(element) else ""

    for name in _HIDDEN:
        html = _replace_ranges(html, f"<{name}", f"</{name}>", dropped)
    return _replace_ranges(html, "<!--", "-->", dropped)


def _replace_ranges(html: str, opening: str, closing: str, put: Callable[[str], str | None]) -> str:
    """Replace every opening...closing by `put` of it (None keeps it), in one pass: never quadratic."""
    start = html.find(opening)
    if start < 0:
        return html
    kept: list[str] = []
    done = 0
    while start >= 0:
        inside = start + len(opening)
        end = html.find(closing, inside)
        if end < 0:
            break
        end += len(closing)
        longer_name = opening[-1].isalpha() and html[inside].isalnum()  # <header> is no <head>
        new = None if longer_name else put(html[start:end])
        if new is None:
            end = inside
        else:
            kept += (html[done:start], new)
            done = end
        start = html.find(opening, end)
    kept.append(html[done:])
    return "".join(kept)


def _without_contents(html: str, marks: Marks) -> str:
    """Drop the box with the page's table of contents: its heading and the list after it."""
    match = _CONTENTS.search(html)
    if match is None:
        return html
    depth = 0
    for edge in _LIST_EDGE.finditer(html, match.end()):
        depth += -1 if edge[1] else 1
        if depth == 0:
            box = html[match.start() : edge.end()]
            return html if marks.holds(box) else html[: match.start()] + html[edge.end() :]
    return html


def _superscript(match: re.Match[str], marks: Marks) -> str:
    """Nothing for a citation such as [1], ^2 for an exponent, else the text itself."""
    inner = match[1]
    if _CITATION.fullmatch(inner) and not marks.holds(inner):
        return ""
    exponent = _EXPONENT.fullmatch(inner)
    before = match.string[match.start() - 1 : match.start()]
    if exponent and (before.isalnum() or before in (")", "}")):
        return "^" + exponent[1]
    return inner


def _formula(element: str) -> str | None:
    """MathML as the TeX it was made from: $...$."""
    found = _ANNOTATION.search(element)
    if found is None:
        return None
    display = _DISPLAY_STYLE.fullmatch(found[1])
    return f" ${(display[1] if display else found[1]).strip()}$ "


# --- the spans' borders --------------------------------------------------------------------------------------


def _edges(html: str, spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """The offsets at which spans begin (0) and end (1), within the text."""
    for start, end in spans:
        start = max(0, min(start, len(html)))
        yield start, 0
        yield max(start, min(end, len(html))), 1


def _outside(html: str, at: int, side: int, formulas: bool) -> int:
    """Move an offset out of what is rendered as one: to its begin (side 0) or its end (side 1)."""
    start = html.rfind("<math", 0, at) if formulas else -1
    if start >= 0:
        end = html.find("</math>", start)
        if start < at < end + 7:
            return end + 7 if side else start
    start = html.rfind("<", 0, at)
    if start >= 0 and html.find(">", start, at) < 0 and html[start + 1 : start + 2] in _TAG_SECOND:
        end = html.find(">", at)
        if end >= 0 and html.find("<", at, end) < 0:
            return end + 1 if side else start
    start = html.rfind("&", max(0, at - 33), at)
    if start >= 0:
        entity = _ENTITY.match(html, start)
        if entity and start < at < entity.end():
            return entity.end() if side else start
    return at


_TAG_SECOND = frozenset("/!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _tidy(text: str, start: int | None, end: int | None) -> Span | None:
    """A span without white space at its ends, and with the marks of its first and last line if it has several."""
    if start is None or end is None:
        return None
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start >= end:
        return None
    line = text.rfind("\n", 0, start) + 1
    last_line = max(line, text.rfind("\n", 0, end) + 1)
    cells = text.startswith("|", line) and " | " in text[start:end]
    if last_line > line or cells:
        before = text[line:start]
        if _LINE_MARK.fullmatch(before):
            start = line + len(before) - len(before.lstrip(" "))
        stop = text.find("\n", end)
        rest = text[end:] if stop < 0 else text[end:stop]
        if text.startswith("|", last_line) and rest.endswith("|") and not rest.strip(" |"):
            end += len(rest)
    return start, end


def plain(text: str) -> str:
    """HTML text without tags (a title, a question): entities resolved, white space as single spaces."""
    return " ".join(unescape(_TAG.sub("", text)).split())
