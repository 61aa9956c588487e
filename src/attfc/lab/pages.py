"""Tables and figures of what was measured here, from its records and nothing else: the speed of the heads, and studies.

A row of a study is a variant: mean and standard deviation over seeds, and the paired difference to the reference (same seeds, same people). `-` in
the speed tables is a size that was tried and did not fit. Figures are drawn as those of the reports are, with their result as a title, and show four
series at most. An SVG is a function of the records: no date, no random ids.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.report.drawing import (
    INK,
    MARKERS,
    MOST_SERIES,
    MUTED,
    SERIES,
    STYLES,
    drawing,
    label_ends,
    own_file,
    svg_of,
    write,
)
from attfc.lab.study_verdict import difference
from attfc.typing import Json

__all__ = [
    "FIGURES",
    "Panel",
    "curve_of",
    "end_of",
    "in_1_2_5",
    "markdown_table",
    "panels_figure",
    "speed_figure",
    "speed_tables",
    "split_of",
    "spread",
    "study_figure",
    "study_table",
    "undisturbed",
]

FIGURES = {
    "vectors": {
        "tar_at_far/0.0001": "TAR at FAR 1e-4",
        "tar_at_far/0.001": "TAR at FAR 1e-3",
        "rank_one": "rank-1",
    },
    "faces": {
        "tar_at_far/0.01": "TAR at FAR 1e-2",
        "tar_at_far/0.001": "TAR at FAR 1e-3",
        "person_balanced_tar_at_far/0.01": "person-balanced, 1e-2",
        "person_balanced_tar_at_far/0.001": "person-balanced, 1e-3",
        "rank_one": "rank-1",
    },
}
"""Columns of a world's tables: name in the records -> title; the first is what variants are compared by where cells keep no hits of each person."""

Record = Json


def markdown_table(titles: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown_table(["head", "MiB"], [["full_fc", 12]]))
    | head | MiB |
    | --- | --- |
    | full_fc | 12 |
    """
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (titles, ["---"] * len(titles), *rows))


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Return the mean, and the standard deviation where there are several values.

    >>> spread([0.5, 0.7]), spread([0.25], "+.1f"), spread([])
    ('0.600 ± 0.141', '+0.2', '-')
    """
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def study_table(
    records: list[Record],
    figures: dict[str, str],
    reference: str | None = None,
    split: str | None = None,
    timed: bool = True,
) -> str:
    """Return Markdown: a table of figures, a row a variant in the order of the records, and one of verdicts against the reference.

    Args:
        records: of `study_records`.
        figures: name in the records -> title of the column; one that no record has is left out.
        reference: the variant that the others are compared with. Cells that keep each person's hits give a second table, differences with
            intervals and words (`study_verdict`); others a column, the paired difference of the first figure.
        split: "all", "test" or "validation"; None: "all" where all records have it, else "test".
        timed: whether to show seconds, which compare nothing where cells ran beside other work.
    """
    groups = _by_variant(records)
    split = split or split_of(records)
    figures = {name: title for name, title in figures.items() if any(name in _found(each, split) for each in records)}
    verdicts = "" if reference is None else _verdicts(groups, figures, reference, split)
    first = next(iter(figures), "")
    compared = [f"{figures[first]}: less {reference}"] if reference is not None and figures and not verdicts else []
    measures = {"steps": "steps", **({"seconds": "s", "samples_per_second": "samples/s"} if timed else {})}
    columns = ["variant", *figures.values(), *compared, "seeds", *measures.values(), "head, MiB"]
    of_seed = {record["seed"]: record["figures"][split][first] for record in _sound(groups.get(str(reference), []))}
    rows = []
    for variant, group in groups.items():
        sound = _sound(group)
        if not sound:
            rows.append([variant, f"failed: {group[0]['failed']}", *["-"] * (len(columns) - 2)])
            continue
        found = {record["seed"]: record["figures"][split] for record in sound}
        row = [variant, *(spread([each[name] for each in found.values() if name in each]) for name in figures)]
        if compared:
            differences = [each[first] - of_seed[seed] for seed, each in found.items() if seed in of_seed]
            row.append("" if variant == reference else spread(differences, "+.3f"))
        failed = len(group) - len(sound)
        row.append(f"{len(sound)}" + (f" ({failed} failed)" if failed else ""))
        means = (statistics.mean(each[key] for each in sound) for key in measures)
        row += [f"{mean:,.0f}" for mean in means]
        held = [record["head_bytes"] for record in sound if "head_bytes" in record]
        rows.append([*row, f"{statistics.mean(held) / 2**20:,.1f}" if held else "-"])
    commits = sorted({str(record.get("commit"))[:10] for record in records})
    return f"{markdown_table(columns, rows)}\n{verdicts}\n{len(records)} cells; commit {', '.join(commits)}."


