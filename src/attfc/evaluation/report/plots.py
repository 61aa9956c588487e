"""Figures of the report: inline SVG whose colours are variables of the page, so one file suits light, dark and print.

Drawn with matplotlib's object interface on its own canvas: no pyplot, no state left behind. Text stays text, in the
page's font. A figure costs about 50 ms and 10 to 60 KB; curves of more than 1,000 points are thinned by taking means
of neighbours. matplotlib is imported by the first figure, not by those who only evaluate.
"""

import contextlib
import html
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attfc.evaluation.metrics import roc
from attfc.typing import Bools, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "Curve",
    "CurveKind",
    "GroupRate",
    "curve_figure",
    "group_figure",
    "line_figure",
    "roc_figure",
    "roc_of_list",
    "score_figure",
    "with_colours",
]

_ON_PAPER = {
    "ink": "#16202c",
    "muted": "#5c6978",
    "grid": "#e5e9ee",
    "first": "#1565c0",
    "second": "#d9601a",
    "third": "#2e7d4f",
    "m1": "#0072b2",
    "m2": "#d55e00",
    "m3": "#009e73",
    "m4": "#aa4499",
    "m5": "#16202c",
    "m6": "#b37a00",
    "m7": "#3a8fb7",
}
"""The variables of the page, and their values in a file of its own."""
_DRAWN = {name: f"#{number:06x}" for number, name in enumerate(_ON_PAPER, start=0x010203)}
"""Drawn in these colours and then replaced by the page's variables; they occur nowhere else."""
INK, MUTED, GRID, FIRST, SECOND, THIRD, *MODELS = _DRAWN.values()
STYLES = ("-", "--", "-.", (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (9, 2)), ":", (0, (3, 1)))
"""Models differ by colour *and* by line, so that a page in grey, or an eye that does not tell the colours, still can."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
CERTAIN_FALSE_ACCEPTS = 30  # with 30 errors a rate is known to about +-30 % (90 % confidence)


def line_figure(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    label: str,
    key: str,
    from_zero: bool = False,
    markers: bool = False,
) -> str:
    """Draw lines over the step.

    Args:
        lines: (name, steps, values); a name beginning with "_" is drawn faintly and has no legend.
        label: what the picture shows, for readers of screens.
        key: unique name of the figure in the page.
        from_zero: begin the vertical axis at 0.
        markers: mark the points, for few of them.
    """
    with _drawing() as axes:
        strong = itertools.cycle(zip((FIRST, SECOND, THIRD, MUTED, INK), STYLES, MARKERS, strict=False))
        ends: list[tuple[float, float, str, str]] = []
        for name, steps, values in lines:
            places = _thinned(steps, values)
            if name.startswith("_"):
                axes.plot(*places, color=FIRST, alpha=0.45, linewidth=0.9)
            else:
                colour, style, marker = next(strong)
                shown: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker if markers else None}
                axes.plot(*places, linewidth=1.8, markersize=4, **shown)
                if places.size:
                    ends.append((places[0, -1], places[1, -1], name, colour))
        if from_zero and axes.dataLim.y0 >= 0:
            axes.set_ylim(0, 1.08 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)
        from matplotlib.ticker import EngFormatter

        _ticks(axes.xaxis, 6, EngFormatter(sep=""), integer=True)
        _ticks(axes.yaxis, 5, _short)
        axes.set_xlabel("step")
        if len(lines) > 1:
            _label_ends(axes, ends)
        return _svg(axes, label, key)


def roc_of_list(scores: Float64, same: Bools) -> tuple[Float64, Float64]:
    """Return FAR and TAR of a list of pairs, of equal FARs the highest TAR."""
    curve = roc(scores, same)
    last = np.append(np.flatnonzero(np.diff(curve.far)), len(curve.far) - 1)
    return curve.far[last], curve.tar[last]


def roc_figure(scores: Float64, same: Bools, all_pairs: tuple[Float64, Float64, int] | None) -> str:
    """Draw TAR over the logarithm of FAR; a curve is dotted where fewer than 30 false accepts carry it.

    The ground is shaded where that holds for every curve.

    Args:
        scores, same: the list of pairs.
        all_pairs: FAR, TAR and the number of non-mated pairs of the all-pairs curve.
    """
    drawn = [("pairs", *roc_of_list(scores, same), int((~same).sum()), SECOND, "--")]
    if all_pairs is not None and len(all_pairs[0]):
        drawn.append(("all pairs", *all_pairs, FIRST, "-"))
    with _drawing() as axes:
        for name, far, tar, count, colour, style in drawn:
            known, certain = far * count >= 1 - 1e-9, far >= CERTAIN_FALSE_ACCEPTS / count
            for part, line, width in (
                (known & certain, style, 1.8),
                (known & ~certain, ":", 1.5),
            ):
                axes.plot(far[part], tar[part], drawstyle="steps-post", color=colour, linestyle=line, linewidth=width)
            if known.any():  # below its beginning, from where the curve rises
                place = far[known][0], max(tar[known][0], 0.14)
                _write(axes, f"{name} ({count:,} non-mated)", place, (0, -5), colour, va="top")
        most = max(count for _, _, _, count, _, _ in drawn)
        left = 0.6 / most
        axes.axvspan(left, min(1.0, CERTAIN_FALSE_ACCEPTS / most), color=MUTED, alpha=0.10, linewidth=0)
        _rates_over_log(axes, left)
        axes.set(xlabel="false accept rate", ylabel="true accept rate")
        return _svg(axes, "ROC: true accept rate over false accept rate, logarithmic", "roc")


CurveKind = Literal["roc", "det", "cmc", "dir"]
AXES: dict[CurveKind, tuple[str, str]] = {
    "roc": ("false accept rate", "true accept rate"),
    "det": ("false accept rate", "false reject rate"),
    "cmc": ("rank", "share of the probes"),
    "dir": ("false positive identification rate", "true positive identification rate"),
}
"""Labels of the axes of a kind of curve."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A model's curve: name, (K,) x rising, (K,) y, and from which x on it rests on enough errors to be trusted."""

    name: str
    x: Float64
    y: Float64
    certain_from: float = 0.0


