"""A page of a report: sections of blocks (cards, tables, figures, hints, notes, pairs of faces), written as HTML or as Markdown.

Who reports says what stands on the page; `page.html` and `page.md` say how it looks. An HTML page is one file: style and pictures are inside, there
is no script, nothing is loaded from anywhere, and all text is escaped. Markdown has its figures as SVG files in a folder beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attfc.evaluation.bootstrap import FigurePath, Interval
from attfc.evaluation.report.plots import with_colours
from attfc.files import write_text_whole
from attfc.templates import filled_in

__all__ = [
    "Beside",
    "Block",
    "Card",
    "Cards",
    "Cell",
    "FacePairs",
    "Figure",
    "Hint",
    "Listing",
    "Notes",
    "Page",
    "Section",
    "Table",
    "bounds_text",
    "count_text",
    "texts",
]

Cell = str | tuple[str, str]
"""Text, and with it the interval that stands below."""


@dataclass(frozen=True)
class Card:
    """A figure in large type: its name, value, interval, and what else there is to say."""

    name: str
    value: str
    bounds: str = ""
    more: str = ""


@dataclass(frozen=True)
class Block:
    """A part of a section."""

    @property
    def kind(self) -> str:
        """What the templates call it: the name of its class."""
        return type(self).__name__


@dataclass(frozen=True)
class Cards(Block):
    """Cards in rows."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Table(Block):
    """Rows of cells; columns from `numbers_from` on are set as numbers."""

    rows: Sequence[Sequence[Cell]]
    header: Sequence[str] = ()
    numbers_from: int = 1
    title: str = ""


@dataclass(frozen=True)
class Figure(Block):
    """A drawing of `plots`, with its caption and a hint below."""

    caption: str
    svg: str
    hint: str = ""


@dataclass(frozen=True)
class Beside(Block):
    """Figures and tables side by side."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Hint(Block):
    """A sentence in small type."""

    text: str


@dataclass(frozen=True)
class Notes(Block):
    """A box of what must not be overlooked; nothing without any."""

    notes: Sequence[str]


@dataclass(frozen=True)
class FacePairs(Block):
    """Pairs of faces under a title: address of the picture and name of each of the two, and their score."""

    title: str
    pairs: Sequence[tuple[Sequence[tuple[str, str]], str]] = ()


@dataclass(frozen=True)
class Listing(Block):
    """A text as it stands, folded away under its name."""

    name: str
    text: str


@dataclass(frozen=True)
class Section:
    """Blocks under a title; without a title they stand alone."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page: its heading, the line below, the state of what it is of, and its sections."""

    title: str
    name: str
    line: str
    sections: Sequence[Section] = field(repr=False)
    state: str = ""

    def write(self, target: Path) -> Path:
        """Write the page in one piece, over an older one; as Markdown where `target` ends in .md, with figures in `<name>_figures`.

        Raises:
            UserError: it cannot be written.
        """
        files = self._write_figures(target) if target.suffix == ".md" else {}
        template = Path(__file__).with_name("page.md" if target.suffix == ".md" else "page.html")
        write_text_whole(target, filled_in(template, page=self, files=files).rstrip() + "\n")
        return target

    def _write_figures(self, target: Path) -> dict[str, str]:
        """Write each figure beside a Markdown page; drawing -> address."""
        folder, files = target.with_name(f"{target.stem}_figures"), dict[str, str]()
        for block in (inner for section in self.sections for outer in section.blocks for inner in _flat(outer)):
            if isinstance(block, Figure):
                folder.mkdir(exist_ok=True)
                file = folder / f"{len(files) + 1:02d}_{block.caption.lower()}.svg"
                write_text_whole(file, with_colours(block.svg))
                files[block.svg] = f"{folder.name}/{file.name}"
        return files


def _flat(block: Block) -> Sequence[Block]:
    return block.blocks if isinstance(block, Beside) else (block,)


def bounds_text(intervals: Mapping[FigurePath, Interval], path: FigurePath) -> str:
    """Return "[92.13, 94.90]", in percent but for the AUC; nothing where there is no interval."""
    if path not in intervals:
        return ""
    of_auc = path[-1] == "auc"
    return intervals[path].text(4 if of_auc else 2, percent=not of_auc).split(" ", 1)[1]


def count_text(value: float | None) -> str:
    """Return a number of things, a dash where it is unknown."""
    return "–" if value is None else f"{value:,.0f}"


def texts(value: Any) -> list[str]:
    """Return the entries of a list as texts; nothing where it is none."""
    return [str(text) for text in value] if isinstance(value, list) else []