def split_of(records: list[Record]) -> str:
    """Return whose people a table shows: "all" where all cells have them, else "test"."""
    return "all" if all("all" in record["figures"] for record in _sound(records)) else "test"


def _found(record: Record, split: str) -> dict[str, float]:
    found: dict[str, float] = record.get("figures", {}).get(split, {})
    return found


def _verdicts(groups: dict[str, list[Record]], figures: dict[str, str], reference: str, split: str) -> str:
    """The table of differences, "" where no cells give one."""
    rows = []
    for variant, group in groups.items():
        if variant != reference:
            pair = _sound(group), _sound(groups.get(reference, []))
            found = [difference(*pair, figure, split) for figure in figures]
            if any(found):
                rows.append([variant, *("-" if each is None else each.text() for each in found)])
    titles = [f"less {reference}, points", *figures.values()]
    return f"\n{markdown_table(titles, rows)}\n" if rows else ""


def undisturbed(records: list[Record]) -> list[Record]:
    """Return the cells whose seconds can be compared: of one kind of processor, that of most, with no more load than it has cores."""
    machines = [record.get("environment", {}).get("machine", {}) for record in records]
    quiet = [
        (machine.get("processor"), record)
        for machine, record in zip(machines, records, strict=True)
        if record.get("load_average", math.inf) <= machine.get("cores", 0) + 0.5
    ]
    most = Counter(processor for processor, _ in quiet).most_common(1)
    return [record for processor, record in quiet if processor == most[0][0]]


class Panel(NamedTuple):
    """One panel of a figure.

    Attributes:
        x_title, y_title: of its axes; panels of one y title share its scale.
        lines: name of a series -> its x, its y, and the standard deviation of y.
        shape: what is done to the axes beside.
    """

    x_title: str
    y_title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]
    shape: Callable[[Any], object] = lambda axes: None


def panels_figure(names: Sequence[str], panels: Sequence[Panel], title: str, below: str) -> str:
    """Return an SVG file of panels one below the other, the same series (four at most) in each, named where they end."""
    with drawing(0.2 + 2.5 * len(panels), panels=len(panels)) as drawn:
        first: Json = {}
        for panel, axes in zip(panels, np.atleast_1d(drawn).tolist(), strict=True):
            if first.setdefault(panel.y_title, axes) is not axes:
                axes.sharey(first[panel.y_title])
            for name, colour, line, marker in zip(names, SERIES, STYLES, MARKERS, strict=False):
                xs, ys, spreads = panel.lines[name]
                bars = list(spreads) if any(spreads) else None
                axes.errorbar(xs, ys, bars, color=colour, linestyle=line, marker=marker, markersize=4, capsize=3)
            axes.set(xlabel=panel.x_title, ylabel=panel.y_title)
            panel.shape(axes)
        for panel, axes in zip(panels, np.atleast_1d(drawn).tolist(), strict=True):
            drawn_lines = [(*panel.lines[name], name, colour) for name, colour in zip(names, SERIES, strict=False)]
            label_ends(axes, [(xs[-1], ys[-1], name, colour) for xs, ys, _, name, colour in drawn_lines if xs])
        svg = svg_of(axes, title, "figure")
    return own_file(svg, title, below)


