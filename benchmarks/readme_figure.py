"""The one picture of README, docs/figures/readme.svg, from the cells of the study of 100,000 people and nothing else (`make docs`).

Plain SVG: text follows the reader's light or dark mode, lines are labelled where they end and differ in dash and width as well as in colour.
"""

import json
import statistics
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / "benchmarks" / "results" / "studies" / "vectors_100k" / "cells.jsonl"
FIGURE = "tar_at_far/0.0001"
EPOCHS = 4

# variant, name, what stands below it, colour, dash, width
SERIES = [
    ("attfc 0.01", "AttFC", "#0072B2", "", 3.5),
    ("full_fc", "full classifier", "#D55E00", "", 2),
    ("partial_fc 0.1", "Partial FC, 10 %", "#009E73", "8 4", 2),
    ("partial_fc 0.01", "Partial FC, 1 %", "#777777", "2 4", 2),
]
LEFT, TOP, WIDTH, HEIGHT = 64, 78, 430, 250
HIGHEST = 0.7


def curve(name: str) -> tuple[list[tuple[float, float]], float]:
    """Return (epochs, mean over seeds of the rate in %) along the run, and the memory of the head in MiB."""
    cells = map(json.loads, CELLS.read_text(encoding="utf-8").splitlines())
    records = [cell for cell in cells if cell["variant"] == name]
    steps = records[0]["steps"]
    points = zip(*(record["curve"] for record in records), strict=True)
    means = [(EPOCHS * each[0]["step"] / steps, statistics.mean(point[FIGURE] for point in each)) for each in points]
    return means, statistics.mean(record["head_bytes"] for record in records) / 2**20


def place(epochs: float, rate: float) -> tuple[float, float]:
    """Return the point on the page."""
    return LEFT + WIDTH * epochs / EPOCHS, TOP + HEIGHT * (1 - rate / HIGHEST)


def picture() -> str:
    """Return the SVG."""
    curves = {name: curve(name) for name, *_ in SERIES}
    times = round(curves["full_fc"][1] / curves["attfc 0.01"][1])
    title = f"Few images per person: AttFC is best, in a {_ORDINALS[times]} of the memory"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 380" font-family="sans-serif" font-size="13" role="img" '
        f'aria-label="{escape(title)}">',
        "<style>text{fill:#222} .grid{stroke:#8884} @media (prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        f'<text x="16" y="26" font-size="18" font-weight="bold">{escape(title)}</text>',
        '<text x="16" y="50">Recognized pairs of one person, while 1 in 10,000 pairs of strangers passes. 100,000 simulated people.</text>',
    ]
    for percent in range(0, 71, 10):
        x, y = place(0, percent / 100)
        parts.append(
            f'<path class="grid" d="M{x} {y:.1f}H{LEFT + WIDTH}"/><text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>'
        )
    for epoch in range(EPOCHS + 1):
        x, y = place(epoch, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">epochs of training</text>')
    labels = []
    for name, label, colour, dash, width in SERIES:
        points, memory = curves[name]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
        )
        labels.append([place(*points[-1])[1], f"{label} ({memory:.0f} MiB)", colour])
    below = 0.0
    for y, text, colour in sorted(labels):
        below = max(y, below + 18)  # labels of lines that end together stand one below the other
        parts.append(f'<circle cx="{LEFT + WIDTH + 12}" cy="{below:.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + WIDTH + 24}" y="{below + 4:.1f}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


_ORDINALS = {4: "quarter", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}

if __name__ == "__main__":
    (ROOT / "docs" / "figures" / "readme.svg").write_text(picture(), encoding="utf-8")