def curve_figure(curves: Sequence[Curve], label: str, key: str, kind: CurveKind) -> str:
    """Draw a curve a model, told apart by colour and by line; pale where fewer than 30 errors carry it.

    Args:
        curves: at most 7 have styles of their own, further ones begin anew.
        label: what the picture shows, for readers of screens.
        key: unique name of the figure in the page.
        kind: "roc", "dir": x logarithmic; "det": both axes in normal deviates, on which normal scores give a straight line; "cmc": ranks.
    """
    with _drawing() as axes:
        for curve, colour, line in zip(curves, itertools.cycle(MODELS), itertools.cycle(STYLES), strict=False):
            x, y = curve.x, curve.y
            if kind != "cmc":
                inside = (x > 0) & (x < 1) & (y > 0) & (y < 1) if kind == "det" else x > 0
                x, y = x[inside], y[inside]
            certain = x >= curve.certain_from
            style: dict[str, Any] = {"color": colour, "linestyle": line}
            if kind == "det":
                x, y = _deviates(x), _deviates(y)
            else:
                style["drawstyle"] = "steps-post"
            axes.plot(x[certain], y[certain], label=_shown(curve.name), linewidth=1.9, **style)
            pale = slice(0, int(np.sum(~certain)) + 1)  # up to the first certain point: no gap between the two
            axes.plot(x[pale], y[pale], linewidth=1.2, alpha=0.6, **style)
        if kind == "det":
            _deviate_axis(axes.xaxis, axes.get_xlim())
            _deviate_axis(axes.yaxis, axes.get_ylim())
        elif kind == "cmc":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(_short)
            _ticks(axes.xaxis, 6, integer=True)
        else:
            _rates_over_log(axes, 0.8 * min(1.0, axes.dataLim.x0))
        axes.set(xlabel=AXES[kind][0], ylabel=AXES[kind][1])
        _legend_above(axes, 2, handlelength=3.2)
        return _svg(axes, label, key)


@dataclass(frozen=True)
class GroupRate:
    """What a model does on a group of people: its rate there, the interval, and the rate at the threshold that all groups share; None: unknown."""

    group: str
    model: str
    rate: float | None
    low: float | None
    high: float | None
    shared: float | None


def group_figure(rates: Sequence[GroupRate], label: str, key: str, x_label: str) -> str:
    """Draw a line a group, on it for each model a dot with its interval, and hollow the rate at the shared threshold.

    Args:
        rates: at most 7 models have colours and markers of their own, further ones begin anew; at most 40 groups are readable.
        label: what the picture shows, for readers of screens.
        key: unique name of the figure in the page.
        x_label: of the axis of rates.
    """
    groups, models = (list(dict.fromkeys(getattr(one, name) for one in rates)) for name in ("group", "model"))
    with _drawing(1.0 + len(groups) * (0.16 + 0.16 * len(models))) as axes:
        axes.grid(visible=False, axis="y")
        spread = min(0.75, 0.2 * len(models))
        for number, model in enumerate(models):
            colour, marker = MODELS[number % len(MODELS)], MARKERS[number % len(MARKERS)]
            offset = 0.0 if len(models) == 1 else spread * (0.5 - number / (len(models) - 1))  # the first on top
            mine = [(one, offset - groups.index(one.group)) for one in rates if one.model == model]
            for one, y in mine:
                if one.low is not None and one.high is not None:
                    axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, marker="|")
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6.0}
            for name, more in (
                ("shared", {"markerfacecolor": "none", "markeredgewidth": 1.3}),
                ("rate", {"label": _shown(model)}),
            ):
                known = [(x, y) for one, y in mine if (x := getattr(one, name)) is not None]
                axes.plot([x for x, _ in known], [y for _, y in known], **more, **style)
        axes.set_yticks([-place for place in range(len(groups))], [_cut(group) for group in groups], color=INK)
        axes.set_ylim(0.35 - len(groups), 0.65)
        low, high = axes.get_xlim()
        if high - low < 0.02:
            low, high = low - 0.01, high + 0.01
        axes.set_xlim(max(low, -0.01), min(high, 1.01))
        _ticks(axes.xaxis, 6, lambda value, _: f"{100 * value:.4g}")
        axes.set_xlabel(x_label)
        if len(models) > 1:
            _legend_above(axes, 2)
        return _svg(axes, label, key)


