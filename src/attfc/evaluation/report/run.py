"""One HTML file that tells a run: figures, curves, ROC, hardest pairs, timing, configuration, versions.

Self-contained: style and pictures are inside, there is no script, nothing is loaded from anywhere. Every text that
comes from the run or its data is escaped. Faces appear only when asked for (`pictures=True` and a store), at most 24
of them: people in a data set did not agree to be in a report. What a run has not got (no evaluation yet, interrupted)
is left out and said so.
"""

import base64
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Interval
from attfc.evaluation.report.parts import (
    Cell,
    bounds_text,
    column_of,
    duration,
    escaped,
    figure_block,
    finite,
    mebibytes,
    notes_block,
    percent,
    section,
    setting,
    short,
    table_block,
)
from attfc.evaluation.report.people import (
    TarColumn,
    checked_line,
    people_behind,
    people_title,
    people_warning,
    tar_columns,
)
from attfc.evaluation.report.plots import line_figure, roc_figure, score_figure
from attfc.evaluation.report.run_record import RunRecord, drawn_from, read_run
from attfc.evaluation.results import stated_intervals
from attfc.files import write_text_whole

__all__ = ["write_report"]

SHOWN_PAIRS = 6  # of each kind: 24 pictures
LISTED_BROKEN = 50
ROC_HINT = "dotted: fewer than 30 false accepts, uncertain; shaded: so for every curve"
PICTURE_SIZE = 112
_DRAWN = {
    "epoch",
    "loss",
    "loss_average",
    "learning_rate",
    "images_per_second",
    "memory_mib",
    "seconds",
    "step",
    "kind",
}


