"""Blocks of Markdown out of text and block tags: paragraphs, headings, nested lists, definitions and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import unescape
from itertools import chain

from .tables import Block, Table

_NAME = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*")
_PLAIN = (
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "details", "div"),
    *("fieldset", "figcaption", "figure", "footer", "header", "hr", "html", "main", "nav", "p"),
    *("section", "summary", "tfoot", "thead"),
)


class Marks:
    """Characters that stand for places: even ones begin a span, odd ones end it."""

    __slots__ = ("_split", "all", "holds", "starts")

    def __init__(self, chosen: str) -> None:
        self.all = chosen
        self.starts = frozenset(chosen[::2])
        self._split = re.compile(f"([{re.escape(chosen)}])" if chosen else "(?!)()")
        self.holds = self._split.search  # is a mark in the text?

    @classmethod
    def absent_from(cls, text: str, count: int) -> Marks:
        """`count` characters that the text does not hold: noncharacters first, then for private use."""
        chosen: list[str] = []
        candidates = map(
            chr, chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0x10FFFE))
        )
        while len(chosen) < count:
            mark = next(candidates)
            if mark not in text:
                chosen.append(mark)
        return cls("".join(chosen))

    def collapse(self, text: str) -> tuple[str, str, str]:
        """White space as single spaces, and none of it inside a span's ends.

        Returns the marks that end spans before the text, the text with the marks in it, and the marks of spans
        that start after it.
        """
        before = starts = ""
        found: list[str] = []
        space = False
        for number, piece in enumerate(self._split.split(text)):
            if number % 2:
                if piece in self.starts:
                    starts += piece
                elif found:
                    found.append(piece)
                else:
                    before += piece
                continue
            words = " ".join(piece.split())
            if not words:
                space = space or bool(piece)
                continue
            if found and (space or piece[0].isspace()):
                found.append(" ")
            found += (starts, words)
            starts = ""
            space = piece[-1].isspace()
        return before, "".join(found), starts

    def without(self, text: str) -> str:
        """The text with no marks."""
        return self._split.sub("", text) if self.all else text

    def take_out(self, text: str) -> tuple[str, dict[str, int]]:
        """The text with no marks, and where in it each stood first."""
        places: dict[str, int] = {}
        pieces: list[str] = []
        at = 0
        for number, piece in enumerate(self._split.split(text)):
            if number % 2:
                places.setdefault(piece, at)
            else:
                pieces.append(piece)
                at += len(piece)
        return "".join(pieces), places


class _List:
    """An open list: the indent of its items and of what follows in an item."""

    __slots__ = ("count", "indent", "inner", "ordered")

    def __init__(self, ordered: bool, indent: str) -> None:
        self.ordered = ordered
        self.indent = indent
        self.inner = indent + ("   " if ordered else "  ")
        self.count = 0


class Blocks:
    """The state between tags. `flow` takes the blocks: the page's, or those of the innermost open cell."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.marked = bool(marks.all)
        self.flow: list[Block] = []
        self.lists: list[_List] = []
        self.tables: list[Table] = []
        self.gap = 2  # line breaks wanted before the next block
        self.prefix = ""  # of the next block: a bullet, a number, a heading's signs
        self.indent = ""
        self.heading = False
        self.pre = 0
        self.terms = False  # a definition list with terms is open
        self.last: Block | None = None
        self.pending = ""  # marks of spans that begin before the next block

    def render(self, pieces: Sequence[str]) -> str:
        """Markdown of [text, tag, text, tag, ..., text]."""
        known = _OPS.get
        text = ""
        for i in range(0, len(pieces) - 1, 2):
            piece, tag = pieces[i], pieces[i + 1]
            op = known(tag)
            if op is None:
                op = known(_bare(tag))
                if op is None:  # an inline tag: nothing comes between the texts beside it
                    text += piece
                    continue
            if text:
                piece, text = text + piece, ""
            if piece and piece != "\n" and not piece.isspace():
                self.put(piece)
            op(self, tag)
        self.put(text + pieces[-1])
        while self.tables:
            self.close_table("")
        if self.pending and self.last:
            self.last.text += self.pending
        return "".join(
            [
                ("" if n == 0 else "\n" * block.gap) + block.prefix + block.text
                for n, block in enumerate(self.flow)
            ]
        )

    # --- text

    def put(self, text: str) -> None:
        """A block of the text between two block tags; nothing for white space."""
        if "&" in text:
            text = unescape(text)
        after = ""
        if self.pre:
            text = text.replace("\xa0", " ").strip("\n").rstrip().replace("\n", "\n" + self.indent)
        elif self.marked and self.marks.holds(text):
            before, text, after = self.marks.collapse(text)
            self._attach(before)
        else:
            text = " ".join(text.split())
        if not text:
            self.pending += after
            return
        if self.pending:
            text = self.pending + text
        self.pending = after
        if self.heading and "편집" in text:
            text = text.replace("[편집]", "").rstrip()
        if self.tables and self.tables[-1].cell is None and self.tables[-1].rows:
            self.open_cell("")  # text between cells: not to be put before the table
        self.last = block = Block(self.gap, self.prefix or self.indent, text)
        self.flow.append(block)
        self.gap = 0 if self.pre else 1
        self.prefix = ""

    def _attach(self, marks: str) -> None:
        """Marks that end spans belong to what came last."""
        if self.last is not None:
            self.last.text += marks
        else:
            self.pending += marks

    # --- blocks

    def open_block(self, _: str) -> None:
        gap = 1 if self.lists else 2
        self.gap = max(self.gap, gap)

    def line_break(self, _: str) -> None:
        self.gap = 1 if self.gap < 1 or self.lists else 2 if self.gap > 1 else self.gap

    def open_heading(self, tag: str) -> None:
        self.gap = 2
        self.prefix = "#" * int(tag[2]) + " "
        self.heading = True

    def close_heading(self, _: str) -> None:
        self.gap = 2
        self.prefix = ""
        self.heading = False

    def open_pre(self, tag: str) -> None:
        self.open_block(tag)
        self.pre += 1

    def close_pre(self, tag: str) -> None:
        self.pre = max(0, self.pre - 1)
        self.open_block(tag)

    # --- lists

    def open_list(self, tag: str) -> None:
        self.open_block(tag)
        self.lists.append(_List(tag[1] in "oO", self.indent))
        self.indent = self.lists[-1].inner

    def close_list(self, tag: str) -> None:
        if self.lists:
            self.lists.pop()
        self.indent = self.lists[-1].inner if self.lists else ""
        self.prefix = ""
        self.open_block(tag)

    def open_item(self, _: str) -> None:
        if not self.lists:
            self.open_list("<ul>")
        inner = self.lists[-1]
        if inner.count and self.gap < 1:
            self.gap = 1
        inner.count += 1
        self.gap = 1 if inner.count > 1 else self.gap
        self.prefix = inner.indent + (f"{inner.count}. " if inner.ordered else "- ")

    def close_item(self, _: str) -> None:
        if self.prefix and self.lists:  # an empty item
            self.lists[-1].count -= 1
        self.prefix = ""

    def open_terms(self, tag: str) -> None:
        self.open_block(tag)
        self.terms = False

    def close_terms(self, tag: str) -> None:
        self.open_terms(tag)
        self.prefix = ""  # of an empty definition

    def open_term(self, _: str) -> None:
        self.gap = max(self.gap, 1)
        self.terms = True

    def open_definition(self, _: str) -> None:
        self.gap = max(self.gap, 1)
        self.prefix = self.indent + ": " if self.terms else ""

    # --- tables

    def open_table(self, tag: str) -> None:
        if self.tables and self.tables[-1].cell is None and self.tables[-1].rows:
            self.open_cell("")
        self.open_block(tag)
        self.tables.append(Table())

    def open_row(self, tag: str) -> None:
        if not self.tables:
            self.open_table(tag)
        self.close_cell(tag)
        self.tables[-1].rows.append([])

    def open_cell(self, tag: str) -> None:
        if not self.tables:
            self.open_table(tag)
        table = self.tables[-1]
        if table.cell is not None:
            self.close_cell(tag)
        table.state = (self.flow, self.lists, self.gap, self.indent, self.heading, self.pre)
        self.flow = table.open(tag)
        self.lists, self.gap, self.indent, self.heading, self.pre = [], 0, "", False, 0
        self.prefix = ""

    def close_cell(self, _: str) -> None:
        if self.tables and self.tables[-1].cell is not None:
            table = self.tables[-1]
            table.cell = None
            self.flow, self.lists, self.gap, self.indent, self.heading, self.pre = table.state
            self.prefix = ""

    def close_table(self, tag: str) -> None:
        if not self.tables:
            return
        self.close_cell(tag)
        table = self.tables.pop()
        blocks = table.blocks(self.marks.without)
        if blocks:
            blocks[0].gap = self.gap
            self.flow += blocks
            self.last = blocks[-1]
            self.prefix = ""
            if self.tables and any(block.text.startswith("| ") for block in blocks):
                self.tables[-1].nested = True
        self.gap = 1
        self.open_block(tag)


