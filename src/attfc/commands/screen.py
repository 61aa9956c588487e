"""What the commands print with: sentences and tables that fit the terminal, whole ones for a pipe.

On a terminal a sentence is broken between words. A table is tried in three forms, and the first that fits is taken: as it is; with headers and text
in several lines and intervals below their figures; a block of `name  value` lines for each row. No form cuts a figure.
Where the output is no terminal, every row is one line however long: what reads a pipe depends on no window's width.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

__all__ = ["err", "out", "print_markdown", "print_table"]

GAP = "  "


class Screen(Console):
    """A console that breaks sentences between words where it is a terminal; a word that is too long, a path say, stays whole."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as rich does; `soft_wrap=True` leaves the lines of text as they are, for what is to be copied."""
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
class _Column:
    """A column of all tables that are printed together: its header, its cells, whether it holds figures."""

    header: str
    cells: tuple[str, ...]
    is_number: bool

    @property
    def longest(self) -> int:
        return _longest((self.header, *self.cells))

    @property
    def least(self) -> int:
        """The width without which a word of it would be cut."""
        cells = [line for cell in self.cells for line in (_stacked(cell) if self.is_number else cell.split())]
        return _longest([*self.header.split(), *cells])

    def lines(self, text: str, width: int) -> list[str]:
        """Return a cell, or the header, in lines of at most that width."""
        if cell_len(text) <= width:
            return [text]
        return _stacked(text) if self.is_number and text != self.header else _words(text, width)


def _longest(texts: Sequence[str]) -> int:
    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def _stacked(cell: str) -> list[str]:
    """A figure and its interval, one below the other."""
    return cell.replace(" [", "\n[").split("\n")


def print_table(*tables: Table, to: Screen = out) -> None:
    """Print tables of the same columns below each other, aligned, each after its title; see the module for how they fit.

    Args:
        tables: of rich; a column with `justify="right"` holds figures, which are never broken.
        to: the console; its width counts.
    """
    columns = [
        _Column(
            str(first.header),
            tuple(str(cell) for table in tables for cell in table.columns[place].cells),
            first.justify == "right",
        )
        for place, first in enumerate(tables[0].columns)
    ]
    widths = [column.longest for column in columns]
    room = to.width if to.is_terminal else None
    if room is not None and _total(widths) > room:
        widths = [column.least for column in columns]
        if _total(widths) > room:
            _print_blocks(tables, columns, room, to)
            return
        _widen(widths, columns, room)
    _print_line([column.header for column in columns], widths, columns, to, style="bold")
    start = 0
    for table in tables:
        _print_title(table, to)
        for row in range(start, start + table.row_count):
            _print_line([column.cells[row] for column in columns], widths, columns, to)
        start += table.row_count


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widen(widths: list[int], columns: Sequence[_Column], room: int) -> None:
    """Give what is spare, character by character, to the text that misses least, so that short words stand on one line; figures last."""
    for _ in range(room - _total(widths)):
        missing = [(column.is_number, column.longest - width) for column, width in zip(columns, widths, strict=True)]
        wanting = [place for place, (_, missed) in enumerate(missing) if missed > 0]
        if not wanting:
            return
        widths[min(wanting, key=lambda place: missing[place])] += 1


def _print_title(table: Table, to: Screen) -> None:
    if table.title:
        to.print(f"\n{table.title}")


def _print_line(
    cells: Sequence[str], widths: Sequence[int], columns: Sequence[_Column], to: Screen, style: str | None = None
) -> None:
    """Print a row: as many lines as its highest cell has."""
    stacks = [column.lines(cell, width) for cell, width, column in zip(cells, widths, columns, strict=True)]
    for number in range(max(map(len, stacks))):
        line = ""
        for stack, width, column in zip(stacks, widths, columns, strict=True):
            text = stack[number] if number < len(stack) else ""
            space = " " * (width - cell_len(text))
            line += GAP + (space + text if column.is_number else text + space)
        to.print(line[len(GAP) :].rstrip(), style=style, soft_wrap=True)


def _print_blocks(tables: Sequence[Table], columns: Sequence[_Column], room: int, to: Screen) -> None:
    """Print a block of lines for each row; a cell whose column has no header stands behind the one before it."""
    names = max(cell_len(column.header) for column in columns)
    row = 0
    for table in tables:
        _print_title(table, to)
        for number in range(table.row_count):
            if number:
                to.print()
            block: list[tuple[str, list[str]]] = []
            for column in columns:
                cell = column.cells[row].strip()
                if not column.header and block:
                    block[-1][1][-1] = f"{block[-1][1][-1]} {cell}".rstrip()
                elif cell:
                    block.append((column.header, column.lines(cell, room - names - len(GAP))))
            for name, lines in block:
                space = " " * (names - cell_len(name)) + GAP
                to.print((name + space + f"\n{' ' * names}{GAP}".join(lines)).rstrip(), soft_wrap=True)
            row += 1


def print_markdown(text: str) -> None:
    """Print Markdown: as it is for a pipe, its tables by `print_table` on a terminal."""
    if not out.is_terminal:
        out.print(text)
        return
    for is_table, block in _blocks(text.split("\n")):
        if not is_table:
            out.print("\n".join(block))
            continue
        header, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block)
        table = Table(*header)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*(re.sub(r"\*\*(.+?)\*\*", r"\1", cell) for cell in row))
        print_table(table)


def _blocks(lines: Sequence[str]) -> list[tuple[bool, list[str]]]:
    """Lines grouped into tables (True) and what lies between."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in lines:
        is_table = line.startswith("|")
        if not blocks or blocks[-1][0] != is_table:
            blocks.append((is_table, []))
        blocks[-1][1].append(line)
    return blocks
