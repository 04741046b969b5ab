"""The windows around a page's answers, each cut from as little of the page as surely holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..cleaning.tokens import Counter
from .excerpts import Cuts, Excerpt, Span, cuts
from .page import Page
from .window import Beyond, cut

# Characters of HTML on each side for one of the window's reach, one try after the other.
WIDTHS = (1.2, 2, 8)


class Window(NamedTuple):
    """An answer as Markdown ("": nothing legible was in it) and its context (None: no window holds it)."""

    context: str | None
    answer: str


def windows(html: str, spans: Sequence[Span], budget: int, counter: Counter) -> list[Window]:
    """One window a span of `html`, the same ones as are cut from the whole page."""
    page = Page(html, spans)
    reach = counter.chars(budget)
    found: dict[int, Window] = {}
    places, seen = None, -1  # a page's cuts are looked for once for the first two widths
    for width in WIDTHS:
        left = [number for number in range(len(spans)) if number not in found]
        if not left:
            break
        wide = int(width * reach)
        until = max([page.spans[number][1] for number in left]) + wide
        if until > seen:
            seen = max(until, until - wide + int(WIDTHS[1] * reach))
            places = cuts(page.html, seen)
        if places is None:
            break
        for excerpt, numbers in _together(places, page, left, wide):
            found |= _cut(page, excerpt, numbers, budget, counter)
    if len(found) < len(spans):
        text, answers = page.render()
        for number, answer in enumerate(answers):
            if number not in found:
                found[number] = _window(text, answer, budget, counter)
    return [found[number] for number in range(len(spans))]


def _together(
    places: Cuts, page: Page, numbers: list[int], reach: int
) -> Iterator[tuple[Excerpt, list[int]]]:
    """The spans' excerpts, overlapping ones as one."""
    around = sorted(
        [(places.around(page.spans[number], reach), number) for number in numbers],
        key=lambda one: one[0].part,
    )
    last, together = Excerpt((0, 0), (0, 0)), list[int]()
    for excerpt, number in around:
        if together and excerpt.part[0] < last.part[1]:
            last = Excerpt(last.heading, (last.part[0], max(last.part[1], excerpt.part[1])))
            together.append(number)
            continue
        if together:
            yield last, together
        last, together = excerpt, [number]
    if together:
        yield last, together


def _cut(
    page: Page, excerpt: Excerpt, numbers: list[int], budget: int, counter: Counter
) -> dict[int, Window]:
    """The windows that nothing outside of the excerpt can change."""
    apart, (low, high) = excerpt.heading[1] > 0, excerpt.part
    text, answers = page.render(*([excerpt.heading] if apart else []), excerpt.part)
    if low > 0 and not text.startswith("#"):  # an empty heading: an earlier one counts
        return {}
    first = len(text.partition("\n")[0]) + 2 if apart else 0
    # What follows the excerpt begins a block: only the border at the very end is not the page's.
    known = first if low else 0, len(text) if high == len(page.html) else len(text) - 1
    if low and not apart:
        known = 1, known[1]  # nor is the one before the heading, which others may precede
    found: dict[int, Window] = {}
    for number in numbers:
        answer = answers[number]
        if answer is None:
            found[number] = Window(None, "")
        elif known[0] <= answer[0] and answer[1] <= known[1]:
            with suppress(Beyond):
                found[number] = _window(text, answer, budget, counter, known)
    return found


def _window(
    text: str, answer: Span | None, budget: int, counter: Counter, known: Span | None = None
) -> Window:
    if answer is None:
        return Window(None, "")
    return Window(cut(text, *answer, budget, counter, known), text[slice(*answer)])