def _bare(tag: str) -> str:
    """A tag without attributes, lower case: `<TD colspan="2">` is `<td>`."""
    found = _NAME.match(tag)
    return found[0].lower() + ">" if found else tag


def _nothing(blocks: Blocks, _: str) -> None:
    """A tag that changes nothing."""


_OPS: dict[str, Callable[[Blocks, str], None]] = {
    **{f"<{name}>": Blocks.open_block for name in _PLAIN},
    **{f"</{name}>": Blocks.open_block for name in _PLAIN},
    "</dl>": Blocks.close_terms,
    "<br>": Blocks.line_break,
    "<br/>": Blocks.line_break,
    "</br>": Blocks.line_break,
    "<pre>": Blocks.open_pre,
    "</pre>": Blocks.close_pre,
    "<ul>": Blocks.open_list,
    "<ol>": Blocks.open_list,
    "</ul>": Blocks.close_list,
    "</ol>": Blocks.close_list,
    "<li>": Blocks.open_item,
    "</li>": Blocks.close_item,
    "<dl>": Blocks.open_terms,
    "<dt>": Blocks.open_term,
    "<dd>": Blocks.open_definition,
    "</dt>": _nothing,
    "</dd>": _nothing,
    "<table>": Blocks.open_table,
    "</table>": Blocks.close_table,
    "<tr>": Blocks.open_row,
    "</tr>": Blocks.close_cell,
    "<td>": Blocks.open_cell,
    "<th>": Blocks.open_cell,
    "</td>": Blocks.close_cell,
    "</th>": Blocks.close_cell,
    "<tbody>": Blocks.close_cell,
    "</tbody>": Blocks.close_cell,
    **{f"<h{n}>": Blocks.open_heading for n in range(1, 7)},
    **{f"</h{n}>": Blocks.close_heading for n in range(1, 7)},
}
