"""The tables of docs/gpu.md, each from one record of `make gpu` (benchmarks/results/gpu/PART.json)."""

from collections.abc import Callable
from typing import Any

from attfc.lab.pages import markdown_table

__all__ = ["TABLES"]

Record = dict[str, Any]
HEADS = {
    "full_fc": "full FC",
    "partial_fc": "Partial FC 0.1",
    "partial_fc host": "Partial FC 0.1, rows on the host",
    "default device": "AttFC, table on the device",
    "default host": "AttFC, table on the host",
    "published": "AttFC as published, ratio 0.1",
    "dense": "full FC, dense",
    "cut_cross_entropy": "cut-cross-entropy",
}


def tests(record: Record) -> str:
    """How the tests of each file ended, and which failed."""
    cells = record["results"]["cells"]
    counts = ("passed", "failed", "skipped", "left_out")
    rows = [[cell["name"], *(cell.get(count, "-") for count in counts)] for cell in cells]
    failed = [
        f"{cell['name']}: {name}"
        for cell in cells
        for name, test in cell.get("tests", {}).items()
        if test["how"] == "failed"
    ]
    return "\n".join([markdown_table(["file", "passed", "failed", "skipped", "left out"], rows), "", *_list(failed)])


def heads(record: Record) -> str:
    """Samples/s and memory by identities, then the same with a network, and container softmax beside its floor."""
    cells = record["results"]["cells"]
    of_heads = [cell for cell in cells if cell["kind"] == "head"]
    pages = []
    for network in sorted({cell["network"] or "" for cell in of_heads if "network" in cell} | {""}):
        found: dict[tuple[int, str], Record] = {}
        for cell in of_heads:
            if (cell.get("network") or "") == network:
                head = f"{cell['head']} {cell['place']}" if "place" in cell else cell["head"]
                found[cell["identities"], head] = cell
        shown: dict[str, Callable[[Record], str]] = {
            "Samples/s": lambda cell: f"{cell['samples_per_second']:,.0f}",
            "MiB on the device (MiB of rows on the host)": _memory,
        }
        columns = [head for head in HEADS if any(key[1] == head for key in found)]
        for title, show in shown.items():
            rows = (
                [f"{size:,}", *(_shown(found.get((size, column)), show) for column in columns)]
                for size in sorted({size for size, _ in found})
            )
            where = f"with {network}" if network else "heads alone"
            pages += [f"{title}, {where}:", "", markdown_table(["identities", *map(HEADS.get, columns)], rows), ""]  # type: ignore[list-item]
    titles = ["slots", "rows", "ms", "floor by bytes, ms", "by products, ms", "times the floor", "faster than dense"]
    rows = [
        [
            f"{cell['slots']:,}",
            cell["rows"],
            f"{1000 * cell['seconds']['streamed']:.2f}",
            f"{1000 * cell['floor_seconds']['bytes']:.2f}",
            f"{1000 * cell['floor_seconds']['products']:.2f}",
            f"{cell['times_the_floor']:.2f}",
            f"{cell['times_faster_than_dense']:.2f}",
        ]
        for cell in cells
        if cell["kind"] == "container" and cell["status"] == "done"
    ]
    return "\n".join([*pages, "Container softmax, forward and backward:", "", markdown_table(titles, rows)])


def _shown(cell: Record | None, show: Callable[[Record], str]) -> str:
    if cell is None:
        return ""
    return cell["status"] if cell["status"] != "done" else show(cell) if cell["fits"] else "-"


def _memory(cell: Record) -> str:
    elsewhere = f" ({cell['elsewhere_bytes'] / 2**20:,.0f})" if cell["elsewhere_bytes"] else ""
    return f"{cell['peak_bytes'] / 2**20:,.0f}{elsewhere}"


def networks(record: Record) -> str:
    """Images/s of the passes."""
    rows = []
    for cell in record["results"]["cells"]:
        rates = (
            f"{cell[what]['images_per_second']:,.0f}" if what in cell else cell["status"]
            for what in ("forward", "forward_backward")
        )
        peak = cell.get("forward_backward", {}).get("peak_bytes")
        rows.append([cell["name"], *rates, "-" if peak is None else f"{peak / 2**20:,.0f}"])
    return markdown_table(["network", "forward, images/s", "forward and backward, images/s", "MiB"], rows)


def train(record: Record) -> str:
    """Images/s of whole runs, and what the demo came to."""
    rows = [
        [cell["name"], f"{cell['images_per_second']:,.0f}" if "images_per_second" in cell else cell["status"]]
        for cell in record["results"]["cells"]
        if cell["name"] not in ("packed set", "the demo")
    ]
    demo = next((cell for cell in record["results"]["cells"] if "evaluation" in cell), None)
    end = (
        []
        if demo is None
        else [f"The demo took {demo['took_seconds']:.0f} s; rank-1 {demo['evaluation']['rank_one']:.3f}."]
    )
    return "\n".join([markdown_table(["run", "images/s"], rows), "", *end])


def _list(texts: list[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _whole(part: Callable[[Record], str]) -> Callable[[Record], str]:
    """The table, what it lacks, and the card."""

    def table(record: Record) -> str:
        results, where = record["results"], record["environment"]
        failed = [f"{cell['name']}: {cell['error']}" for cell in results["cells"] if cell["status"] == "failed"]
        lines = [part(record).rstrip(), ""]
        for title, texts in {"Failed": failed, "Left out": results["left_out"]}.items():
            lines += [f"{title}:", "", *_list(texts), ""] if texts else []
        card = where["accelerator"] or where["processor"]
        versions = f"torch {where['torch']}, CUDA {where.get('cuda')}, cuDNN {where.get('cudnn')}"
        commit = str(record["config"].get("commit") or where["commit"])[:10]
        source = f"`benchmarks/results/gpu/{record['name']}.json`"
        return "\n".join([*lines, f"{source}: {card}, {versions}, commit {commit}, {where['time'][:10]}."])

    return table


TABLES: dict[str, Callable[[Record], str]] = {
    f"gpu {part.__name__}": _whole(part) for part in (tests, heads, networks, train)
}
"""By their names in the page."""
