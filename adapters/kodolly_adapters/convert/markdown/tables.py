"""HTML tables to Markdown pipe tables; what is no grid becomes lines."""

from __future__ import annotations

import re
from collections.abc import Callable

_SPAN = re.compile(r"""(col|row)span\s*=\s*["']?\s*([0-9]{1,4})""", re.IGNORECASE)
_WIDEST = 100  # columns one cell may claim
_REPEATED = 40  # characters of a cell that are said again in the rows it spans


class Block:
    """A block of text: the line breaks before it, its marker (bullet, indent, heading signs), and its text."""

    __slots__ = ("gap", "prefix", "text")

    def __init__(self, gap: int, prefix: str, text: str) -> None:
        self.gap = gap
        self.prefix = prefix
        self.text = text


class Cell:
    """A cell and the blocks in it."""

    __slots__ = ("blocks", "columns", "rows")

    def __init__(self, columns: int = 1, rows: int = 1) -> None:
        self.blocks: list[Block] = []
        self.columns = columns
        self.rows = rows

    def line(self) -> str:
        """All in one line; where a line ends inside, ` / `."""
        if len(self.blocks) == 1:
            text = self.blocks[0].text
        else:
            text = " / ".join([block.text for block in self.blocks])
        if "\n" in text:
            text = " / ".join(text.split("\n"))
        return text.replace("|", "\\|") if "|" in text else text


class Table:
    """An open table; `state` keeps what its open cell has put aside."""

    __slots__ = ("cell", "nested", "rows", "state")

    def __init__(self) -> None:
        self.rows: list[list[Cell]] = []
        self.cell: Cell | None = None
        self.nested = False  # a table in a cell: this one only lays out
        self.state: tuple = ()  # type: ignore[type-arg]

    def open(self, tag: str) -> list[Block]:
        """A new cell in the last row; returns where its blocks go."""
        columns = rows = 1
        if len(tag) > 4:
            for name, number in _SPAN.findall(tag):
                if name in ("col", "COL", "Col"):
                    columns = min(max(1, int(number)), _WIDEST)
                else:
                    rows = max(1, int(number))
        self.cell = cell = Cell(columns, rows)
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(cell)
        return cell.blocks

    def blocks(self, without_marks: Callable[[str], str]) -> list[Block]:
        """The table as blocks: one pipe table, or lines where it is no grid."""
        rows = [row for row in self.rows if any(cell.blocks for cell in row)]
        if not rows:
            return []
        if self.nested:
            return _lines(rows)
        grid = _grid(self.rows, without_marks)
        if len(grid[0]) == 1 or len(grid) == 1:
            return _lines(rows)
        lines = ["| " + " | ".join(row) + " |" for row in grid]
        lines.insert(1, "| " + " | ".join(["---"] * len(grid[0])) + " |")
        return [Block(2, "", "\n".join(lines))]


def _grid(rows: list[list[Cell]], without_marks: Callable[[str], str]) -> list[list[str]]:
    """Cells' texts with the columns lined up; rows and columns with no text in them are left out.

    A cell over several rows is said in each if it is short; a cell over several columns is said once.
    """
    grid: list[list[str]] = []
    hanging: dict[int, tuple[int, str]] = {}  # column -> rows still to come, text
    for row in rows:
        line: list[str] = []
        for cell in row:
            if hanging:
                _hang(hanging, line)
            text = cell.line()
            if cell.rows > 1:
                again = without_marks(text)
                again = again if len(again) <= _REPEATED else ""
                for column in range(len(line), len(line) + cell.columns):
                    hanging[column] = (cell.rows - 1, again if column == len(line) else "")
            line.append(text)
            if cell.columns > 1:
                line += [""] * (cell.columns - 1)
        if hanging:
            _hang(hanging, line, to_the_end=True)
        grid.append(line)
    grid = [line for line in grid if any(line)]
    width = max(map(len, grid))
    for line in grid:
        if len(line) < width:
            line += [""] * (width - len(line))
    empty = [n for n, column in enumerate(zip(*grid, strict=True)) if not any(column)]
    if empty:
        grid = [[text for n, text in enumerate(line) if n not in empty] for line in grid]
    return grid


def _hang(hanging: dict[int, tuple[int, str]], line: list[str], to_the_end: bool = False) -> None:
    """Continue the cells of earlier rows that reach into this one, from the line's end on."""
    while (column := len(line)) in hanging or (to_the_end and column < max(hanging, default=-1)):
        left, text = hanging.pop(column, (0, ""))
        line.append(text)
        if left > 1:
            hanging[-1 - column] = (left - 1, text)
    if to_the_end:
        for key in [key for key in hanging if key < 0]:
            hanging[-1 - key] = hanging.pop(key)


def _lines(rows: list[list[Cell]]) -> list[Block]:
    """A row of one-line cells as one line, of others block by block."""
    found: list[Block] = []
    for row in rows:
        cells = [cell for cell in row if cell.blocks]
        if len(cells) > 1 and all(
            len(c.blocks) == 1 and "\n" not in c.blocks[0].text for c in cells
        ):
            found.append(Block(1, "", " | ".join([cell.blocks[0].text for cell in cells])))
            continue
        for cell in cells:
            cell.blocks[0].gap = max(1, cell.blocks[0].gap)
            found += cell.blocks
    return found