def study_figure(records: list[Record], figure: str, title: str) -> str:
    """Return an SVG: the figure along training, of the best variant of each head, four at most, with the memory of the head.

    Along seconds where all of these ran undisturbed on one kind of machine, else along steps.

    Args:
        records: of `study_records`. The curve is on validation people in the vector world, on all people kept aside with faces.
        figure: such as "tar_at_far/0.0001". title: its name.

    Raises:
        UserError: no cell has the figure along its run: faces without `eval.every`.
    """
    drawn = [record for record in _sound(records) if any(figure in point for point in record.get("curve", []))]
    if not drawn:
        raise UserError(
            f"no cell has {figure} along its run: give the study eval.every=... among its overrides, and run it again"
        )
    split = split_of(drawn)
    groups = _by_variant(drawn)
    best: dict[str, str] = {}
    for variant in sorted(groups, key=lambda variant: _on_others(groups[variant], figure)):
        best[_head_of(groups[variant][0])] = variant  # the last one is the best
    ends = {variant: end_of(groups[variant], figure, split) for variant in best.values()}
    shown = sorted(ends, key=lambda variant: -ends[variant][1])[:MOST_SERIES]
    told = [f"{variant} {ends[variant][1]:.1f} %" for variant in shown]
    shown.sort(key=lambda variant: _head_of(groups[variant][0]))
    names = {variant: f"{variant} ({ends[variant][0]:.1f} MiB)" for variant in shown}
    cells = [record for variant in shown for record in groups[variant]]
    timed = len(undisturbed(cells)) == len(cells)
    lines = {
        name: (*curve_of(groups[variant], figure, "seconds" if timed else "step"), ())
        for variant, name in names.items()
    }
    people = "validation people" if drawn[0]["world"]["kind"] == "vectors" else _SPLITS["all"]
    below = f"Curves: {people}. Title: {_SPLITS[split]}, at the end. The best variant of each head, and the memory of the head."
    panel = Panel(
        f"{'seconds' if timed else 'steps'} of training", f"{title}, %", lines, in_1_2_5 if timed else lambda axes: None
    )
    return panels_figure([*names.values()], [panel], f"{title}: {', '.join(told)}", below)


_SPLITS = {"test": "test people", "validation": "validation people", "all": "all people kept aside"}


def _on_others(group: list[Record], figure: str) -> float:
    """A figure at the end by which a variant is chosen: of the validation people, where the cells have them."""
    return float(statistics.mean(record["figures"].get("validation", record["curve"][-1])[figure] for record in group))


def curve_of(group: list[Record], figure: str, x_name: str) -> tuple[list[float], list[float]]:
    """Return means over the cells of a variant along their runs: "step" or "seconds", and the figure in percent."""
    points = list(zip(*([p for p in record["curve"] if figure in p] for record in group), strict=False))
    xs, rates = ([statistics.mean(point[key] for point in each) for each in points] for key in (x_name, figure))
    return xs, [100 * rate for rate in rates]


def end_of(group: list[Record], figure: str, split: str) -> tuple[float, float, float]:
    """Return the memory of a variant's head in MiB, the mean of its figure in percent, and the standard deviation over seeds."""
    rates = [100 * record["figures"][split][figure] for record in group]
    memory = statistics.mean(record["head_bytes"] for record in group) / 2**20
    return memory, statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0


def _head_of(record: Record) -> str:
    """The head of a cell; its variant where the record does not tell."""
    head = record.get("config", {}).get("head", {})
    return str(head.get("kind") or head.get("name") or record["variant"])


