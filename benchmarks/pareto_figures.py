"""Accuracy at equal memory and at equal time, docs/figures/pareto_*.svg, from the cells of studies and nothing else (`make docs`).

Each point is a variant: mean over its seeds, bars for the standard deviation. Seconds are drawn only of cells that ran on one processor with nothing
beside them but a second cell (a load of at most 2.5). Text follows the reader's light or dark mode; series are labelled beside their points.
"""

import json
import math
import statistics
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from attfc.lab.pages import split_of

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "benchmarks" / "results" / "studies"
QUIET_LOAD = 2.5
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 240, 58, 84, 62

Record = dict[str, Any]


class Series(NamedTuple):
    """Variants of one kind of head, joined by a line; its name stands beside the middle one, `side` of it."""

    name: str
    colour: str
    dash: str
    side: str
    variants: tuple[str, ...]


class Point(NamedTuple):
    """Where a variant lies; `spread` is the standard deviation of y."""

    x: float
    y: float
    spread: float


def cells_of(study: str) -> dict[str, list[Record]]:
    """Return the sound cells of a study by variant."""
    found: dict[str, list[Record]] = {}
    for line in (STUDIES / study / "cells.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "failed" not in record:
            found.setdefault(record["variant"], []).append(record)
    return found


def mebibytes(records: list[Record]) -> float | None:
    """Return the memory of the head."""
    return statistics.mean(record["head_bytes"] for record in records) / 2**20


def quiet_seconds(records: list[Record]) -> float | None:
    """Return the seconds of training of the cells that nothing disturbed, None without any."""
    quiet = [record["seconds"] for record in records if record["load_average"] <= QUIET_LOAD]
    return statistics.mean(quiet) if quiet else None


def points_of(
    cells: dict[str, list[Record]], series: Series, figure: str, x_of: Callable[[list[Record]], float | None]
) -> list[Point]:
    """Return the points of a series, those without an x left out."""
    found = []
    for variant in series.variants:
        records = cells.get(variant, [])
        x = x_of(records) if records else None
        if x is not None:
            rates = [record["figures"][split_of(records)][figure] for record in records]
            found.append(Point(x, statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0))
    return found


def panel(
    drawn: list[tuple[Series, list[Point]]], left: float, x_title: str, y_title: str, y_range: range
) -> list[str]:
    """Return one panel: log scale below, percent at the left."""
    all_points = [point for _, points in drawn for point in points]
    low, high = (math.log10(edge) for edge in (min(p.x for p in all_points) / 1.4, max(p.x for p in all_points) * 1.7))
    bottom, top = y_range[0] / 100, y_range[-1] / 100

    def place(x: float, y: float) -> tuple[float, float]:
        return left + WIDTH * (math.log10(x) - low) / (high - low), TOP + HEIGHT * (top - y) / (top - bottom)

    parts = [f'<text x="{left}" y="{TOP - 12}">{escape(y_title)}</text>']
    for percent in y_range:
        y = TOP + HEIGHT * (top - percent / 100) / (top - bottom)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}h{WIDTH}"/><text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>'
        )
    for exponent in range(math.floor(low), math.ceil(high)):
        for step in (1, 2, 5):
            tick = step * 10**exponent
            if low <= math.log10(tick) <= high:
                x = place(tick, top)[0]
                parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{tick:,.10g}</text>')
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">{escape(x_title)} (log scale)</text>'
    )
    for series, points in drawn:
        ends = [place(point.x, point.y) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{series.colour}" stroke-width="2" stroke-dasharray="{series.dash}"/>'
        )
        for (x, y), point in zip(ends, points, strict=True):
            bar = HEIGHT * point.spread / (top - bottom)
            parts.append(
                f'<path d="M{x:.1f} {y - bar:.1f}v{2 * bar:.1f}" stroke="{series.colour}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{series.colour}"/>'
            )
        if ends:
            (x, y), (across, down, anchor) = ends[len(ends) // 2], _SIDES[series.side]
            parts.append(
                f'<text x="{x + across:.1f}" y="{y + down:.1f}" text-anchor="{anchor}">{escape(series.name)}</text>'
            )
    return parts


_SIDES = {"right": (9, 4, "start"), "above": (0, -10, "middle"), "below": (0, 20, "middle")}


def picture(title: str, below: str, panels: list[list[str]]) -> str:
    """Return the SVG."""
    width = LEFT + len(panels) * (WIDTH + GAP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 54}" font-family="sans-serif" font-size="13" role="img" '
            f'aria-label="{escape(title)}">',
            "<style>text{fill:#222} .grid{stroke:#8884} @media (prefers-color-scheme:dark){text{fill:#ddd}}</style>",
            f'<text x="16" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
            f'<text x="16" y="48">{escape(below)}</text>',
            *(part for each in panels for part in each),
            "</svg>",
            "",
        ]
    )


