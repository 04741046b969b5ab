"""HTML tables to Markdown: pipe tables, or plain lines for tables of one row or one column."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_SPAN = re.compile(r"""(col|row)span\s*=\s*["']?\s*([0-9]{1,4})""", re.IGNORECASE)
_MAX_COLUMNS = 100  # the most columns that one cell can span
_MAX_GRID = 1 << 18  # cells of a table, those that others span counted; larger tables become lines
_LONGEST_COPY = 40  # characters; a cell's text up to this length is written into every row it spans


@dataclass(slots=True)
class Block:
    """A block of text: the line breaks before it, its marker (bullet, indent, heading signs), and its text."""

    gap: int
    prefix: str
    text: str


@dataclass(slots=True)
class Cell:
    """A cell, the columns and rows it spans, and the blocks in it."""

    columns: int = 1
    rows: int = 1
    blocks: list[Block] = field(default_factory=list)

    def line(self) -> str:
        """The cell's text as one line; its line breaks become ` / `."""
        text = "\n".join([block.text for block in self.blocks])
        return text.replace("\n", " / ").replace("|", "\\|")


@dataclass(slots=True)
class Table:
    """An open table; `state` is the renderer's state before the open cell, restored when the cell ends."""

    rows: list[list[Cell]] = field(default_factory=list)
    cell: Cell | None = None
    nested: bool = False  # a cell holds another table, so that this one is only page layout
    state: tuple = ()  # type: ignore[type-arg]

    def open(self, tag: str) -> list[Block]:
        """Begin a cell in the last row; returns the list its blocks belong in."""
        self.cell = cell = Cell()
        for name, number in _SPAN.findall(tag) if len(tag) > len("<td>") else ():
            if name.lower() == "col":
                cell.columns = min(max(1, int(number)), _MAX_COLUMNS)
            else:
                cell.rows = max(1, int(number))
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(cell)
        return cell.blocks

    def blocks(self, without_marks: Callable[[str], str]) -> list[Block]:
        """The table as one block with a pipe table; as lines if it is layout, one row or one column."""
        rows = [row for row in self.rows if any(cell.blocks for cell in row)]
        if not rows:
            return []
        grid = [] if self.nested else _grid(self.rows, without_marks)
        if len(grid) < 2 or len(grid[0]) == 1:
            return _lines(rows)
        lines = ["| " + " | ".join(row) + " |" for row in grid]
        lines.insert(1, "| " + " | ".join(["---"] * len(grid[0])) + " |")
        return [Block(2, "", "\n".join(lines))]


def _grid(rows: list[list[Cell]], without_marks: Callable[[str], str]) -> list[list[str]]:
    """The cells' texts by row and column, without empty rows and empty columns; [] for more than _MAX_GRID.

    A short cell that spans several rows is copied into each; one that spans several columns is not.
    """
    grid: list[list[str]] = []
    size = 0
    above: dict[int, tuple[int, str]] = {}  # column -> (rows a cell from above still spans, text)
    for row in rows:
        line: list[str] = []
        below: dict[int, tuple[int, str]] = {}
        for cell in (*row, None):
            end = -1 if cell else max(above, default=-1)
            while (column := len(line)) in above or column < end:
                remaining, text = above.pop(column, (0, ""))
                line.append(text)
                if remaining > 1:
                    below[column] = (remaining - 1, text)
            if cell is None:
                break
            text = cell.line()
            if cell.rows > 1:
                copy = without_marks(text)
                below[len(line)] = (cell.rows - 1, copy if len(copy) <= _LONGEST_COPY else "")
                for column in range(len(line) + 1, len(line) + cell.columns):
                    below[column] = (cell.rows - 1, "")
            line += [text] + [""] * (cell.columns - 1)
            if size + len(line) > _MAX_GRID:
                return []
        size += len(line)
        above |= below
        grid.append(line)
    grid = [line for line in grid if any(line)]
    width = max(map(len, grid), default=0)
    if width * len(grid) > _MAX_GRID:
        return []
    for line in grid:
        line += [""] * (width - len(line))
    columns = [n for n, column in enumerate(zip(*grid, strict=True)) if any(column)]
    return grid if len(columns) == width else [[line[n] for n in columns] for line in grid]


def _lines(rows: list[list[Cell]]) -> list[Block]:
    """The rows without a grid: cells of one line each share a line, other cells stay blocks."""
    lines: list[Block] = []
    for row in rows:
        cells = [cell.blocks for cell in row if cell.blocks]
        if len(cells) > 1 and all(len(cell) == 1 and "\n" not in cell[0].text for cell in cells):
            lines.append(Block(1, "", " | ".join([cell[0].text for cell in cells])))
            continue
        for cell in cells:
            cell[0].gap = max(1, cell[0].gap)
            lines += cell
    return lines