def write_report(run_folder: str | os.PathLike[str], store: Store | None = None, pictures: bool = False) -> Path:
    """Write `report.html` into a run folder, in one piece, over an older one.

    Args:
        run_folder: with any of config.yaml, environment.json, metrics.jsonl, evaluation.json, evaluation.npz.
        store: the store that was evaluated; needed for pictures.
        pictures: embed the faces of the hardest pairs (112 x 112 JPEG); only for stores that may be shown.

    Returns:
        Path of the report.

    Raises:
        UserError: not a run folder, a damaged file in it, a store that is not the one evaluated, or a report that cannot be written.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    evaluation, log = "evaluation.json or evaluation.npz", "metrics.jsonl"
    parts = (
        (_heading, "metrics.jsonl, environment.json or config.yaml"),
        (_cards, f"{log}, {evaluation}"),
        (_verification, evaluation),
        (_training, log),
        (lambda run: _hardest(run, store if pictures else None), evaluation),
        (_timing, f"{log}, {evaluation}"),
        (_broken, f"{log} or {evaluation}"),
        (_configuration, "config.yaml"),
    )
    sections = [drawn_from(draw, run, folder, source) for draw, source in parts]
    template = Template((resources.files(__package__) / "report_template.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escaped(f"{run.name} · attfc"), body="\n".join(filter(None, sections)))
    path = folder / "report.html"
    write_text_whole(path, page)
    return path


def _heading(run: RunRecord) -> str:
    parts = [
        setting(run.config, "head", "name") or setting(run.config, "head"),
        setting(run.config, "backbone", "name") or setting(run.config, "backbone"),
        setting(run.config, "data", "root"),
        run.environment.get("started"),
    ]
    line = " · ".join(str(part) for part in parts if isinstance(part, str) and part)
    steps = column_of(run.train, "step")[1]
    at = f" at step {steps[-1]:,.0f}" if steps else ""
    state = "finished" if run.finished else f"not finished{at}: interrupted or still running"
    return (
        f'<header>\n<h1>{escaped(run.name)}</h1>\n<div class="sub"><span>{escaped(line)}</span>'
        f'<span class="state">{escaped(state)}</span></div>\n</header>'
    )


def _cards(run: RunRecord) -> str:
    figures, intervals, behind = run.evaluation, stated_intervals(run.evaluation), people_behind(run.evaluation)
    cards: list[tuple[str, str, str, str]] = []
    if figures:
        std = finite(figures.get("accuracy_std"))
        probes = finite(figures.get("rank_one_probes"))
        cards += [
            (
                "Accuracy on pairs",
                percent(figures.get("accuracy")),
                bounds_text(intervals, ("accuracy",)),
                "" if std is None else f"± {100 * std:.2f} over folds",
            ),
            (
                "Area under the ROC",
                short(figures.get("auc")),
                bounds_text(intervals, ("auc",), 4, percent=False),
                "1 is perfect, 0.5 chance",
            ),
            ("Equal error rate", percent(figures.get("eer")), bounds_text(intervals, ("eer",)), "lower is better"),
            _tar_card(figures, intervals),
            (
                "Rank-one identification",
                percent(figures.get("rank_one")),
                bounds_text(intervals, ("rank_one",)),
                f"{probes:,.0f} probes, leave one out" if probes else "leave one out",
            ),
        ]
        cards = [(name, value, bounds, "; ".join(filter(None, (more, behind)))) for name, value, bounds, more in cards]
    losses = column_of(run.train, "loss_average")[1] or column_of(run.train, "loss")[1]
    if losses:
        cards.append(("Training loss", short(losses[-1]), "", f"from {short(losses[0])}"))
    speeds = column_of(run.train, "images_per_second")[1]
    if speeds:
        cards.append(("Images per second", f"{statistics.median(speeds):,.0f}", "", "median, queries trained"))
    memory = column_of(run.train, "memory_mib")[1]
    if memory:
        cards.append(("Peak memory", mebibytes(max(memory)), "", "of the training process"))
    shown = "".join(
        f'<div class="card"><div class="name">{escaped(name)}</div><div class="value">{escaped(value)}</div>'
        + (f'<div class="interval">{escaped(bounds)}</div>' if bounds else "")
        + f'<div class="more">{escaped(more)}</div></div>'
        for name, value, bounds, more in cards
    )
    missing = "" if figures else "This run has not been evaluated: there are no verification figures."
    first = notes_block(filter(None, [missing or people_warning(figures)]))
    return f'{first}<div class="cards">{shown}</div>'


def _tar_card(figures: dict[str, Any], intervals: Mapping[FigurePath, Interval]) -> tuple[str, str, str, str]:
    """The lowest FAR that rests on at least 30 false accepts, all pairs before the list; else the lowest stated."""
    stated: list[tuple[bool, float, float, str, FigurePath]] = []
    holders: tuple[tuple[str, FigurePath, Any], ...] = (
        ("all pairs", ("all_pairs",), figures.get("all_pairs")),
        ("list of pairs", (), figures),
    )
    for source, place, holder in holders:
        if not isinstance(holder, dict) or not isinstance(holder.get("tar_at_far"), dict):
            continue
        impostors = finite(holder.get("impostor_pairs")) or 0.0
        for far, tar in holder["tar_at_far"].items():
            value = finite(tar)
            if value is not None:
                certain = float(far) * impostors >= 30 - 1e-9
                more = f"{source}, {impostors:,.0f} impostor"
                stated.append((certain, float(far), value, more, (*place, "tar_at_far", far)))
    if not stated:
        return ("TAR at FAR", "–", "", "too few impostor pairs")
    sure = [entry for entry in stated if entry[0]]
    _, far, value, more, path = (
        min(sure, key=lambda entry: entry[1]) if sure else max(stated, key=lambda entry: entry[1])
    )
    return (f"TAR at FAR {far:g}", percent(value), bounds_text(intervals, path), more)


def _list_of_pairs(run: RunRecord) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]] | None:
    """Scores and kinds of the list, if there are any of both kinds."""
    scores, same = run.arrays.get("scores"), run.arrays.get("same")
    if scores is None or same is None or scores.shape != same.shape or len(np.unique(same)) < 2:
        return None
    return scores.astype(np.float64), same.astype(np.bool_)


def _verification(run: RunRecord) -> str:
    figures = run.evaluation
    if not figures:
        return ""
    drawn: list[str] = []
    listed = _list_of_pairs(run)
    everything = figures.get("all_pairs") if isinstance(figures.get("all_pairs"), dict) else None
    if listed is not None:
        scores, same = listed
        curve = None
        if everything is not None and len(run.arrays.get("all_pairs_far", ())):
            count = int(finite(everything.get("impostor_pairs")) or 0)
            curve = (run.arrays["all_pairs_far"], run.arrays["all_pairs_tar"], count) if count else None
        drawn.append(figure_block("True accepts over false accepts", roc_figure(scores, same, curve), ROC_HINT))
        drawn.append(figure_block("Scores of the pairs", score_figure(scores, same, finite(figures.get("threshold")))))
    columns = tar_columns(figures)
    for title, table in (
        ("TAR at FAR", table_block(_far_rows(figures, columns), ("", *(name for name, _, _ in columns)))),
        ("Figures of the pairs", table_block(_pair_rows(figures))),
    ):
        drawn.append(f'<div class="panel"><h3>{title}</h3>{table}</div>' if table else "")
    return section(
        people_title(figures),
        f'<div class="figures">{"".join(drawn)}</div>',
        f'<p class="hint" style="margin-top:12px">{escaped(checked_line(figures))}</p>'
        if checked_line(figures)
        else "",
        _about_intervals(figures),
        notes_block([*_texts(figures.get("notes")), *_texts(figures.get("interval_notes"))]),
    )


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _about_intervals(figures: dict[str, Any]) -> str:
    """What the brackets are, where there are any."""
    confidence, resamples = (finite(setting(figures, "uncertainty", name)) for name in ("confidence", "resamples"))
    if confidence is None or resamples is None or not stated_intervals(figures):
        return ""
    people = finite(figures.get("interval_identities"))
    told = "" if people is None else f" ({people:,.0f} with several images)"
    return (
        f'<p class="hint" style="margin-top:12px">In brackets: {100 * confidence:g} % intervals, from {resamples:,.0f} bootstrap resamples of '
        f"the identities{told}: how the figures vary with the people. Whether another run is better is said by attfc compare.</p>"
    )


def _tar_over_steps(evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, list[float], list[float]]]:
    found: list[tuple[float, float]] = []
    for record in evaluations:
        everything = record.get("all_pairs")
        tars = everything.get("tar_at_far") if isinstance(everything, dict) else record.get("tar_at_far")
        step, tar = finite(record.get("step")), finite(tars.get("0.01")) if isinstance(tars, dict) else None
        if step is not None and tar is not None:
            found.append((step, tar))
    return [("TAR at FAR 0.01", [step for step, _ in found], [tar for _, tar in found])]


def _far_rows(figures: dict[str, Any], columns: Sequence[TarColumn]) -> list[list[Cell]]:
    intervals = stated_intervals(figures)
    tars = [tar if isinstance(tar := holder.get(path[-1]), dict) else {} for _, holder, path in columns]
    rows: list[list[Cell]] = []
    for far in sorted({far for tar in tars for far in tar}, key=float, reverse=True):
        cells: list[Cell] = [
            (
                "–" if far not in tar else "not stated" if tar[far] is None else percent(tar[far]),
                bounds_text(intervals, (*path, far)),
            )
            for tar, (_, _, path) in zip(tars, columns, strict=True)
        ]
        rows.append([f"FAR {far}", *cells])
    for name, key in (("genuine pairs", "genuine_pairs"), ("impostor pairs", "impostor_pairs")):
        counts = [finite(holder.get(key)) for _, holder, _ in columns]
        rows.append([name, *("–" if count is None else f"{count:,.0f}" for count in counts)])
    return rows


def _pair_rows(figures: dict[str, Any]) -> list[list[Cell]]:
    std, skipped, images = (finite(figures.get(name)) for name in ("accuracy_std", "skipped_pairs", "images"))
    intervals = stated_intervals(figures)
    accuracy = percent(figures.get("accuracy")) + ("" if std is None else f" ± {100 * std:.2f}")
    rows: list[list[Cell]] = [
        ["accuracy", (accuracy, bounds_text(intervals, ("accuracy",)))],
        ["threshold (cosine)", short(figures.get("threshold"))],
        ["equal error rate", (percent(figures.get("eer")), bounds_text(intervals, ("eer",)))],
        ["area under the ROC", (short(figures.get("auc")), bounds_text(intervals, ("auc",), 4, percent=False))],
    ]
    if isinstance(figures.get("pair_source"), str):
        rows.append(["pairs from", str(figures["pair_source"])])
    if skipped is not None:
        rows.append(["pairs skipped", f"{skipped:,.0f}"])
    return rows if images is None else [*rows, ["images embedded", f"{images:,.0f}"]]


def _training(run: RunRecord) -> str:
    drawn: list[str] = []
    losses, averages = column_of(run.train, "loss"), column_of(run.train, "loss_average")
    if averages[0] and losses[0]:
        lines = [("_loss", *losses), ("average", *averages)]
        drawn.append(
            figure_block(
                "Loss",
                line_figure(lines, "loss over steps", key="loss"),
                "faint: the step's loss; strong: its running average",
            )
        )
    elif losses[0]:
        drawn.append(figure_block("Loss", line_figure([("loss", *losses)], "loss over steps", key="loss")))
    over_steps = [
        ("accuracy", *column_of(run.evaluations, "accuracy")),
        ("rank-one", *column_of(run.evaluations, "rank_one")),
        *(_tar_over_steps(run.evaluations)),
    ]
    over_steps = [line for line in over_steps if len(line[1]) > 1]
    if over_steps:
        drawn.append(
            figure_block(
                "Evaluation over steps", line_figure(over_steps, "figures over steps", key="evaluation", markers=True)
            )
        )
    plain = (
        ("learning_rate", "Learning rate"),
        ("images_per_second", "Images per second"),
        ("memory_mib", "Memory, MiB"),
    )
    of_the_head = sorted({name for record in run.train for name in record if finite(record[name]) is not None} - _DRAWN)
    for place, (name, caption) in enumerate(
        (*plain, *((name, name.replace("_", " ").capitalize()) for name in of_the_head))
    ):
        steps, values = column_of(run.train, name)
        if not steps or (name == "memory_mib" and max(values) < 1.05 * min(values)):
            continue
        svg = line_figure([(caption, steps, values)], f"{caption} over steps", key=f"train{place}", from_zero=True)
        drawn.append(figure_block(caption, svg))
    inner = (
        f'<div class="figures">{"".join(drawn)}</div>' if drawn else '<p class="hint">No training step was logged.</p>'
    )
    torn = (
        notes_block(["The last line of metrics.jsonl was cut short (a killed process) and is left out."])
        if run.torn
        else ""
    )
    return section("Training", inner, torn)


def _hardest_rows(run: RunRecord, store: Store | None) -> list[tuple[bool, float, int, int, str, str]]:
    """(same, score, first, second, where, where), worst genuine pairs first, then worst impostor pairs."""
    arrays = run.arrays
    columns = (
        "hardest_same",
        "hardest_scores",
        "hardest_first",
        "hardest_second",
        "hardest_first_where",
        "hardest_second_where",
    )
    if all(name in arrays for name in columns):
        return list(zip(*(arrays[name].tolist() for name in columns), strict=True))
    listed = _list_of_pairs(run)
    if listed is None or "first" not in arrays or "second" not in arrays:
        return []
    scores, same = listed
    rows = []
    for kind in (True, False):
        places = np.flatnonzero(same == kind)
        for place in places[np.argsort(scores[places] if kind else -scores[places], kind="stable")][: 2 * SHOWN_PAIRS]:
            first, second = int(arrays["first"][place]), int(arrays["second"][place])
            names = [
                store.where(p) if store is not None and p < len(store) else f"position {p}" for p in (first, second)
            ]
            rows.append((kind, float(scores[place]), first, second, names[0], names[1]))
    return rows


def _hardest(run: RunRecord, store: Store | None) -> str:
    rows = _hardest_rows(run, store)
    parts: list[str] = []
    for kind, title in (
        (True, "Genuine pairs with the lowest scores"),
        (False, "Impostor pairs with the highest scores"),
    ):
        of_kind = [row for row in rows if row[0] == kind]
        if not of_kind:
            continue
        shown = of_kind[:SHOWN_PAIRS] if store is not None else []
        rest = [(f"{score:.4f}", one, other) for _, score, _, _, one, other in of_kind[len(shown) :]]
        table = table_block(rest, ("cosine", "first image", "second image"), numbers_from=9)
        parts.append(
            f"<h3>{title}</h3>"
            + (f'<div class="pairs">{"".join(_pair(row, store) for row in shown)}</div>' if store is not None else "")
            + (f'<div class="panel" style="margin-bottom:18px">{table}</div>' if table else "")
        )
    hint = (
        '<p class="hint">Often wrong labels, or very different poses and ages: look at them before trusting the last tenth of a '
        "percent.</p>"
    )
    return section("Hardest pairs", *([hint, *parts] if parts else []))


def _pair(row: tuple[bool, float, int, int, str, str], store: Store) -> str:
    _, score, first, second, first_where, second_where = row
    for position, where in ((first, first_where), (second, second_where)):
        if position >= len(store) or store.where(position) != where:
            found = store.where(position) if position < len(store) else f"only {len(store)} images"
            raise UserError(
                f"image {position} of the evaluation is {where}, but {store.name} has {found}: "
                "pass the store that was evaluated, unchanged"
            )
    images = store.images([first, second], PICTURE_SIZE)
    faces = "".join(
        f'<img src="data:image/jpeg;base64,{_jpeg(pixels)}" width="{PICTURE_SIZE}" height="{PICTURE_SIZE}" alt="{escaped(where)}">'
        for pixels, where in zip(images.pixels, (first_where, second_where), strict=True)
    )
    return (
        f'<div class="pair"><div class="faces">{faces}</div><div class="score">{score:.3f}</div>'
        f'<div class="who">{escaped(first_where)}<br>{escaped(second_where)}</div></div>'
    )


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _timing(run: RunRecord) -> str:
    rows: list[tuple[str, str]] = []
    steps, epochs = column_of(run.train, "step")[1], column_of(run.train, "epoch")[1]
    if steps:
        rows.append(("steps", f"{steps[-1]:,.0f}" + (f" ({epochs[-1]:.2f} epochs)" if epochs else "")))
    seconds = column_of(run.train, "seconds")[1]
    if seconds:
        rows.append(("training time", duration(seconds[-1])))
    speeds = column_of(run.train, "images_per_second")[1]
    if speeds:
        rows.append(("images per second, median", f"{statistics.median(speeds):,.1f}"))
        rows.append(("images per second, lowest and highest", f"{min(speeds):,.1f} – {max(speeds):,.1f}"))
    memory = column_of(run.train, "memory_mib")[1]
    if memory:
        rows.append(("peak memory", mebibytes(max(memory))))
    taken, rate = (finite(run.evaluation.get(name)) for name in ("embedding_seconds", "embedded_images_per_second"))
    if taken is not None:
        rows.append(("embedding for the evaluation", duration(taken) + (f", {rate:,.1f} images/s" if rate else "")))
    tables = [("Timing and memory", table_block(rows))]
    for name in ("machine", "versions"):
        entries = run.environment.get(name)
        if isinstance(entries, dict):
            tables.append((name.capitalize(), table_block([(str(key), str(value)) for key, value in entries.items()])))
    others = [(str(k), str(v)) for k, v in run.environment.items() if not isinstance(v, dict | list)]
    tables.append(("Environment", table_block(others)))
    panels = "".join(f'<div class="panel"><h3>{title}</h3>{table}</div>' for title, table in tables if table)
    return section("Timing, memory and versions", f'<div class="figures">{panels}</div>' if panels else "")


def _broken(run: RunRecord) -> str:
    rows = {
        (str(record.get("where", record.get("position"))), str(record.get("reason", "")), "training")
        for record in run.broken
    }
    arrays = run.arrays
    if "broken_where" in arrays and "broken_reasons" in arrays:
        found = zip(arrays["broken_where"].tolist(), arrays["broken_reasons"].tolist(), strict=True)
        rows |= {(str(where), str(reason), "evaluation") for where, reason in found}
    if not rows:
        return ""
    listed = sorted(rows)[:LISTED_BROKEN]
    more = f", the first {LISTED_BROKEN} of them listed" if len(rows) > LISTED_BROKEN else ""
    table = table_block(listed, ("image", "reason", "found in"), numbers_from=9)
    plural = "s" if len(rows) > 1 else ""
    return section(
        "Broken images",
        f'<p class="hint">{len(rows):,} broken image{plural}{more}. They were replaced or skipped.</p><div class="panel">{table}</div>',
    )


def _configuration(run: RunRecord) -> str:
    if not run.config_text:
        return ""
    return section(
        "Configuration", f"<details><summary>config.yaml</summary><pre>{escaped(run.config_text)}</pre></details>"
    )