MANY = (
    Series("full classifier", "#D55E00", "", "above", ("full_fc",)),
    Series("Partial FC", "#009E73", "8 4", "right", ("partial_fc 0.001", "partial_fc 0.01", "partial_fc 0.1")),
    Series("AttFC", "#0072B2", "", "above", ("attfc 0.001", "attfc 0.01", "attfc 0.1")),
)


def many_people() -> str:
    """Return the figure of 100,000 people of 1 to 6 samples."""
    cells, figure = cells_of("vectors_100k"), "tar_at_far/0.0001"
    panels = []
    for number, (x_of, x_title) in enumerate(
        ((mebibytes, "memory of the head, MiB"), (quiet_seconds, "seconds of training"))
    ):
        drawn = [(series, points_of(cells, series, figure, x_of)) for series in MANY]
        panels.append(panel(drawn, LEFT + number * (WIDTH + GAP), x_title, "TAR at FAR 1e-4", range(20, 71, 10)))
    full, attfc = cells["full_fc"], cells["attfc 0.01"]
    times = [round(of(full) / of(attfc)) for of in (mebibytes, quiet_seconds)]  # type: ignore[operator]
    title = f"Few images per person: AttFC is best, at 1/{times[0]} of the memory and 1/{times[1]} of the time"
    below = "100,000 simulated people of 1 to 6 samples, 4 epochs. Partial FC and AttFC: 0.1, 1 and 10 % of the rows."
    return picture(title, below, panels)


FACES = (
    Series("full classifier", "#D55E00", "", "right", ("full_fc",)),
    Series("Partial FC, 10 %", "#009E73", "8 4", "right", ("partial_fc 0.1",)),
    Series("AttFC", "#0072B2", "", "above", ("attfc, share by images", "attfc, trained 94", "attfc, trained 262")),
    Series("Prototype Memory", "#777777", "2 4", "right", ("prototype memory",)),
)


def faces() -> str:
    """Return the figure of real faces."""
    cells = cells_of("faces_seeds")
    panels = []
    for number, (figure, title, rates) in enumerate(
        (
            ("person_balanced_tar_at_far/0.01", "TAR at FAR 1e-2, each person alike", range(52, 65, 2)),
            ("rank_one", "rank-1", range(58, 71, 2)),
        )
    ):
        drawn = [(series, points_of(cells, series, figure, mebibytes)) for series in FACES]
        panels.append(panel(drawn, LEFT + number * (WIDTH + GAP), "memory of the head, MiB", title, rates))
    most = FACES[2].variants[-1]
    share = mebibytes(cells["full_fc"]) / mebibytes(cells[most])  # type: ignore[operator]
    title = f"Real faces: AttFC comes near the full classifier at 1/{share:.0f} of the memory"
    below = "2,360 people, 4.4 epochs, five seeds. AttFC: without trained rows, with 94 and with 262."
    return picture(title, below, panels)


def main() -> None:
    """Write the figures."""
    for name, drawn in (("many_people", many_people), ("faces", faces)):
        (ROOT / "docs" / "figures" / f"pareto_{name}.svg").write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
