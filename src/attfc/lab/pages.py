"""Tables and figures of what was measured here, from its records and nothing else: the speed of the heads, and studies.

A row of a study is a variant: mean and standard deviation over seeds, and the paired difference to the reference (same seeds, same people). `-` in
the speed tables is a size that was tried and did not fit. Colours are those of Okabe and Ito, and a grey; lines differ in dash and marker too. An SVG
is a function of the records: no date, no random ids.
"""

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attfc.errors import UserError
from attfc.lab.study_verdict import difference

__all__ = [
    "FIGURES",
    "markdown_table",
    "speed_figure",
    "speed_tables",
    "split_of",
    "spread",
    "study_figure",
    "study_table",
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

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLUMN_STYLES = (("#D55E00", "s", "-"), ("#E69F00", "^", "--"), ("#0072B2", "o", "-"), ("#009E73", "D", "-."))

Record = dict[str, Any]


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


def _svg(draw: Callable[[Any], None], size: tuple[float, float], font_size: float = 10.0) -> str:
    """Return what `draw` puts on a new figure of that size in inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "attfc", "svg.fonttype": "none", "font.size": font_size}):
        page = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(page)
        draw(page)
        out = io.StringIO()
        page.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


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


def study_figure(records: list[Record], figure: str, title: str) -> str:
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
    split = split_of(drawn)
    curve_of = "validation people" if drawn[0]["world"]["kind"] == "vectors" else "all people kept aside"

    def draw(page: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        time_axes, memory_axes = page.subplots(1, 2)
        for number, (variant, group) in enumerate(_by_variant(drawn).items()):
            sound = _sound(group)
            if not sound:
                continue
            turn, place = divmod(number, len(_COLOURS))
            style = {
                "color": _COLOURS[place],
                "marker": _MARKERS[place],
                "linestyle": _DASHES[(number + turn) % len(_DASHES)],
                "markersize": 4,
                "markerfacecolor": "white" if turn % 2 else None,  # the ninth is like the first, but hollow
                "label": variant,
            }
            points = list(zip(*([p for p in record["curve"] if figure in p] for record in sound), strict=False))
            seconds, rates = (
                [statistics.mean(point[key] for point in each) for each in points] for key in ("seconds", figure)
            )
            time_axes.plot(seconds, rates, **style)
            ends = [record["figures"][split][figure] for record in sound]
            memory = statistics.mean(record["head_bytes"] for record in sound) / 2**20
            error = statistics.stdev(ends) if len(ends) > 1 else 0.0
            memory_axes.errorbar(memory, statistics.mean(ends), yerr=error, capsize=3, **style)
        time_axes.set(xlabel="seconds of training", ylabel=f"{title}, {curve_of}")
        memory_axes.set(xlabel="memory of the head, MiB", ylabel=f"{title}, test people")
        for axes in (time_axes, memory_axes):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(visible=True, alpha=0.3)
        page.legend(*time_axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

    return _svg(draw, (9.5, 4.0), font_size=9)


def _by_variant(records: list[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["variant"], []).append(record)
    return groups


def _sound(group: list[Record]) -> list[Record]:
    return [record for record in group if "failed" not in record]


def speed_tables(settings: dict[str, Any], columns: dict[str, str], results: dict[str, Any]) -> str:
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


def _where(mode: str, settings: dict[str, Any]) -> str:
    return "heads alone" if mode == "head" else f"with {settings['network']}"


def _by_mode(results: dict[str, Any]) -> dict[str, dict[int, dict[str, Record]]]:
    """Cells by mode, number of identities and column."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for cell in results["cells"]:
        found.setdefault(cell["mode"], {}).setdefault(cell["case"]["identities"], {})[cell["column"]] = cell
    return found


def speed_figure(settings: dict[str, Any], columns: dict[str, str], results: dict[str, Any]) -> str:
    """Return the figure as SVG: samples per second above, memory below, a column for heads alone and one with the network."""
    modes = _by_mode(results)
    budget = settings["budget_gib"]

    def draw(page: Any) -> None:
        grid = page.subplots(2, len(modes), sharex=True, sharey="row", squeeze=False)
        for (speed, memory), (mode, sizes) in zip(grid.T, modes.items(), strict=True):
            for (column, title), (colour, marker, dash) in zip(columns.items(), _COLUMN_STYLES, strict=True):
                cells = {size: row[column] for size, row in sizes.items() if row[column]["fits"]}
                style = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5, "linewidth": 1.8}
                speed.plot([*cells], [cell["samples_per_second"] for cell in cells.values()], label=title, **style)
                memory.plot([*cells], [cell["peak_bytes"] / 2**20 for cell in cells.values()], **style)
            memory.axhline(budget * 1024, color="#555555", linewidth=1, linestyle=":")
            memory.text(
                0.02, budget * 1024 * 0.93, f"budget {budget:g} GiB",
                transform=memory.get_yaxis_transform(), color="#555555", fontsize=9, va="top",
            )  # fmt: skip
            speed.set_title(_where(mode, settings), fontsize=11)
            memory.set_xlabel("identities")
            _logarithmic(speed)
            _logarithmic(memory)
        grid[0, 0].set_ylabel(f"samples/s (batch {settings['batch']})")
        grid[1, 0].set_ylabel("peak memory, MiB")
        handles = grid[0, 0].get_legend_handles_labels()
        page.legend(*handles, loc="outside lower center", ncols=2 * len(modes), frameon=False)

    return _svg(draw, (4.6 * len(modes) + 0.6, 6.2))


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator([10**5, 10**6, 10**7, 10**8]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
