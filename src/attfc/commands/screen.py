"""What the commands print with: sentences and tables that fit the terminal, whole ones for a pipe.

On a terminal a sentence is broken between words. A table is tried in three forms, and the first that fits is taken: as it is; with headers and text
in several lines and intervals below their figures; a block of `name  value` lines for each row. No form cuts a figure.
Where the output is not a terminal, every row is one line however long: what reads a pipe depends on no window's width. A table of sentences
(`fits`) is for people there too.
"""

import itertools
import os
import re
import textwrap
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console

__all__ = ["Table", "err", "out", "print_markdown", "print_table"]

GAP = "  "
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Screen(Console):
    """A console that breaks sentences between words where it is a terminal; a word that is too long, a path say, stays whole."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees it move: a terminal, and no file that is written as one (FORCE_COLOR)."""
        return self.is_terminal and not self.is_dumb_terminal and self.file.isatty()

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as rich does; `soft_wrap=True` leaves the lines of text as they are, for what is to be copied.

        Control characters of text, which may come from a stranger's file, are written as escapes: they move no cursor and colour nothing.
        """
        objects = tuple(each.translate(CONTROL) if isinstance(each, str) else each for each in objects)
        if soft_wrap is None and self.is_terminal and all(isinstance(each, str) for each in objects):
            objects = (wrapped(options.get("sep", " ").join(objects), self.width),)
        super().print(*objects, soft_wrap=soft_wrap, **options)


out = Screen(highlight=False, emoji=False, markup=False, soft_wrap=True)
err = Screen(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Break the lines of `text` that are too long, between words; their indentation goes on.

    >>> wrapped("  one two three", 9)
    '  one two\\n  three'
    """
    return "\n".join(line for each in text.split("\n") for line in _words(each, width))


def _words(line: str, width: int) -> list[str]:
    if cell_len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    lines = textwrap.wrap(
        line, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, tabsize=4
    )
    return lines or [""]


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header, a title above; all columns but `words` hold figures, which are never broken."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Container[int] = (0,)
    title: str = ""


@dataclass(frozen=True)
class _Column:
    """A column of all tables that are printed together: its header, its cells, whether it holds figures."""

    header: str
    cells: Sequence[str]
    is_number: bool

    @property
    def longest(self) -> int:
        return max(map(cell_len, (self.header, *self.cells)))

    @property
    def least(self) -> int:
        """The width without which a word of it would be cut."""
        cells = (part for cell in self.cells for part in (_stacked(cell) if self.is_number else cell.split()))
        return max(map(cell_len, (*self.header.split(), *cells)), default=0)

    def lines(self, text: str, width: int) -> list[str]:
        """Return a cell, or the header, in lines of at most that width."""
        if cell_len(text) <= width:
            return [text]
        return _stacked(text) if self.is_number and text != self.header else _words(text, width)

    def filled(self, text: str, width: int) -> str:
        """Return a line of a cell as wide as the column."""
        space = " " * (width - cell_len(text))
        return space + text if self.is_number else text + space


def _stacked(cell: str) -> list[str]:
    """A figure and its interval, one below the other."""
    return cell.replace(" [", "\n[").split("\n")


def print_table(*tables: Table, to: Screen = out, fits: bool = False) -> None:
    """Print tables of the same columns below each other, aligned, each after its title; see the module for how they fit.

    fits: one of sentences, which nothing parses: where it is no terminal it fits into COLUMNS, or 80 characters.
    """
    columns = [
        _Column(header, [row[place] for table in tables for row in table.rows], place not in tables[0].words)
        for place, header in enumerate(tables[0].header)
    ]
    gaps = len(GAP) * (len(columns) - 1)
    widths = [column.longest for column in columns]
    columns_set = os.environ.get("COLUMNS", "")
    most = to.width if to.is_terminal else int(columns_set) if columns_set.isdecimal() else 80
    if (to.is_terminal or fits) and sum(widths) + gaps > most:
        widths = [column.least for column in columns]
        spare = most - gaps - sum(widths)
        if spare < 0:
            _print_blocks(tables, columns, to, most)
            return
        _widen(widths, columns, spare)
    _print_line(tables[0].header, widths, columns, to, style="bold")
    for table in tables:
        _print_title(table, to)
        for row in table.rows:
            _print_line(row, widths, columns, to)


def _print_title(table: Table, to: Screen) -> None:
    if table.title:
        to.print(f"\n{table.title}")


def _widen(widths: list[int], columns: Sequence[_Column], spare: int) -> None:
    """Give what is spare, character by character, to the text that misses least, so that short words stand on one line; figures last."""
    for _ in range(spare):
        missing = [(column.is_number, column.longest - width) for column, width in zip(columns, widths, strict=True)]
        wanting = [place for place, (_, missed) in enumerate(missing) if missed > 0]
        if not wanting:
            return
        widths[min(wanting, key=lambda place: missing[place])] += 1


def _print_line(
    cells: Sequence[str], widths: Sequence[int], columns: Sequence[_Column], to: Screen, style: str | None = None
) -> None:
    """Print a row: as many lines as its highest cell has."""
    stacks = [column.lines(cell, width) for cell, width, column in zip(cells, widths, columns, strict=True)]
    for texts in itertools.zip_longest(*stacks, fillvalue=""):
        line = GAP.join(column.filled(text, width) for text, width, column in zip(texts, widths, columns, strict=True))
        to.print(line.rstrip(), style=style, soft_wrap=True)


def _print_blocks(tables: Sequence[Table], columns: Sequence[_Column], to: Screen, width: int) -> None:
    """Print a block of lines for each row; a cell whose column has no header stands behind the one before it."""
    names = max(cell_len(column.header) for column in columns)
    for table in tables:
        _print_title(table, to)
        for number, row in enumerate(table.rows):
            if number:
                to.print()
            block: list[tuple[str, list[str]]] = []
            for column, cell in zip(columns, map(str.strip, row), strict=True):
                if not column.header and block:
                    block[-1][1][-1] = f"{block[-1][1][-1]} {cell}".rstrip()
                elif cell:
                    block.append((column.header, column.lines(cell, width - names - len(GAP))))
            for name, lines in block:
                space = " " * (names - cell_len(name)) + GAP
                to.print((name + space + f"\n{' ' * names}{GAP}".join(lines)).rstrip(), soft_wrap=True)


def print_markdown(text: str) -> None:
    """Print Markdown: as it is for a pipe, its tables by `print_table` on a terminal."""
    if not out.is_terminal:
        out.print(text)
        return
    for is_table, block in itertools.groupby(text.split("\n"), lambda line: line.startswith("|")):
        if is_table:
            header, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block)
            print_table(Table(header, [[re.sub(r"\*\*(.+?)\*\*", r"\1", cell) for cell in row] for row in rows]))
        else:
            out.print("\n".join(block))
