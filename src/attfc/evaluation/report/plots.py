"""Figures of the reports: lines over steps, curves of rates, groups, scores; `drawing` has what they are drawn with.

Curves of more than 1,000 points are thinned by taking means of neighbours. A figure shows at most four series; who has more draws the first four.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attfc.evaluation.metrics import roc
from attfc.evaluation.report.drawing import (
    INK,
    MARKERS,
    MUTED,
    SERIES,
    STYLES,
    cut,
    drawing,
    label_ends,
    short,
    svg_of,
    ticks,
    write,
)
from attfc.typing import Bools, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Curve",
    "CurveKind",
    "GroupRate",
    "curve_figure",
    "group_figure",
    "line_figure",
    "read_at",
    "roc_figure",
    "roc_of_list",
    "score_figure",
]

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
    with drawing() as axes:
        strong = itertools.cycle(zip(SERIES, STYLES, MARKERS, strict=True))
        ends: list[tuple[float, float, str, str]] = []
        for name, steps, values in lines:
            places = _thinned(steps, values)
            if name.startswith("_"):
                axes.plot(*places, color=SERIES[0], alpha=0.45, linewidth=0.9)
            else:
                colour, style, marker = next(strong)
                shown: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker if markers else None}
                axes.plot(*places, linewidth=1.8, markersize=4, **shown)
                if places.size:
                    ends.append((places[0, -1], places[1, -1], name, colour))
        if from_zero and axes.dataLim.y0 >= 0:
            axes.set_ylim(0, 1.08 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)
        from matplotlib.ticker import EngFormatter

        ticks(axes.xaxis, 6, EngFormatter(sep=""), integer=True)
        ticks(axes.yaxis, 5, short)
        axes.set_xlabel("step")
        if len(lines) > 1:
            label_ends(axes, ends)
        return svg_of(axes, label, key)


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
    drawn = [("pairs", *roc_of_list(scores, same), int((~same).sum()), SERIES[1], STYLES[1])]
    if all_pairs is not None and len(all_pairs[0]):
        drawn.append(("all pairs", *all_pairs, SERIES[0], STYLES[0]))
    with drawing() as axes:
        for name, far, tar, count, colour, style in drawn:
            known, certain = far * count >= 1 - 1e-9, far >= CERTAIN_FALSE_ACCEPTS / count
            for part, line, width in (
                (known & certain, style, 1.8),
                (known & ~certain, ":", 1.5),
            ):
                axes.plot(far[part], tar[part], drawstyle="steps-post", color=colour, linestyle=line, linewidth=width)
            if known.any():  # below where it can be trusted, from where on it rises
                place = int(np.argmax(certain if certain.any() else known))
                at = float(far[place]), max(float(tar[place]), 0.14)
                write(axes, f"{name} ({count:,} non-mated)", at, (5, -5), colour, va="top")
        most = max(count for _, _, _, count, _, _ in drawn)
        left = 0.6 / most
        axes.axvspan(left, min(1.0, CERTAIN_FALSE_ACCEPTS / most), color=MUTED, alpha=0.10, linewidth=0)
        _rates_over_log(axes, left)
        axes.set(xlabel="false accept rate", ylabel="true accept rate")
        return svg_of(axes, "ROC: true accept rate over false accept rate, logarithmic", "roc")


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

    def at(self, x: float) -> float:
        """Return its y at an x."""
        return float(self.y[max(int(np.searchsorted(self.x, x * (1 + 1e-9), side="right")) - 1, 0)])


def read_at(curves: Sequence[Curve], kind: CurveKind) -> float:
    """Return the x at which curves are read: rank 1, else the lowest power of ten from which on all are certain, at most 0.1."""
    if kind == "cmc":
        return 1.0
    certain = max(max(curve.certain_from, float(curve.x[0]), 1e-12) for curve in curves)
    return 10.0 ** min(-1, math.ceil(math.log10(certain) - 1e-9))


def curve_figure(curves: Sequence[Curve], label: str, key: str, kind: CurveKind) -> str:
    """Draw a curve per model, named where it is read (`read_at`); pale where fewer than 30 errors carry it.

    Args:
        curves: at most four.
        label: what the picture shows, for readers of screens.
        key: unique name of the figure in the page.
        kind: "roc", "dir": x logarithmic; "det": both axes in normal deviates, on which normal scores give a straight line; "cmc": ranks.
    """
    place, named = read_at(curves, kind), []
    with drawing() as axes:
        for curve, colour, line in zip(curves, SERIES, STYLES, strict=False):
            x, y, dot = curve.x, curve.y, (place, curve.at(place))
            if kind != "cmc":
                inside = (x > 0) & (x < 1) & (y > 0) & (y < 1) if kind == "det" else x > 0
                x, y = x[inside], y[inside]
            certain = x >= curve.certain_from
            style: dict[str, Any] = {"color": colour, "linestyle": line}
            if kind == "det":
                x, y = _deviates(x), _deviates(y)
                low, high = _deviates(np.clip(np.array(dot), 1e-9, 1 - 1e-9)).tolist()
                dot = low, high
            else:
                style["drawstyle"] = "steps-post"
            axes.plot(x[certain], y[certain], linewidth=1.9, **style)
            pale = slice(0, int(np.sum(~certain)) + 1)  # up to the first certain point: no gap between the two
            axes.plot(x[pale], y[pale], linewidth=1.2, alpha=0.6, **style)
            named.append((*dot, curve.name, colour))
        if kind == "det":
            _deviate_axis(axes.xaxis, axes.get_xlim())
            _deviate_axis(axes.yaxis, axes.get_ylim())
        elif kind == "cmc":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(short)
            ticks(axes.xaxis, 6, integer=True)
        else:
            _rates_over_log(axes, 0.8 * min(1.0, axes.dataLim.x0))
        axes.set(xlabel=AXES[kind][0], ylabel=AXES[kind][1])
        _label_dots(axes, named, rising=kind != "det")
        return svg_of(axes, label, key)


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
    """Draw a line per group, on it for each model a dot with its interval, and hollow the rate at the shared threshold.

    Args:
        rates: of at most four models, named beside their first dot; at most 40 groups are readable.
        label: what the picture shows, for readers of screens.
        key: unique name of the figure in the page.
        x_label: of the axis of rates.
    """
    groups, models = (list(dict.fromkeys(getattr(one, name) for one in rates)) for name in ("group", "model"))
    with drawing(1.0 + len(groups) * (0.16 + 0.16 * len(models))) as axes:
        axes.grid(visible=False, axis="y")
        spread, named = min(0.75, 0.2 * len(models)), []
        for number, (model, colour, marker) in enumerate(zip(models, SERIES, MARKERS, strict=False)):
            offset = 0.0 if len(models) == 1 else spread * (0.5 - number / (len(models) - 1))  # the first on top
            mine = [(one, offset - groups.index(one.group)) for one in rates if one.model == model]
            for one, y in mine:
                if one.low is not None and one.high is not None:
                    axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, marker="|")
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6.0}
            for name, more in (("shared", {"markerfacecolor": "none", "markeredgewidth": 1.3}), ("rate", {})):
                known = [(x, y) for one, y in mine if (x := getattr(one, name)) is not None]
                axes.plot([x for x, _ in known], [y for _, y in known], **more, **style)
            drawn = [([x for x in (one.rate, one.low, one.high, one.shared) if x is not None], y) for one, y in mine]
            named += [(min(xs), max(xs), y, model, colour) for xs, y in drawn if xs][:1]
        axes.set_yticks([-place for place in range(len(groups))], [cut(group) for group in groups], color=INK)
        axes.set_ylim(0.35 - len(groups), 0.65)
        low, high = axes.get_xlim()
        if high - low < 0.02:
            low, high = low - 0.01, high + 0.01
        low, high = max(low, -0.01), min(high, 1.01)
        axes.set_xlim(low, high)
        ticks(axes.xaxis, 6, lambda value, _: f"{100 * value:.4g}")
        axes.set_xlabel(x_label)
        for left, right, y, model, colour in named if len(models) > 1 else ():
            beside = left - low > high - right
            place, offset = (left, -7) if beside else (right, 7)
            write(axes, cut(model), (place, y), (offset, 0), colour, va="center", ha="right" if beside else "left")
        return svg_of(axes, label, key)


def score_figure(scores: Float64, same: Bools, threshold: float | None) -> str:
    """Draw the densities of mated and non-mated scores, and the threshold."""
    low, high = float(scores.min()), float(scores.max())
    bins = np.linspace(low, high if high > low else low + 1e-6, 51).tolist()
    with drawing() as axes:
        for name, kind, colour in (("non-mated", ~same, SERIES[1]), ("mated", same, SERIES[0])):
            axes.hist(scores[kind], bins, density=True, color=colour, alpha=0.45, histtype="stepfilled")
            heights, edges, _ = axes.hist(
                scores[kind], bins, density=True, color=colour, linewidth=1.4, histtype="step"
            )
            peak = int(np.argmax(heights))
            write(axes, name, (float(edges[peak]), float(np.max(heights))), (0, 3), colour)
        axes.set_ylim(top=axes.get_ylim()[1] * (1.05 if threshold is None else 1.2))
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
            write(axes, f"threshold {threshold:.3f}", (threshold, axes.get_ylim()[1]), (4, -4), INK, va="top")
        axes.set(xlabel="cosine", ylabel="density")
        ticks(axes.yaxis, 5, short)
        return svg_of(axes, "histogram of the cosines of mated and non-mated pairs", "scores")


def _deviates(rates: Float64) -> Float64:
    return np.array([NormalDist().inv_cdf(rate) for rate in rates.tolist()], dtype=np.float64)


def _deviate_axis(axis: Any, limits: tuple[float, float]) -> None:
    ticks = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999]
    shown, least = dict[float, float](), limits[0]
    for tick in ticks:
        place = NormalDist().inv_cdf(tick)
        if least <= place <= limits[1]:
            shown[tick], least = place, place + 0.09 * (limits[1] - limits[0])
    axis.set_ticks([*shown.values()], [*map(_rate, shown)])


def _rates_over_log(axes: "Axes", left: float) -> None:
    """Rates from 0 to 1 over the logarithm of a rate from `left` to 1."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(_rate)
    axes.set_xlim(left, 1)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(short)


