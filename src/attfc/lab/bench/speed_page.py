"""The speed tables as Markdown and as one figure: what `attfc bench heads` measured, for people.

`-` is a size that was tried and did not fit. Colours are those of Okabe and Ito, told apart by all kinds of colour vision; lines differ in marker and
dash too. The SVG is a function of the figures: no date, no random ids.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

__all__ = ["speed_figure", "speed_tables"]

Cell = dict[str, Any]
_STYLES = (("#D55E00", "s", "-"), ("#E69F00", "^", "--"), ("#0072B2", "o", "-"), ("#009E73", "D", "-."))


def speed_tables(settings: dict[str, Any], columns: dict[str, str], results: dict[str, Any]) -> str:
    """Return the tables in Markdown: samples per second, memory, with a network the price of the key passes; then the ratios.

    Args:
        settings: of the sweep (`budget_gib`, `batch`, `network`, ...).
        columns: short name -> title.
        results: of `run_sweep`.
    """
    lines: list[str] = []
    for mode in _modes(results):
        where = "heads alone" if mode == "head" else f"with {settings['network']}"
        lines += _table(
            f"Samples/s, {where}", columns, results, mode, lambda cell: f"{cell['samples_per_second']:,.0f}"
        )
        lines += _table(f"MiB, {where}", columns, results, mode, lambda cell: f"{cell['peak_bytes'] / 2**20:,.0f}")
        if mode == "network":
            lines += _table(f"Key passes, seconds of a step's seconds, {where}", columns, results, mode, _key_passes)
    lines += ["| compared | measured |", "| --- | --- |"]
    lines += [f"| {row['what']} | {row['measured']:.3g} |" for row in results["ratios"]]
    return "\n".join(lines)


def _table(
    title: str, columns: dict[str, str], results: dict[str, Any], mode: str, show: Callable[[Cell], str]
) -> list[str]:
    lines = [f"{title}:", "", f"| identities | {' | '.join(columns.values())} |", "|" + " --- |" * (len(columns) + 1)]
    for identities, cells in _rows(results, mode).items():
        shown = [show(cells[column]) if cells[column]["fits"] else "-" for column in columns]
        lines.append(f"| {identities:,} | {' | '.join(shown)} |")
    return [*lines, ""]


def _key_passes(cell: Cell) -> str:
    keys = f"{cell['key_seconds']:.2f}" if cell["key_seconds"] else "none"
    return f"{keys} of {cell['seconds']:.2f}"


def _modes(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["mode"] for cell in results["cells"]))


def _rows(results: dict[str, Any], mode: str) -> dict[int, dict[str, Cell]]:
    rows: dict[int, dict[str, Cell]] = {}
    for cell in results["cells"]:
        if cell["mode"] == mode:
            rows.setdefault(cell["case"]["identities"], {})[cell["column"]] = cell
    return rows


def speed_figure(settings: dict[str, Any], columns: dict[str, str], results: dict[str, Any]) -> str:
    """Return the figure as SVG: samples per second above, memory below, a column for heads alone and one with the network."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "attfc", "svg.fonttype": "none"}):
        _draw(settings, columns, results).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(settings: dict[str, Any], columns: dict[str, str], results: dict[str, Any]) -> Figure:
    modes = _modes(results)
    figure = Figure(figsize=(4.6 * len(modes) + 0.6, 6.2), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(2, len(modes), sharex=True, sharey="row", squeeze=False)
    for place, mode in enumerate(modes):
        speed, memory = grid[0, place], grid[1, place]
        for (column, title), (colour, marker, dash) in zip(columns.items(), _STYLES, strict=True):
            cells = [row[column] for row in _rows(results, mode).values() if row[column]["fits"]]
            at = [cell["case"]["identities"] for cell in cells]
            style = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5, "linewidth": 1.8}
            speed.plot(at, [cell["samples_per_second"] for cell in cells], label=title, **style)
            memory.plot(at, [cell["peak_bytes"] / 2**20 for cell in cells], **style)
        memory.axhline(settings["budget_gib"] * 1024, color="#555555", linewidth=1, linestyle=":")
        memory.text(
            0.02, settings["budget_gib"] * 1024 * 0.93, f"budget {settings['budget_gib']:g} GiB",
            transform=memory.get_yaxis_transform(), color="#555555", fontsize=9, va="top",
        )  # fmt: skip
        speed.set_title("heads alone" if mode == "head" else f"with {settings['network']}", fontsize=11)
        memory.set_xlabel("identities")
        for axes in (speed, memory):
            _logarithmic(axes)
    grid[0, 0].set_ylabel(f"samples/s (batch {settings['batch']})")
    grid[1, 0].set_ylabel("peak memory, MiB")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(modes), frameon=False
    )
    return figure


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([10**5, 10**6, 10**7, 10**8]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
