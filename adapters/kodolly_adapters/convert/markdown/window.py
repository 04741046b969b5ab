"""The part of a page around an answer: whole sentences, within a budget of tokens, the answer in it."""

from __future__ import annotations

import re

from ..cleaning.tokens import TokenCounter
from .marks import Span

_STOP = re.compile(r"""[.?!。？！]+["'”’」』)\]]*""")
_LINE_BREAK = re.compile("\n")
_CLOSING = frozenset(")]\"'”’」』%")
_HEADING = re.compile(r"^#{1,6} .*$", re.MULTILINE)


class NotInside(Exception):
    """The window depends on text that is not there."""


def cut(
    text: str, start: int, end: int, budget: int, counter: TokenCounter, inside: Span | None = None
) -> str | None:
    """A context for the answer `text[start:end]`: about `budget` tokens of Markdown that hold it.

    It begins and ends at borders of sentences or blocks; what one side does not need goes to the other. In front
    come the section's heading and, inside a table, the table's header, where they fit. An answer that alone
    passes the budget gets its own lines and no more. White space at the answer's ends is no
    part of it. None if the answer cannot be found in the result. Where `text` is a part of a page, `inside` is
    where its borders are those of the page.
    """
    answer = text[start:end].strip()
    start = text.find(answer, start)
    end = start + len(answer)
    if counter.count(answer) >= budget:
        stop = text.find("\n", end)
        low, high = text.rfind("\n", 0, start) + 1, len(text) if stop < 0 else stop
        context = _table_header(text, low) + text[low:high]
    else:
        context = _within(text, (start, end), budget, counter, inside or (0, len(text)))
    return context if answer in context else None


def _within(text: str, answer: Span, budget: int, counter: TokenCounter, inside: Span) -> str:
    """The context of an answer that is shorter than the budget."""
    start, end = answer
    reach = counter.chars(budget)
    borders = _borders(text, max(0, start - reach), min(len(text), end + reach), answer)
    left = [at for at in borders if at <= start]
    right = [at for at in borders if at >= end]
    low, high = left.pop(), right.pop(0)
    if low < inside[0] or high > inside[1]:
        raise NotInside
    head = _heads(text, low, budget, counter)
    if counter.count(head + text[low:high]) > budget:
        head = _table_header(text, low)
        if counter.count(head + text[low:high]) > budget:
            return _forced(text, (low, high), answer, budget, counter)
    spent = counter.count(head) + counter.count(text[low:high])
    low, high = _grow(text, (low, high), left, right, budget - spent, counter, inside)
    outside = _out_of_table(text, low, start)
    if outside > low:  # the rows left out make room on the other side
        spent = counter.count(_heads(text, outside, budget, counter))
        spent += counter.count(text[outside:high])
        right = [at for at in borders if at > high]
        low, high = _grow(text, (outside, high), [], right, budget - spent, counter, inside)
    # What stands in front depends on where the window begins, and tokens do not simply add up: shrink until all fits.
    while True:
        low, high = _trim(text, (low, high), answer)
        context = _heads(text, low, budget, counter) + text[low:high]
        if counter.count(context) <= budget:
            return context
        first = next((at for at in borders if low < at <= start), None)
        last = next((at for at in reversed(borders) if end <= at < high), None)
        if first is None and last is None:
            return _table_header(text, low) + text[low:high]
        if last is None or (first is not None and start - low > high - end):
            low = start if first is None else first
        else:
            high = last


def _grow(
    text: str,
    window: Span,
    left: list[int],
    right: list[int],
    budget: int,
    counter: TokenCounter,
    inside: Span,
) -> Span:
    """Take sentences from the side that gave less so far, until neither side's next one fits."""
    low, high = window
    left, right = left[:], right[::-1]
    left_cost = right_cost = 0
    while left or right:
        take_left = bool(left) and (not right or left_cost <= right_cost)
        at = left.pop() if take_left else right.pop()
        if not inside[0] <= at <= inside[1]:
            raise NotInside
        cost = counter.count(text[at:low] if take_left else text[high:at])
        if cost > budget:
            (left if take_left else right).clear()
            continue
        budget -= cost
        if take_left:
            low, left_cost = at, left_cost + cost
        else:
            high, right_cost = at, right_cost + cost
    return low, high


def _trim(text: str, window: Span, answer: Span) -> Span:
    """No blank lines at the ends, and no heading at the end whose section is not there."""
    low, high = window
    start, end = answer
    while low < start and text[low] == "\n":
        low += 1
    while True:
        while high > end and text[high - 1].isspace():
            high -= 1
        line = text.rfind("\n", 0, high) + 1
        if line < end or not _HEADING.match(text, line, high):
            return low, high
        high = line