def _rate(value: float, _: Any = None) -> str:
    if value >= 1e-3:
        return f"{value:g}"
    exponent = round(float(np.log10(value)))
    return "10" + "".join("⁻" if sign == "-" else "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(sign)] for sign in str(exponent))


def _thinned(steps: Sequence[float], values: Sequence[float], most: int = 1000) -> Float64:
    """(2, at most `most`): the finite points, in means of neighbours where they are too many."""
    points = np.array([steps, values], dtype=np.float64)
    points = points[:, np.isfinite(points).all(axis=0)]
    count = points.shape[1]
    starts = np.arange(0, count, max(1, -(-count // most)))
    return np.add.reduceat(points, starts, axis=1) / np.diff(starts, append=count) if count else points


def _label_dots(axes: "Axes", dots: Sequence[tuple[float, float, str, str]], *, rising: bool) -> None:
    """Mark (x, y, name, colour) on curves that rise or fall, and write the names in their order, where no curve is.

    Right of the dots below curves that rise, above those that fall; where that has no room, above left of curves that rise, else in the corner.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    frame = axes.get_window_extent().bounds
    left, bottom, width, height = (72 / figure.dpi * side for side in frame)
    places = [axes.transData.transform(dot[:2]) * 72 / figure.dpi - (left, bottom) for dot in dots]
    across, heights = places[0][0], [float(place[1]) for place in places]
    long, tall = 5.2 * max(len(cut(name)) for _, _, name, _ in dots), 12.0 * (len(dots) - 1)
    aside, toward = min(across + 20, width - long), 0.0
    start = min(heights) - 14 if rising else max(heights) + 14 + tall
    if rising and start - tall < 4 and across > long + 20:
        aside, start, toward = across - 20 - long, min(max(heights) + 14 + tall, height - 4), 1.0
    elif start - tall < 4 or start > height:
        aside, start = width - long, tall + 6 if rising else height - 6
    for step, number in enumerate(np.argsort(heights)[::-1].tolist()):
        x, y, name, colour = dots[number]
        axes.plot([x], [y], color=colour, marker=MARKERS[number], markersize=5)
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
        leader["relpos"] = (toward, 0.5)
        offset = aside - across, start - 12 * step - heights[number]
        write(axes, cut(name), (x, y), offset, colour, va="center", arrowprops=leader)
