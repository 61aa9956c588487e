"""Tables and figures of a study, from its cells' lines of JSON and nothing else.

A row is a variant: mean and standard deviation over seeds, and the paired difference to the reference (same seeds, mean and standard
deviation). Colours are those of Okabe and Ito, and a grey; lines differ in dash and marker too. The SVG is a function of the records.
"""

import io
import statistics
from typing import Any

from attfc.errors import UserError

__all__ = ["FIGURES", "study_figure", "study_table"]

FIGURES = {
    "vectors": {
        "tar_at_far/0.0001": "TAR at FAR 1e-4",
        "tar_at_far/0.001": "TAR at FAR 1e-3",
        "rank_one": "rank-1",
    },
    "faces": {
        "tar_at_far/0.01": "TAR at FAR 1e-2",
        "tar_at_far/0.001": "TAR at FAR 1e-3",
        "rank_one": "rank-1",
    },
}
"""Columns of a world's tables: name in the records -> title; the first is what variants are compared by."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

Record = dict[str, Any]


def study_table(
    records: list[Record], figures: dict[str, str], reference: str | None = None, split: str = "test"
) -> str:
    """Return a Markdown table, a row a variant in the order of the records.

    Args:
        records: of `study_records`.
        figures: name in the records -> title of the column.
        reference: the variant that the last column compares the first figure with.
        split: "test", or "validation" where the world has one.
    """
    compared = [] if reference is None else [f"{next(iter(figures.values()))}: less {reference}"]
    columns = [*figures.values(), *compared, "seeds", "steps", "s", "samples/s", "head, MiB"]
    lines = [f"| variant | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    groups = _by_variant(records)
    first = next(iter(figures))
    for variant, group in groups.items():
        sound = [record for record in group if "failed" not in record]
        if not sound:
            cells = [f"failed: {group[0]['failed']}", *["-"] * (len(columns) - 1)]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
            continue
        cells = [
            _spread([record["figures"][split][name] for record in sound if name in record["figures"][split]])
            for name in figures
        ]
        if reference is not None:
            cells.append("" if variant == reference else _paired(sound, groups.get(reference, []), first, split))
        failed = len(group) - len(sound)
        cells.append(f"{len(sound)}" + (f" ({failed} failed)" if failed else ""))
        cells += [
            f"{statistics.mean(record[key] for record in sound):,.0f}"
            for key in ("steps", "seconds", "samples_per_second")
        ]
        held = [record["head_bytes"] for record in sound if "head_bytes" in record]
        cells.append(f"{statistics.mean(held) / 2**20:,.1f}" if held else "-")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    commits = sorted({str(record.get("commit"))[:10] for record in records})
    return "\n".join([*lines, "", f"{len(records)} cells; commit {', '.join(commits)}."])


def study_figure(records: list[Record], figure: str, title: str, split: str = "test") -> str:
    """Return an SVG: the figure against seconds of training (mean of the curves), and at the end against the head's memory.

    Args:
        records: of `study_records`. The curve is on validation people in the vector world, on all people kept aside with faces.
        figure: such as "tar_at_far/0.0001".

    Raises:
        UserError: no cell has the figure along its run: faces without `eval.every`.
    """
    drawn = [record for record in records if any(figure in point for point in record.get("curve", []))]
    if not drawn:
        raise UserError(
            f"no cell has {figure} along its run: give the study eval.every=... among its overrides, and run it again"
        )
    curve_of = "validation people" if drawn[0]["world"]["kind"] == "vectors" else "all people kept aside"
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    with matplotlib.rc_context({"svg.hashsalt": "attfc", "svg.fonttype": "none", "font.size": 9}):
        page = Figure(figsize=(9.5, 4.0), layout="constrained")
        FigureCanvasSVG(page)
        time_axes, memory_axes = page.subplots(1, 2)
        for number, (variant, group) in enumerate(_by_variant(drawn).items()):
            sound = [record for record in group if "failed" not in record]
            if not sound:
                continue
            style = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "linestyle": _DASHES[(number + number // len(_COLOURS)) % len(_DASHES)],
                "markersize": 4,
                "markerfacecolor": "white"
                if number // len(_COLOURS) % 2
                else None,  # the ninth is like the first, but hollow
            }
            curves = [[point for point in record["curve"] if figure in point] for record in sound]
            points = list(zip(*curves, strict=False))
            time_axes.plot(
                [statistics.mean(point["seconds"] for point in each) for each in points],
                [statistics.mean(point[figure] for point in each) for each in points],
                label=variant,
                **style,
            )
            ends = [record["figures"][split][figure] for record in sound]
            memory = statistics.mean(record["head_bytes"] for record in sound) / 2**20
            error = statistics.stdev(ends) if len(ends) > 1 else 0.0
            memory_axes.errorbar(memory, statistics.mean(ends), yerr=error, capsize=3, label=variant, **style)
        time_axes.set(xlabel="seconds of training", ylabel=f"{title}, {curve_of}")
        memory_axes.set(xlabel="memory of the head, MiB", ylabel=f"{title}, test people")
        for axes in (time_axes, memory_axes):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(visible=True, alpha=0.3)
        handles, names = time_axes.get_legend_handles_labels()
        page.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        out = io.StringIO()
        page.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _by_variant(records: list[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["variant"], []).append(record)
    return groups


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _paired(group: list[Record], reference: list[Record], figure: str, split: str) -> str:
    of_seed = {record["seed"]: record["figures"][split][figure] for record in reference if "failed" not in record}
    differences = [
        record["figures"][split][figure] - of_seed[record["seed"]] for record in group if record["seed"] in of_seed
    ]
    if not differences:
        return "-"
    mean = f"{statistics.mean(differences):+.3f}"
    return f"{mean} ± {statistics.stdev(differences):.3f}" if len(differences) > 1 else mean
