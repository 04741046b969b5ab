"""Cuts the part of a page around an answer: whole sentences, within a budget of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..cleaning.tokens import TokenCounter
from .marks import Span

_STOP = re.compile(r"""[.?!。？！]+["'”’」』)\]]*""")
_LINE_BREAK = re.compile("\n")
_CLOSING = frozenset(")]\"'”’」』%")
_HEADING = re.compile(r"^#{1,6} .*$", re.MULTILINE)


class BeyondPart(Exception):
    """The window would reach beyond the part of the page that was rendered."""


def cut(
    text: str, start: int, end: int, budget: int, counter: TokenCounter, inside: Span | None = None
) -> str:
    """A context for the answer `text[start:end]`: about `budget` tokens of Markdown with the answer in it.

    It begins and ends at borders of sentences or blocks; tokens that one side does not need go to the other. In
    front come the section's heading and, inside a table, the table's header, where they fit. An answer longer
    than the budget gets only the lines it stands in. White space at the answer's ends does not count. If `text` is
    a part of a page, `inside` is the span in which its sentences are those of the page. Raises BeyondPart.
    """
    answer = text[start:end].strip()
    start = text.find(answer, start)
    end = start + len(answer)
    if counter.count(answer) >= budget:
        low = _line_start(text, start)
        return _table_header(text, low) + text[low : _line_end(text, end)]
    return _Cutter(text, start, end, budget, counter, inside or (0, len(text))).context()


@dataclass(slots=True)
class _Cutter:
    """Finds the window [low, high) around an answer [start, end) that is shorter than the budget."""

    text: str
    start: int
    end: int
    budget: int
    counter: TokenCounter
    inside: Span
    low: int = 0
    high: int = 0

    def context(self) -> str:
        """The window, with the section's heading and the table's header in front."""
        text, start, end = self.text, self.start, self.end
        borders = self._borders()
        left = [at for at in borders if at <= start]
        right = [at for at in borders if at >= end]
        self.low, self.high = left.pop(), right.pop(0)
        if self.low < self.inside[0] or self.high > self.inside[1]:
            raise BeyondPart
        head = self._heads()
        if self._tokens(head) > self.budget:
            head = _table_header(text, self.low)
            if self._tokens(head) > self.budget:
                return self._part_of_sentence()
        self._grow(left, right, head)
        if self._leave_table():  # the rows that it left make room on the other side
            self._grow([], [at for at in borders if at > self.high], self._heads())
        # The head depends on where the window begins, and two texts together can have more tokens than each alone:
        # shrink until all fits.
        while True:
            self._trim()
            head = self._heads()
            first = next((at for at in borders if self.low < at <= start), None)
            last = next((at for at in reversed(borders) if end <= at < self.high), None)
            if self._tokens(head) <= self.budget:
                return head + text[self.low : self.high]
            if first is None and last is None:
                return _table_header(text, self.low) + text[self.low : self.high]
            if last is None or (first is not None and start - self.low > self.high - end):
                self.low = start if first is None else first
            else:
                self.high = last

    def _tokens(self, head: str) -> int:
        """Tokens of the window with this head in front."""
        return self.counter.count(head + self.text[self.low : self.high])

    def _grow(self, left: list[int], right: list[int], head: str) -> None:
        """Add sentences on the side with fewer tokens so far, until the next one fits on neither side.

        `left` and `right` are the borders that a side can move to, in the text's order.
        """
        count, text = self.counter.count, self.text
        budget = self.budget - count(head) - count(text[self.low : self.high])
        left, right = left[:], right[::-1]
        left_cost = right_cost = 0
        while left or right:
            is_left = bool(left) and (not right or left_cost <= right_cost)
            side = left if is_left else right
            at = side.pop()
            low, high = (at, self.low) if is_left else (self.high, at)
            if not self.inside[0] <= at <= self.inside[1]:
                raise BeyondPart
            cost = count(text[low:high])
            if cost > budget:
                side.clear()
                continue
            budget -= cost
            if is_left:
                self.low, left_cost = at, left_cost + cost
            else:
                self.high, right_cost = at, right_cost + cost

    def _trim(self) -> None:
        """Drop blank lines at both ends, and a heading at the end, whose section would be missing."""
        text, low, high = self.text, self.low, self.high
        while low < self.start and text[low] == "\n":
            low += 1
        while True:
            while high > self.end and text[high - 1].isspace():
                high -= 1
            line = _line_start(text, high)
            if line < self.end or not _HEADING.match(text, line, high):
                self.low, self.high = low, high
                return
            high = line

    def _borders(self) -> list[int]:
        """Offsets around the answer at which a sentence or a line begins or ends, as far as the budget reaches.

        There is at least one before the answer and one after it.
        """
        text, start, end = self.text, self.start, self.end
        reach = self.counter.chars(self.budget)
        low, high = max(0, start - reach), min(len(text), end + reach)
        borders = set()
        for match in _STOP.finditer(text, low, high):
            if _ends_sentence(text, match.start(), match.end()):
                at = match.end()
                borders.add(at + 1 if text.startswith(" ", at) else at)
        if text.startswith("|") or text.find("\n|", max(0, low - 1), high) >= 0:  # rows stay whole
            borders = {at for at in borders if not text.startswith("|", _line_start(text, at))}
        borders |= {at for at in (0, len(text)) if low <= at <= high}
        borders |= {match.end() for match in _LINE_BREAK.finditer(text, low, high)}
        before = {at for at in borders if at <= start} or {_line_start(text, start)}
        after = {at for at in borders if at >= end} or {_line_end(text, end)}
        return sorted(before | after)

    def _part_of_sentence(self) -> str:
        """Part of a sentence longer than the budget: cut at spaces, as long on both sides as fits."""
        text, start, end, low, high = self.text, self.start, self.end, self.low, self.high
        count = self.counter.count
        spare = self.counter.chars(max(0, self.budget - count(text[start:end])))
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
            if count(text[first:last]) <= self.budget:
                return text[first:last].strip("\n")
            spare = spare * 3 // 4
        return text[start:end]

    def _heads(self) -> str:
        """The section's heading and the table's header from before the window; each only if it is short."""
        text, low, count = self.text, self.low, self.counter.count
        table = _table_header(text, low)
        if table and count(table) > self.budget // 2:
            table = ""
        if text.startswith("#", low) and _HEADING.match(text, low):
            return table
        heading = _section(text, low)
        return table if count(heading) > self.budget // 4 else heading + table

    def _leave_table(self) -> bool:
        """If the window begins inside a table without the answer, move it to after the table; did it move?"""
        if not self.text.startswith("|", self.low) or _first_row(self.text, self.low) == self.low:
            return False
        after = self.text.find("\n\n", self.low) + 2
        if not 2 <= after <= self.start:
            return False
        self.low = after
        return True