def score_figure(scores: Float64, same: Bools, threshold: float | None) -> str:
    """Draw the densities of mated and non-mated scores, and the threshold."""
    low, high = float(scores.min()), float(scores.max())
    bins = np.linspace(low, high if high > low else low + 1e-6, 51).tolist()
    with _drawing() as axes:
        for name, kind, colour in (("non-mated", ~same, SECOND), ("mated", same, FIRST)):
            axes.hist(scores[kind], bins, density=True, color=colour, alpha=0.45, histtype="stepfilled")
            heights, edges, _ = axes.hist(
                scores[kind], bins, density=True, color=colour, linewidth=1.4, histtype="step"
            )
            peak = int(np.argmax(heights))
            _write(axes, name, (float(edges[peak]), float(np.max(heights))), (0, 3), colour)
        axes.set_ylim(top=axes.get_ylim()[1] * (1.05 if threshold is None else 1.2))
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
            _write(axes, f"threshold {threshold:.3f}", (threshold, axes.get_ylim()[1]), (4, -4), INK, va="top")
        axes.set(xlabel="cosine", ylabel="density")
        _ticks(axes.yaxis, 5, _short)
        return _svg(axes, "histogram of the cosines of mated and non-mated pairs", "scores")


def with_colours(svg: str) -> str:
    """Return a figure with plain colours, dark on white, as a file of its own for documents without the page's style."""
    for name, colour in _ON_PAPER.items():
        svg = svg.replace(f"var(--{name})", colour)
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    head, end, rest = svg.partition(">")
    attributes = (
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    )
    return f"{head.replace('<svg ', f'<svg {attributes} ', 1)}{end}{ground}{rest}"


def _cut(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shown(name: str) -> str:
    """matplotlib leaves labels out of the legend that begin with "_"."""
    return f"\u200b{name}" if name.startswith("_") else name


def _deviates(rates: Float64) -> Float64:
    return np.array([NormalDist().inv_cdf(rate) for rate in rates.tolist()], dtype=np.float64)


def _deviate_axis(axis: Any, limits: tuple[float, float]) -> None:
    ticks = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999]
    places = {tick: NormalDist().inv_cdf(tick) for tick in ticks}
    shown = {tick: place for tick, place in places.items() if limits[0] <= place <= limits[1]}
    axis.set_ticks([*shown.values()], [*map(_rate, shown)])


def _rates_over_log(axes: "Axes", left: float) -> None:
    """Rates from 0 to 1 over the logarithm of a rate from `left` to 1."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(_rate)
    axes.set_xlim(left, 1)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(_short)


def _rate(value: float, _: Any = None) -> str:
    if value >= 1e-3:
        return f"{value:g}"
    exponent = round(float(np.log10(value)))
    return "10" + "".join("⁻" if sign == "-" else "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(sign)] for sign in str(exponent))


def _short(value: float, _: Any = None) -> str:
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thinned(steps: Sequence[float], values: Sequence[float], most: int = 1000) -> Float64:
    """(2, at most `most`): the finite points, in means of neighbours where they are too many."""
    points = np.array([steps, values], dtype=np.float64)
    points = points[:, np.isfinite(points).all(axis=0)]
    count = points.shape[1]
    starts = np.arange(0, count, max(1, -(-count // most)))
    return np.add.reduceat(points, starts, axis=1) / np.diff(starts, append=count) if count else points


def _ticks(axis: "Axis", most: int, form: Any = None, integer: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=integer))
    if form is not None:
        axis.set_major_formatter(form)


def _label_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end (x, y, name, colour), in its colour, apart from each other."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    apart, lowest = 11.0 * figure.dpi / 72, -np.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = float(axes.transData.transform((x, y))[1])
        lowest = max(height, lowest + apart)
        offset = 5, (lowest - height) * 72 / figure.dpi
        _write(axes, _cut(name), (x, y), offset, colour, va="center", annotation_clip=False)


def _write(
    axes: "Axes", text: str, place: tuple[float, float], offset: tuple[float, float], colour: str, **more: Any
) -> None:
    """Write a line's name beside a place of the figure, so many points away, in the line's colour."""
    axes.annotate(text, place, offset, textcoords="offset points", color=colour, fontsize=9.5, **more)


def _legend_above(axes: "Axes", columns: int, handlelength: float = 1.4) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, handlelength=handlelength)


@contextlib.contextmanager
def _drawing(height: float = 2.9) -> Iterator["Axes"]:
    """Axes to draw on; the style holds until the end of the block, in which `_svg` is to be called."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(4.8, height)).add_subplot()


def _svg(axes: "Axes", label: str, key: str) -> str:
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
