"""Pieces of a run's report as HTML text, everything from the run escaped: numbers, tables, figures, notes, sections."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attfc.evaluation.bootstrap import FigurePath, Interval

__all__ = [
    "Cell",
    "bounds_text",
    "column_of",
    "duration",
    "escaped",
    "figure_block",
    "finite",
    "mebibytes",
    "notes_block",
    "percent",
    "section",
    "setting",
    "short",
    "table_block",
]

Cell = str | tuple[str, str]
"""Text, and with it the interval that stands below."""


def escaped(value: object) -> str:
    """Return a value as HTML text."""
    return html.escape(str(value), quote=True)


def finite(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def column_of(records: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field, leaving out records without it."""
    found = [
        (step, value)
        for record in records
        if (value := finite(record.get(name))) is not None and (step := finite(record.get("step"))) is not None
    ]
    return [step for step, _ in found], [value for _, value in found]


def percent(value: object, digits: int = 2) -> str:
    """Return "93.60 %", a dash for what is no number."""
    number = finite(value)
    return "–" if number is None else f"{100 * number:.{digits}f} %"


def bounds_text(
    intervals: Mapping[FigurePath, Interval], path: FigurePath, places: int = 2, percent: bool = True
) -> str:
    """[92.13, 94.90], or nothing."""
    return intervals[path].text(places, percent).split(" ", 1)[1] if path in intervals else ""


def duration(seconds: float) -> str:
    """Return "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def section(title: str, *parts: str) -> str:
    """Return a section of its parts; an empty text where all are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escaped(title)}</h2>\n{inner}\n</section>" if inner else ""


def figure_block(caption: str, svg: str, hint: str = "") -> str:
    """Return a drawing with its caption, and a hint below."""
    more = f'<p class="hint">{escaped(hint)}</p>' if hint else ""
    return f"<figure>\n<figcaption>{escaped(caption)}</figcaption>\n{svg}\n{more}</figure>"


def table_block(rows: Iterable[Sequence[Cell]], header: Sequence[str] = (), numbers_from: int = 1) -> str:
    """Rows of cells that are escaped here; columns from `numbers_from` on are set as numbers."""

    number = ' class="number"'

    def inner(value: Cell) -> str:
        text, bounds = (value, "") if isinstance(value, str) else value
        return escaped(text) + (f'<br><span class="interval">{escaped(bounds)}</span>' if bounds else "")

    def cells(values: Sequence[Cell], tag: str) -> str:
        return "".join(
            f"<{tag}{number if place >= numbers_from else ''}>{inner(value)}</{tag}>"
            for place, value in enumerate(values)
        )

    top = f"<tr>{cells(header, 'th')}</tr>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{top}{body}</table>" if body else ""


def notes_block(notes: Iterable[object]) -> str:
    """Return a box of notes; an empty text without any."""
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f'<div class="notes"><ul>{items}</ul></div>' if items else ""


def setting(config: dict[str, Any], *path: str) -> object:
    """Return a value of nested mappings, None where there is none."""
    value: object = config
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def short(value: object) -> str:
    """Return a number in four places or, from 10 on, two; a dash for what is none."""
    number = finite(value)
    return "–" if number is None else f"{number:.4f}" if abs(number) < 10 else f"{number:,.2f}"


def mebibytes(value: float) -> str:
    """Return "512 MiB" or "12.3 GiB"."""
    return f"{value / 1024:,.1f} GiB" if value >= 10240 else f"{value:,.0f} MiB"
