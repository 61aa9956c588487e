"""A page of a report, as HTML or as Markdown: who reports gives its sections, made of the parts that `parts.html` and `parts.md` have.

An HTML page is one file: style and pictures are inside, there is no script, nothing is loaded from anywhere, and all text is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attfc.evaluation.bootstrap import FigurePath, Interval
from attfc.files import write_text_whole
from attfc.templates import filled_in

__all__ = ["Cell", "Figure", "bounds_text", "count_text", "texts", "write_page"]

Cell = str | tuple[str, str]
"""Text, and with it the interval that stands below."""


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
    text = filled_in(layout, title=title, name=name, line=line, state=state, sections=shown)
    if target.suffix == ".md":
        text = re.sub(r"\n{3,}", "\n\n", text)
    write_text_whole(target, text.rstrip() + "\n")
    return target


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
