"""Renders Wikipedia HTML, as KorQuAD 2 has it, as readable Markdown, and finds the answers in it.

A page is rendered once for all its questions: marks are put into the HTML at every border of an answer, pass
through the renderer with the text around them, and are then taken out, which gives the borders' offsets in the
Markdown. So an answer always is a part of the rendered page, whatever the renderer does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .blocks import Blocks
from .marks import Marks, Span

_TAG = re.compile(r"(</?[a-zA-Z][^<>]*>|<![a-zA-Z\[][^<>]*>)")
_TAG_START = re.compile(r"<[/!a-zA-Z]")
_INLINE = ("<a>", "</a>", "<span>", "</span>", "<b>", "</b>", "<i>", "</i>")
_HIDDEN = ("head", "title", "script", "style", "noscript", "form", "template")

# Parts of Wikipedia's pages that do not belong to the article.
FOOTER = ('<div>원본 주소 "', "<h2>둘러보기 메뉴</h2>")
_MOTTO = "<div>위키백과, 우리 모두의 백과사전.</div>"
_CHROME = (_MOTTO, "<a>둘러보기로 가기</a>", "<a>검색하러 가기</a>")
_CONTENTS = re.compile(r"<h2>\s*목차\s*</h2>\s*(?:<label>\s*</label>\s*)?(?:</div>\s*)?(?=<ul>)")
_LIST_EDGE = re.compile(r"<(/?)ul>")
_ABBR = r"<li>(?:<abbr>)?{}(?:</abbr>)?</li>\s*"
_VIEW_LINKS = re.compile(
    rf"<ul>\s*{_ABBR.format('v')}{_ABBR.format('[dt]')}{_ABBR.format('e')}(?:{_ABBR.format('h')})?</ul>"
    r"|v • (?:d • e • h|[dt] • e)|v · (?:d · e · h|[dt] · e)"
)
_SUP = re.compile(r"<sup\b[^<>]*>([^<>]*)</sup\s*>", re.IGNORECASE)
_CITATION = re.compile(r"\s*(?:\[[^\[\]]{1,40}\]\s*)+")
_EXPONENT = re.compile(r"\s*([-+−]?[0-9]{1,4}|[nkxyz])\s*")
_BACK_LINK = re.compile(r"↑\s*(?:이동:\s*)?(?:<sup>[^<>]{0,20}</sup>,?\s*)*")
_ANNOTATION = re.compile(r"<annotation\b[^<>]*>([^<>]*)</annotation>")
_DISPLAY_STYLE = re.compile(r"\s*\{\\(?:display|text)style (.*)\}\s*", re.DOTALL)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_LINE_MARK = re.compile(r" *(?:#{1,6} |- |[0-9]+\. |: |[| ]+)*")


class Rendering(NamedTuple):
    """Markdown, and where the given spans of the HTML are in it (None: the span held no text)."""

    text: str
    spans: tuple[Span | None, ...]


def render(html: str, spans: Sequence[Span] = ()) -> Rendering:
    """Render a page or a fragment; `spans` are offsets into `html`.

    Chrome (head, scripts, table of contents, site navigation, edit links) is left out unless a span touches it.
    HTML that is not well-formed is rendered as well as possible.
    """
    marks = Marks(html, 2 * len(spans))
    has_formulas = "<math" in html  # asked once, as the search at every border takes long
    borders: list[int] = []
    for span in spans:
        start, end = (max(0, min(at, len(html))) for at in span)
        borders.append(_outside(html, start, has_formulas, to_end=False))
        borders.append(_outside(html, max(start, end), has_formulas, to_end=True))
    html = _without_footer(html, max(borders, default=-1))
    pieces: list[str] = []
    last = 0
    for at, mark in sorted(zip(borders, marks.all, strict=True), key=lambda border: border[0]):
        pieces += (html[last:at], mark)
        last = at
    html = _flat("".join([*pieces, html[last:]]), marks)
    text, offsets = marks.take_out(Blocks(marks).render(_TAG.split(html)))
    pairs = zip(offsets[::2], offsets[1::2], strict=True)
    return Rendering(text, tuple([_tidy(text, start, end) for start, end in pairs]))


def fragment(html: str) -> str:
    """The Markdown of an answer's HTML alone."""
    text, (span,) = render(html, ((0, len(html)),))
    return text[span[0] : span[1]] if span else ""


