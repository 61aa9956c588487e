"""What every figure is drawn with: colours for light and dark, names at the lines, an SVG whose text stays text.

In a page the colours are its variables, so one figure suits light, dark and print. A file of its own (`own_file`) has its result as a title, a
ground, and both sets of colours: it shows the one that the reader's system asks for, on a forge and in the documentation too. Figures are as wide as
a phone: panels stand one below the other, and text keeps its size.

Drawn with matplotlib's object interface on its own canvas: no pyplot, no state left behind. A figure costs about 50 ms and 10 to 60 KB. matplotlib
is imported by the first figure, not by those who only evaluate.
"""

import contextlib
import html
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "DARK",
    "INK",
    "LIGHT",
    "MARKERS",
    "MOST_SERIES",
    "MUTED",
    "PRINT",
    "SERIES",
    "STYLES",
    "cut",
    "drawing",
    "label_ends",
    "own_file",
    "short",
    "svg_of",
    "ticks",
    "write",
]

LIGHT = {
    "panel": "#ffffff",
    "ink": "#16202c",
    "muted": "#5c6978",
    "grid": "#e5e9ee",
    "first": "#1565c0",
    "second": "#bf4d0b",
    "third": "#2e7d4f",
    "fourth": "#a03f90",
}
DARK = {
    "panel": "#181f27",
    "ink": "#e8edf2",
    "muted": "#9aa7b4",
    "grid": "#28313b",
    "first": "#64b0ff",
    "second": "#ff9a5c",
    "third": "#6fce97",
    "fourth": "#e59ad0",
}
PRINT = LIGHT | {"ink": "#000000", "muted": "#444444", "grid": "#dddddd"}
"""Values of the variables of a page."""
_DRAWN = {name: f"#{number:06x}" for number, name in enumerate(LIGHT, start=0x010203)}
"""Drawn in these colours and then replaced by the page's variables; they occur nowhere else."""
PANEL, INK, MUTED, GRID, *SERIES = _DRAWN.values()
STYLES = ("-", "--", "-.", ":")
"""Series differ by colour *and* by line, so that a page in grey, or an eye that does not tell the colours, still can."""
MARKERS = ("o", "s", "^", "D")
MOST_SERIES = len(SERIES)
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "attfc",
    "text.parse_math": False,  # a name with $ is a name
    "xtick.color": MUTED,
    "xtick.major.pad": 5,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.pad": 5,
    "ytick.major.size": 0,
}
_WIDTH = 4.8  # inches


def own_file(svg: str, title: str, below: str = "") -> str:
    """Return a figure as a file of its own, with its result as a title and a line below; light or dark as the reader's system is."""
    kinds = [(kind, name) for name in LIGHT for kind in ("fill", "stroke")]
    styles = "".join(f'[style*="{kind}: {LIGHT[name]}"]{{{kind}:{DARK[name]}!important}}' for kind, name in kinds)
    for name, colour in LIGHT.items():
        svg = svg.replace(f"var(--{name})", colour)
    head, _, rest = svg.partition(">")
    left, top, width, height = map(float, head.partition('viewBox="')[2].partition('"')[0].split())
    lines = [(line, "ink", 'font-weight="bold" font-size="12"', 15) for line in textwrap.wrap(title, 44)]
    lines += [(line, "muted", 'font-size="10"', 13) for line in textwrap.wrap(below, 62)]
    above = 9 + sum(step for *_, step in lines)
    words, baseline = [], top - above + 4.0
    for line, colour, form, step in lines:
        baseline += step
        words.append(f'<text x="8" y="{baseline:g}" {form} style="fill: {LIGHT[colour]}">{html.escape(line)}</text>')
    box = f"{left:g} {top - above:g} {width:g} {height + above:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="system-ui, sans-serif" '
        f'width="{1.6 * width:.0f}" height="{1.6 * (height + above):.0f}" viewBox="{box}" role="img" aria-label="{html.escape(title)}">\n'
        f"<style>@media (prefers-color-scheme: dark) {{{styles}}}</style>\n"
        f'<rect x="{left:g}" y="{top - above:g}" width="100%" height="100%" style="fill: {LIGHT["panel"]}"/>\n'
        + "\n".join(line.rstrip() for line in [*words, *rest.splitlines()])
        + "\n"
    )


def cut(text: str, most: int = 28) -> str:
    """Return a name that is not longer than there is room for."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short(value: float, _: Any = None) -> str:
    """Return a number for an axis."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ticks(axis: "Axis", most: int, form: Any = None, integer: bool = False) -> None:
    """Put at most so many numbers on an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=integer))
    if form is not None:
        axis.set_major_formatter(form)


def label_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end (x, y, name, colour), in its colour, apart from each other and from other ends."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    places = [axes.transData.transform(end[:2]) * 72 / figure.dpi for end in ends]
    lowest = -np.inf
    for number in sorted(range(len(ends)), key=lambda number: float(places[number][1])):
        x, y, name, colour = ends[number]
        lines = textwrap.wrap(cut(name, 48), 26)
        long, tall = 9.0 * max(map(len, lines)), 5.5 * len(lines)  # names make the axes narrower
        across = [other - places[number] for other in places]
        before = any(0 < right < long and abs(up) < 6 for right, up in across)
        height = float(places[number][1])
        middle = max(height, lowest + tall)
        lowest = middle + tall
        offset = -6 if before else 5, middle - height
        side = "right" if before else "left"
        write(axes, "\n".join(lines), (x, y), offset, colour, va="center", ha=side, annotation_clip=False)


def write(
    axes: "Axes", text: str, place: tuple[float, float], offset: tuple[float, float], colour: str, **more: Any
) -> None:
    """Write a line's name beside a place of the figure, so many points away, in the line's colour."""
    axes.annotate(text, place, offset, textcoords="offset points", color=colour, fontsize=9.5, **more)


@contextlib.contextmanager
def drawing(height: float = 2.9, panels: int = 1) -> Iterator[Any]:
    """Axes to draw on, an array where panels stand one below the other; the style holds until the end of the block, which must call `svg_of`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_WIDTH, height)).subplots(panels)


def svg_of(axes: "Axes", label: str, key: str) -> str:
    """Return the figure as an <svg> element: variables for colours, ids of its own, no header, no metadata."""
    buffer = io.StringIO()
    axes.get_figure(root=True).savefig(buffer, format="svg", metadata={"Date": None})  # type: ignore[union-attr]
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for variable, colour in _DRAWN.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{key}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # older matplotlib
    text = re.sub(r"; font-family: [^;\"]*", "", text)
    head, _, rest = text.partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    return f'<svg viewBox="{box}" role="img" aria-label="{html.escape(label)}">{rest}'
