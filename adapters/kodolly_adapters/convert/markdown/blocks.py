"""Turns text and block tags into blocks of Markdown: paragraphs, headings, lists, definitions and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import unescape

from .marks import Marks
from .tables import Block, Table

# Real pages have fewer than ten of each inside one another. Deeper ones keep their text, but no more indent or grid:
# with either, the time and the output would grow with the square of the depth.
MAX_LISTS = 32
MAX_TABLES = 16

_NAME = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_PLAIN = re.compile(
    "address|article|aside|blockquote|body|caption|center|details|div|fieldset|figcaption|figure|footer|"
    "header|hr|html|main|nav|p|section|summary|tfoot|thead"
)


@dataclass(slots=True)
class _List:
    """An open list: the indent of its items, and the indent of further blocks in an item."""

    ordered: bool
    indent: str
    inner: str
    count: int = 0


class Blocks:
    """The renderer's state between tags. `flow` is the list to add blocks to: the page's, or the open cell's."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.flow: list[Block] = []
        self.lists: list[_List] = []
        self.tables: list[Table] = []
        self.deeper_tables = (
            0  # open ones beyond MAX_TABLES; their cells are those of the innermost table
        )
        self.gap = 2  # line breaks before the next block
        self.prefix = ""  # of the next block: a bullet, a number, a heading's signs
        self.indent = ""
        self.heading = False
        self.pre = 0
        self.terms = False  # a definition list with terms is open
        self.last: Block | None = None
        self.pending = ""  # marks that belong before the next block's text

    def render(self, pieces: Sequence[str]) -> str:
        """Markdown of [text, tag, text, tag, ..., text]."""
        text = ""
        for piece, tag in zip(pieces[::2], pieces[1::2], strict=False):
            handler = _handler(tag)
            if handler is None:  # an inline tag: nothing comes between the texts beside it
                text += piece
                continue
            if text:
                piece, text = text + piece, ""
            if piece and piece != "\n" and not piece.isspace():
                self.put(piece)
            handler(self, tag)
        self.put(text + pieces[-1])
        while self.tables:
            self.close_table("")
        if self.pending and self.last:
            self.last.text += self.pending
        if self.flow:
            self.flow[0].gap = 0
        return "".join(["\n" * block.gap + block.prefix + block.text for block in self.flow])

    def put(self, text: str) -> None:
        """Add the text between two block tags as a block, unless it is only white space."""
        if "&" in text:
            text = unescape(text)
        after = ""
        if self.pre:
            text = text.replace("\xa0", " ").strip("\n").rstrip().replace("\n", "\n" + self.indent)
        elif self.marks.all and self.marks.holds(text):
            before, text, after = self.marks.collapse(text)
            if self.last is None:
                self.pending += before
            else:  # marks that end answers belong to the last block
                self.last.text += before
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
        self.open_missing_cell()
        self.last = block = Block(self.gap, self.prefix or self.indent, text)
        self.flow.append(block)
        self.gap = 0 if self.pre else 1
        self.prefix = ""

    def end_text(self, _: str) -> None:
        """For a tag that ends the text before it and does nothing else."""

    def open_block(self, _: str) -> None:
        self.gap = max(self.gap, 1 if self.lists else 2)

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

    def open_list(self, tag: str) -> None:
        self.open_block(tag)
        ordered = tag[1] in "oO"
        inner = self.indent
        if len(self.lists) < MAX_LISTS:
            inner += "   " if ordered else "  "
        self.lists.append(_List(ordered, self.indent, inner))
        self.indent = inner

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
        inner.count += 1
        if inner.count > 1:
            self.gap = 1
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

    def open_missing_cell(self) -> None:
        """Open a cell for text between two cells of a table, which would else come before the table."""
        if self.tables and self.tables[-1].cell is None and self.tables[-1].rows:
            self.open_cell("")

    def open_table(self, tag: str) -> None:
        self.open_missing_cell()
        self.open_block(tag)
        if len(self.tables) < MAX_TABLES:
            self.tables.append(Table())
        else:
            self.deeper_tables += 1

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
            self.tables[-1].cell = None
            state = self.tables[-1].state
            self.flow, self.lists, self.gap, self.indent, self.heading, self.pre = state
            self.prefix = ""

    def close_table(self, tag: str) -> None:
        if self.deeper_tables:
            self.deeper_tables -= 1
            self.open_block(tag)
            return
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


Handler = Callable[[Blocks, str], None]

# The handlers of an element's start tag and end tag.
_ELEMENTS: dict[str, tuple[Handler, Handler]] = {
    **{f"h{level}": (Blocks.open_heading, Blocks.close_heading) for level in range(1, 7)},
    "br": (Blocks.line_break, Blocks.line_break),
    "pre": (Blocks.open_pre, Blocks.close_pre),
    **dict.fromkeys(("ul", "ol"), (Blocks.open_list, Blocks.close_list)),
    "li": (Blocks.open_item, Blocks.close_item),
    "dl": (Blocks.open_terms, Blocks.close_terms),
    "dt": (Blocks.open_term, Blocks.end_text),
    "dd": (Blocks.open_definition, Blocks.end_text),
    "table": (Blocks.open_table, Blocks.close_table),
    "tbody": (Blocks.close_cell, Blocks.close_cell),
    "tr": (Blocks.open_row, Blocks.close_cell),
    **dict.fromkeys(("td", "th"), (Blocks.open_cell, Blocks.close_cell)),
}


@lru_cache(1024)
def _handler(tag: str) -> Handler | None:
    """The handler of a tag, with or without attributes; None for an inline tag."""
    match = _NAME.match(tag)
    name = match[2].lower() if match else ""
    if match and name in _ELEMENTS:
        return _ELEMENTS[name][match[1] == "/"]
    return Blocks.open_block if _PLAIN.fullmatch(name) else None