def _flat(html: str, marks: Marks) -> str:
    """The HTML without hidden parts, chrome and most inline tags; formulas and superscripts as text."""

    for name in _HIDDEN:
        html = _replace_elements(html, f"<{name}", f"</{name}>", keep=marks.holds)
    html = _replace_elements(html, "<!--", "-->", keep=marks.holds)
    for chrome in _CHROME:
        html = html.replace(chrome, "")
    html = _replace_elements(html, "<math", "</math>", replacement=_formula)
    for tag in _INLINE:  # faster than one regular expression
        html = html.replace(tag, "")
    html = _without_contents(html, marks)
    if ">v</" in html or "v • " in html or "v · " in html:
        html = _VIEW_LINKS.sub("", html)
    if "↑" in html:
        html = _BACK_LINK.sub("", html)
    if "<sup" in html:
        html = _SUP.sub(lambda match: _superscript(match, marks), html)
    return html


def _without_footer(html: str, last_border: int) -> str:
    """The page up to its footer, if no border is in the footer."""
    for beginning in FOOTER:
        at = html.rfind(beginning)
        if at >= max(0, last_border):
            html = html[:at]
    return html


def _replace_elements(
    html: str,
    opening: str,
    closing: str,
    *,
    keep: Callable[[str, int, int], re.Match[str] | None] = lambda html, start, end: None,
    replacement: Callable[[str], str | None] = lambda element: "",
) -> str:
    """Replace every part from `opening` to `closing`, in linear time.

    A part stays where `keep` finds something in it, or where `replacement` is None.
    """
    start = html.find(opening)
    if start < 0:
        return html
    pieces: list[str] = []
    last = 0
    while start >= 0:
        inside = start + len(opening)
        if opening[-1].isalpha() and html[inside : inside + 1].isalnum():  # <header> is no <head>
            start = html.find(opening, inside)
            continue
        end = html.find(closing, inside)
        if end < 0:
            break
        end += len(closing)
        if match := keep(html, start, end):
            end = max(inside, match.start())  # parts that begin before it stay for the same reason
        elif (new := replacement(html[start:end])) is not None:
            pieces += (html[last:start], new)
            last = end
        start = html.find(opening, end)
    pieces.append(html[last:])
    return "".join(pieces)


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
    tex = _ANNOTATION.search(element)
    if tex is None:
        return None
    display = _DISPLAY_STYLE.fullmatch(tex[1])
    return f" ${(display[1] if display else tex[1]).strip()}$ "


def _outside(html: str, at: int, has_formulas: bool, *, to_end: bool) -> int:
    """The offset; if it is inside a formula, tag or entity, the end or the beginning of that."""
    start = html.rfind("<math", 0, at) if has_formulas else -1
    if start >= 0:
        end = html.find("</math>", start)
        if start < at < end + 7:
            return end + 7 if to_end else start
    start = html.rfind("<", 0, at)
    if start >= 0 and html.find(">", start, at) < 0 and _TAG_START.match(html, start):
        end = html.find(">", at)
        if end >= 0 and html.find("<", at, end) < 0:
            return end + 1 if to_end else start
    start = html.rfind("&", max(0, at - 33), at)
    if start >= 0:
        entity = _ENTITY.match(html, start)
        if entity and start < at < entity.end():
            return entity.end() if to_end else start
    return at


def _tidy(text: str, start: int | None, end: int | None) -> Span | None:
    """The span without white space at its ends; one of several lines is widened to whole items and rows.

    That adds the signs before its first line ("- ", "## ", "| ") and the empty cells after its last.
    """
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
