"""A part of a page that renders, by itself, to the same Markdown as it does within the page.

Where no list, table, heading or hidden element is open, the renderer remembers nothing of what came before a
paragraph or a heading. A page can be cut there, and a window around an answer needs no more than the pieces
around it and its section's heading. What cannot be shown to be alike is rendered as a whole page instead:
pages whose elements overlap, with list items or cells outside of lists and tables, or with comments.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import NamedTuple

Span = tuple[int, int]

# The lookaheads save trying every name at every tag.
_EDGE = re.compile(
    r"<(?:p>|(/?)(?=[tuodphmfnsA-Z])(?!(?:t[drh]|span|sup|div|tbody)>)"
    r"(table|[uod]l|pre|h[1-6]|math|form|head|title|script|style|noscript|template|[a-z]*[A-Z][a-zA-Z0-9]*)"
    r"(?![a-zA-Z0-9])([^<>]*>)?)"
)
_STRAY = re.compile(r"<(?:l[iI]|t[rdhRDH]|d[dtDT])")
_BLOCKS = frozenset({"table", "ul", "ol", "dl"})
_HEADINGS = frozenset(f"h{n}" for n in range(1, 7))
_CONTENTS = "목차"  # only the first box of a page is left out


class Excerpt(NamedTuple):
    """Ranges of a page's HTML: the section's heading, if it stands apart ((0, 0) if not), and the part."""

    heading: Span
    part: Span


class Cuts:
    """Places of a page where an excerpt may begin or end, in order; the page's ends are among them."""

    __slots__ = ("_deep", "_headings", "_html", "_places")

    def __init__(self, html: str, places: list[int], headings: list[Span], deep: list[int]) -> None:
        self._html = html
        self._places = places
        self._headings = headings
        self._deep = deep  # headings within lists and tables

    def around(self, span: Span, reach: int) -> Excerpt:
        """What holds `span` and at least `reach` characters of HTML on both sides, as far as the page goes."""
        low = self._places[max(0, bisect_right(self._places, span[0] - reach) - 1)]
        after = bisect_left(self._places, span[1] + reach)
        high = self._places[min(after, len(self._places) - 1)]
        number = bisect_right(self._headings, (low, len(self._html))) - 1
        if number < 0:
            return Excerpt((0, 0), (0, high))
        start, end = self._headings[number]
        if start == low:
            return Excerpt((0, 0), (low, high))
        if _CONTENTS in self._html[start:end]:
            return Excerpt((0, 0), (0, high))
        deep = bisect_left(self._deep, end)
        # A line that begins with "#" would be taken for the heading.
        if self._html.find("#", end, low) >= 0 or (
            deep < len(self._deep) and self._deep[deep] < low
        ):
            return Excerpt((0, 0), (start, high))
        return Excerpt((start, end), (low, high))


def cuts(html: str, until: int) -> Cuts | None:
    """Where `html` may be cut, up to the first place after `until`; None if no place is shown to be safe."""
    if "<!--" in html or html.count(_CONTENTS) > 1:
        return None
    places, headings, deep = [0], list[Span](), list[int]()
    open_: list[str] = []
    outside = 0  # where the present stretch outside of all elements begins
    contents = False  # below the heading of the contents box, whose list goes with it
    for edge in _EDGE.finditer(html):
        closing, name, rest = edge.groups()
        at = edge.start()
        if name is None:
            if not open_:
                places.append(at)
        elif rest is None or not name.islower():
            return None
        elif not closing:
            if open_:
                if name in _HEADINGS:
                    deep.append(at)
            elif _STRAY.search(html, outside, at) or (name == "table" and not headings):
                return None  # the latter because a row may be the page's first line
            elif name in _HEADINGS or (name in _BLOCKS and not contents):
                places.append(at)
            open_.append(name)
        elif not open_ or open_.pop() != name:
            return None
        elif not open_:
            outside = edge.end()
            if name in _HEADINGS:
                headings.append((places[-1], outside))
                contents = _CONTENTS in html[places[-1] : outside]
        if places[-1] > until:
            break
    else:
        places.append(len(html))
        if not open_ and _STRAY.search(html, outside):
            return None
    if not headings or "|" in html[: headings[0][1]]:
        return None
    return Cuts(html, places, headings, deep)
