"""A page of a report, as HTML or as Markdown: who reports gives its sections, made of the parts that `parts.html` and `parts.md` have.

An HTML page is one file: style and pictures are inside, there is no script, nothing is loaded from anywhere, and all text is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attfc.evaluation.bootstrap import FigurePath, figure_at
from attfc.evaluation.report.drawing import DARK, LIGHT, PRINT
from attfc.evaluation.results import finite, stated_intervals
from attfc.files import write_text_whole
from attfc.templates import filled_in

__all__ = ["AT_IT", "Cell", "Figure", "Stated", "count_text", "share_text", "texts", "write_page"]

_PALETTES = {"light": LIGHT, "dark": DARK, "print": PRINT}
Cell = str | tuple[str, str]
"""Text, and with it the interval that stands below."""
AT_IT = {"FMR at the operating point": "fmr", "threshold of the operating point": "threshold"}
"""What is stated at an operating point beside FNMR."""


@dataclass(frozen=True)
class Figure:
    """A drawing of `plots`, with its caption and a hint below."""

    caption: str
    svg: str
    hint: str = ""


def write_page(
    target: Path, title: str, name: str, line: str, sections: Sequence[tuple[str, str]], state: str = ""
) -> Path:
    """Write a page in one piece, over an older one; as Markdown where `target` ends in .md.

    Args:
        target: the file.
        title: of the window.
        name, line, state: the heading, the line below, and the state of what the page is of.
        sections: title and what stands below it, as the page is written; without a title it stands alone, an empty one is left out.

    Raises:
        UserError: it cannot be written.
    """
    layout = Path(__file__).with_name(f"page{target.suffix}")
    shown = [(heading, body.strip()) for heading, body in sections if body.strip()]
    text = filled_in(layout, title=title, name=name, line=line, state=state, sections=shown, **_PALETTES)
    if target.suffix == ".md":
        text = re.sub(r"\n{3,}", "\n\n", text)
    write_text_whole(target, text.rstrip() + "\n")
    return target


class Stated:
    """Figures as a file states them, which may hold anything, and the intervals beside them."""

    def __init__(self, figures: Mapping[str, Any], percent: str = "") -> None:
        self.figures, self.intervals, self.percent = figures, stated_intervals(figures), percent

    def __call__(self, *path: str) -> tuple[str, str]:
        """Return the figure at a place and its interval as a cell."""
        return self.cell(path, self.number(*path))

    def number(self, *path: str) -> float | None:
        """Return the number at a place."""
        return finite(figure_at(self.figures, path))

    def cell(self, path: FigurePath, value: float | None) -> tuple[str, str]:
        """Return a value of the figure, in percent but for the AUC, and below its interval; a dash for none."""
        if value is None:
            return "–", ""
        of_auc = path[-1] == "auc"
        interval = self.intervals.get(path)
        bounds = "" if interval is None else interval.text(4 if of_auc else 2, percent=not of_auc).split(" ", 1)[1]
        return (f"{value:.4f}" if of_auc else f"{100 * value:.2f}{self.percent}"), bounds


def count_text(value: float | None) -> str:
    """Return a number of things, a dash where it is unknown."""
    return "–" if value is None else f"{value:,.0f}"


def share_text(value: float | None) -> str:
    """Return a share or a cosine, a dash where it is unknown."""
    return "–" if value is None else f"{value:.4g}"


def texts(value: Any) -> list[str]:
    """Return the entries of a list as texts; nothing where it is none."""
    return [str(text) for text in value] if isinstance(value, list) else []