def in_1_2_5(axes: Any) -> None:
    """Make x logarithmic, over few powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _by_variant(records: list[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["variant"], []).append(record)
    return groups


def _sound(group: list[Record]) -> list[Record]:
    return [record for record in group if "failed" not in record]


def speed_tables(settings: Json, columns: dict[str, str], results: Json) -> str:
    """Return the tables in Markdown: samples per second, memory, with a network the price of the key passes; then the ratios.

    Args:
        settings: of the sweep (`budget_gib`, `batch`, `network`, ...).
        columns: short name -> title.
        results: of `run_sweep`.
    """
    shown: dict[str, Callable[[Record], str]] = {
        "Samples/s": lambda cell: f"{cell['samples_per_second']:,.0f}",
        "MiB": lambda cell: f"{cell['peak_bytes'] / 2**20:,.0f}",
        "Key passes, seconds of a step's seconds": lambda cell: (
            (f"{cell['key_seconds']:.2f}" if cell["key_seconds"] else "none") + f" of {cell['seconds']:.2f}"
        ),
    }
    tables = []
    for mode, sizes in _by_mode(results).items():
        for title, show in list(shown.items())[: 2 if mode == "head" else 3]:
            rows = (
                [f"{size:,}", *(show(cells[column]) if cells[column]["fits"] else "-" for column in columns)]
                for size, cells in sizes.items()
            )
            tables.append(
                f"{title}, {_where(mode, settings)}:\n\n{markdown_table(['identities', *columns.values()], rows)}\n"
            )
    ratios = [[row["what"], f"{row['measured']:.3g}"] for row in results["ratios"]]
    return "\n".join([*tables, markdown_table(["compared", "measured"], ratios)])


def _where(mode: str, settings: Json) -> str:
    return "heads alone" if mode == "head" else f"with {settings['network']}"


def _by_mode(results: Json) -> dict[str, dict[int, dict[str, Record]]]:
    """Cells by mode, number of identities and column."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for cell in results["cells"]:
        found.setdefault(cell["mode"], {}).setdefault(cell["case"]["identities"], {})[cell["column"]] = cell
    return found


def speed_figure(settings: Json, columns: dict[str, str], results: Json) -> str:
    """Return the figure as SVG: samples per second above, memory below, against identities; with the network where it was measured."""
    mode, sizes = list(_by_mode(results).items())[-1]
    budget = settings["budget_gib"]

    def lines(key: str, unit: float) -> dict[str, tuple[list[float], list[float], list[float]]]:
        fit = {column: {size: row[column] for size, row in sizes.items() if row[column]["fits"]} for column in columns}
        return {columns[name]: ([*of], [cell[key] / unit for cell in of.values()], []) for name, of in fit.items()}

    def shape(axes: Any) -> None:
        _logarithmic(axes, [*sizes])

    def bounded(axes: Any) -> None:
        shape(axes)
        axes.axhline(budget * 1024, color=MUTED, linewidth=1, linestyle=":")
        write(axes, f"budget {budget:g} GiB", (min(sizes), budget * 1024), (0, -4), INK, va="top")

    panels = (
        Panel("", f"samples/s (batch {settings['batch']})", lines("samples_per_second", 1), shape),
        Panel("identities", "peak memory, MiB", lines("peak_bytes", 2**20), bounded),
    )
    most = max(sizes, key=lambda size: (sum(cell["fits"] for cell in sizes[size].values()), size))
    fit = [(cell["samples_per_second"], cell["peak_bytes"], name) for name, cell in sizes[most].items() if cell["fits"]]
    told = [f"{rate:,.0f} samples/s in {held / 2**30:.1f} GiB with {columns[name]}" for rate, held, name in sorted(fit)]
    title = f"{most:,} identities: {'; '.join(dict.fromkeys([*told[::-1][:1], *told[:1]])) or 'nothing fits'}"
    below = f"Measured {_where(mode, settings)}. A line ends at the largest size that fits in {budget:g} GiB."
    return panels_figure([*columns.values()], panels, title, below)


def _logarithmic(axes: Any, sizes: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(xscale="log", yscale="log")
    decades = range(math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes))) + 1)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in decades]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.set_xlim(min(sizes) / 1.3, max(sizes) * 1.3)
