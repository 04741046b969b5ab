"""Cuts the windows around a page's answers, and renders only the sections near each answer for that.

A part of a page between two headings looks the same rendered alone as within the page, because the renderer keeps
no state at a heading where no list, table, heading or hidden element is open. A page for which this is not certain is
rendered as a whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from ..cleaning.tokens import TokenCounter
from .marks import Span
from .page import FOOTER, Rendering, render
from .window import BeyondPart, cut

# The tags of all elements that change the renderer's state, and all upper-case tags. (The lookaheads only save time.)
_EDGE = re.compile(
    r"<(/?)(?=[tuodphmfnsA-Z])(?!(?:t[drh]|span|sup|div|tbody)>)"
    r"(table|[uod]l|pre|h[1-6]|math|form|head|title|script|style|noscript|template|[a-z]*[A-Z][a-zA-Z0-9]*)"
    r"(?![a-zA-Z0-9])([^<>]*>)?"
)
_STRAY = re.compile(r"<(?:l[iI]|t[rdhRDH]|d[dtDT])")  # items and cells outside of lists and tables
# How many characters of HTML to render on each side of an answer, per character of its window.
_WIDTH = 2


class Window(NamedTuple):
    """An answer as Markdown and its context; both "" where the answer's HTML holds no text."""

    context: str
    answer: str


def windows(html: str, spans: Sequence[Span], budget: int, counter: TokenCounter) -> list[Window]:
    """The window around each answer of a page; `spans` are offsets into `html`, `budget` is in tokens.

    Each is cut from the sections around the answer if the window does not reach their ends, else from the whole page.
    """

    @cache
    def render_part(low: int, high: int) -> Rendering:
        # With the spans of all answers, since chrome is not left out where an answer touches it.
        return render(html[low:high], [(start - low, end - low) for start, end in spans])

    def window(number: int, low: int, high: int) -> Window | None:
        """The window of one answer from a part of the page; None where text beyond the part would change it."""
        text, answers = render_part(low, high)
        if low and not text.startswith("#"):  # its heading is empty: the one before it is needed
            return None
        if (answer := answers[number]) is None:
            return Window("", "")
        # Without the two borders beyond which the page has more text.
        inside = 1 if low else 0, len(text) - (high < len(html))
        with suppress(BeyondPart):
            if inside[0] <= answer[0] and answer[1] <= inside[1]:
                return Window(cut(text, *answer, budget, counter, inside), text[slice(*answer)])
        return None

    in_footer = any(0 <= html.find(footer) < span[1] for footer in FOOTER for span in spans)
    starts = [] if in_footer else section_starts(html)
    margin = _WIDTH * counter.chars(budget)
    whole = 0, len(html)
    parts = [part_around(starts, span, margin, len(html)) for span in spans]
    if sum(high - low for low, high in parts) >= len(html):
        parts = [whole] * len(spans)
    return [
        window(number, *part) or window(number, *whole) or Window("", "")
        for number, part in enumerate(parts)
    ]


def section_starts(html: str) -> list[int]:
    """Offsets of the headings at which the page can be cut; [] if elements overlap or stand alone."""
    contents = html.count("목차")  # only the first box of a page is left out
    if "<!--" in html or contents > 1 or any(html.count(footer) > 1 for footer in FOOTER):
        return []
    starts: list[int] = []
    elements: list[str] = []  # open ones, the innermost last
    outside = 0  # where the current text outside of all elements begins
    for edge in _EDGE.finditer(html):
        closing, name, rest = edge.groups()
        if rest is None or not name.islower():
            return []
        if closing:
            if not elements or elements.pop() != name:
                return []
            outside = edge.end()
            continue
        if not elements:
            if _STRAY.search(html, outside, edge.start()):
                return []
            if name[1:].isdigit():  # a heading
                starts.append(edge.start())
        elements.append(name)
    return [] if elements or _STRAY.search(html, outside) else starts


def part_around(starts: list[int], span: Span, margin: int, length: int) -> Span:
    """The sections that hold `span` and `margin` characters of HTML on both sides, as far as the page goes."""
    before = bisect_right(starts, span[0] - margin) - 1
    after = bisect_left(starts, span[1] + margin)
    return starts[before] if before >= 0 else 0, starts[after] if after < len(starts) else length