def _ends_sentence(text: str, at: int, after: int) -> bool:
    """Does the punctuation `text[at:after]` end a sentence? Not in 3.14, J. K., 2019. 3. 1. or "!"라고."""
    sign = text[at]
    before, next_char = text[at - 1 : at], text[after : after + 1]
    if sign in "。？！":
        return True
    if next_char and not next_char.isspace():
        is_verb = before in ("다", "요")  # the endings of whole sentences
        return sign == "." and after == at + 1 and is_verb and "가" <= next_char <= "힣"
    if sign != ".":
        return True
    if "가" <= before <= "힣" or before in _CLOSING:
        return True
    return before.islower() and text[at - 2 : at - 1].isalpha()


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_end(text: str, at: int) -> int:
    stop = text.find("\n", at)
    return len(text) if stop < 0 else stop


def _section(text: str, low: int) -> str:
    """The last heading before `low`, with the blank line after it."""
    at = text.rfind("\n#", 0, low) + 1
    if at == 0 and not text.startswith("#"):
        return ""
    match = _HEADING.match(text, at)
    return match[0] + "\n\n" if match and match.end() < low else ""


def _table_header(text: str, low: int) -> str:
    """The header rows of the table around `low`, if they are before `low`; else ""."""
    row = _line_start(text, low)
    first = _first_row(text, row) if text.startswith("|", row) else row
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
    """Where the table begins of which a row begins at `row`."""
    while row > 0 and text.startswith("|", above := _line_start(text, row - 1)):
        row = above
    return row