def _borders(text: str, low: int, high: int, answer: Span) -> list[int]:
    """Offsets in [low, high], but none inside the answer, at which a sentence or a line begins or ends.

    There is one before the answer and one after it, if need be outside of [low, high].
    """
    start, end = answer
    borders = set()
    for match in _STOP.finditer(text, low, high):
        if _ends_sentence(text, match.start(), match.end()):
            at = match.end()
            borders.add(at + 1 if text.startswith(" ", at) else at)
    if text.startswith("|") or text.find("\n|", max(0, low - 1), high) >= 0:  # no row is cut
        borders = {at for at in borders if not text.startswith("|", text.rfind("\n", 0, at) + 1)}
    borders |= {at for at in (0, len(text)) if low <= at <= high}
    borders |= {match.end() for match in _LINE_BREAK.finditer(text, low, high)}
    before = {at for at in borders if at <= start}
    after = {at for at in borders if at >= end}
    if not before:  # the beginning of the answer's own line
        before = {text.rfind("\n", 0, start) + 1}
    if not after:
        stop = text.find("\n", end)
        after = {len(text) if stop < 0 else stop}
    return sorted(before | after)


def _ends_sentence(text: str, at: int, after: int) -> bool:
    """Does the punctuation `text[at:after]` end a sentence? Not in 3.14, J. K., 2019. 3. 1. or "!"라고."""
    sign = text[at]
    following = text[after : after + 1]
    if sign in "。？！":
        return True
    if following and not following.isspace():
        return (
            sign == "."
            and after == at + 1
            and text[at - 1 : at] in ("다", "요")
            and "가" <= following <= "힣"
        )
    if sign != ".":
        return True
    before = text[at - 1 : at]
    if "가" <= before <= "힣" or before in _CLOSING:
        return True
    return before.islower() and text[at - 2 : at - 1].isalpha()


def _forced(text: str, window: Span, answer: Span, budget: int, counter: TokenCounter) -> str:
    """A sentence longer than the budget: cut at spaces, as far on both sides as the budget goes."""
    low, high = window
    start, end = answer
    spare = counter.chars(max(0, budget - counter.count(text[start:end])))
    while spare > 0:
        room_right = min(spare - min(spare // 2, start - low), high - end)
        room_left = min(spare - room_right, start - low)
        first, last = start - room_left, end + room_right
        if first > low:
            space = text.find(" ", first, start)
            first = start if space < 0 else space + 1
        if last < high:
            space = text.rfind(" ", end, last)
            last = end if space < 0 else space
        if counter.count(text[first:last]) <= budget:
            return text[first:last].strip("\n")
        spare = spare * 3 // 4
    return text[start:end]


def _heads(text: str, low: int, budget: int, counter: TokenCounter) -> str:
    """The section's heading and the table's header rows, which stand before `low`; each only if it is short."""
    table = _table_header(text, low)
    if table and counter.count(table) > budget // 2:
        table = ""
    if text.startswith("#", low) and _HEADING.match(text, low):
        return table
    heading = _section(text, low)
    return table if counter.count(heading) > budget // 4 else heading + table


def _section(text: str, low: int) -> str:
    """The last heading before `low`, with the blank line after it."""
    at = text.rfind("\n#", 0, low) + 1
    if at == 0 and not text.startswith("#"):
        return ""
    match = _HEADING.match(text, at)
    return match[0] + "\n\n" if match and match.end() < low else ""


def _table_header(text: str, low: int) -> str:
    """The header rows of the table `low` is inside of, if it is past them."""
    row = text.rfind("\n", 0, low) + 1
    if not text.startswith("|", row):
        return ""
    first = _first_row(text, row)
    if first == row:
        return ""
    rule = text.find("\n", first) + 1
    if not text.startswith("| ---", rule):
        return ""
    after = text.find("\n", rule) + 1
    if rule == row:  # begins at the rule: the row above is missing
        return text[first:rule]
    return text[first:after] if after <= low else ""


def _first_row(text: str, row: int) -> int:
    """Where the table begins that has a row at `row`."""
    while row > 0:
        above = text.rfind("\n", 0, row - 1) + 1
        if not text.startswith("|", above):
            break
        row = above
    return row


def _out_of_table(text: str, low: int, start: int) -> int:
    """A window that begins amid a table the answer is not in begins after that table."""
    if not text.startswith("|", low) or _first_row(text, low) == low:
        return low
    end = text.find("\n\n", low)
    return end + 2 if end >= 0 and end + 2 <= start else low
