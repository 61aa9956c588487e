"""One HTML file that tells a run: figures, curves, ROC, hardest pairs, timing, configuration, versions.

Faces appear only when asked for (`pictures=True` and a store), at most 24 of them: people in a data set did not agree to be in a report. What a run
has not got (no evaluation yet, interrupted) is left out and said so.
"""

import base64
import io
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, figure_at
from attfc.evaluation.report.page import (
    Beside,
    Block,
    Card,
    Cards,
    Cell,
    FacePairs,
    Figure,
    Hint,
    Listing,
    Notes,
    Page,
    Section,
    Table,
    bounds_text,
    count_text,
    texts,
)
from attfc.evaluation.report.people import (
    checked_line,
    people_behind,
    people_title,
    people_warning,
    tar_columns,
)
from attfc.evaluation.report.plots import CERTAIN_FALSE_ACCEPTS, line_figure, roc_figure, score_figure
from attfc.evaluation.report.run_record import RunRecord, columns_of, drawn_from, read_run
from attfc.evaluation.results import finite, stated_intervals
from attfc.typing import Bools, Float64, UInt8

__all__ = ["write_report"]

SHOWN_PAIRS = 6  # of each kind: 24 pictures
LISTED_BROKEN = 50
ROC_HINT = "dotted: fewer than 30 false accepts, uncertain; shaded: so for every curve"
PICTURE_SIZE = 112
NO_METRICS = {"epoch", "loss", "loss_average", "seconds", "step", "kind"}
"""What the log holds beside the curves that are drawn one by one."""
CURVES = {"learning_rate": "Learning rate", "images_per_second": "Images per second", "memory_mib": "Memory, MiB"}
HARDEST = ("same", "scores", "first", "second", "first_where", "second_where")

Pair = tuple[bool, float, int, int, str, str]
"""Whether it is genuine, its score, the positions of both images, and where they are."""


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
    line, state = drawn_from(_heading, run, folder, f"{log}, environment.json or config.yaml")
    drawn = (
        (_summary, "", f"{log}, {evaluation}"),
        (_verification, people_title(run.evaluation), evaluation),
        (_training, "Training", log),
        (lambda run: _hardest(run, store if pictures else None), "Hardest pairs", evaluation),
        (_timing, "Timing, memory and versions", f"{log}, {evaluation}"),
        (_broken, "Broken images", f"{log} or {evaluation}"),
    )
    sections = [Section(title, drawn_from(draw, run, folder, source)) for draw, title, source in drawn]
    if run.config_text:
        sections.append(Section("Configuration", [Listing("config.yaml", run.config_text)]))
    shown = [section for section in sections if section.blocks]
    return Page(f"{run.name} · attfc", run.name, line, shown, state).write(folder / "report.html")


def _heading(run: RunRecord) -> tuple[str, str]:
    """What the run is of, and its state."""
    named = [figure_at(run.config, (part, "name")) or run.config.get(part) for part in ("head", "backbone")]
    parts = [*named, figure_at(run.config, ("data", "root")), run.environment.get("started")]
    steps = run.train["step"][1]
    at = f" at step {steps[-1]:,.0f}" if steps else ""
    state = "finished" if run.finished else f"not finished{at}: interrupted or still running"
    return " · ".join(part for part in parts if isinstance(part, str) and part), state


def _summary(run: RunRecord) -> list[Block]:
    figures = run.evaluation
    cards = _cards_of_evaluation(figures) if figures else []
    if losses := run.train["loss_average"][1] or run.train["loss"][1]:
        cards.append(Card("Training loss", _number(losses[-1]), more=f"from {_number(losses[0])}"))
    if speeds := run.train["images_per_second"][1]:
        cards.append(Card("Images per second", f"{statistics.median(speeds):,.0f}", more="median, queries trained"))
    if memory := run.train["memory_mib"][1]:
        cards.append(Card("Peak memory", _mebibytes(max(memory)), more="of the training process"))
    missing = "This run has not been evaluated: there are no verification figures."
    note = people_warning(figures) if figures else missing
    return [Notes([note] if note else []), Cards(cards)]


class _Stated:
    """The figures of an evaluation as cells: the number as it is shown, and its interval."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self.figures, self.intervals = figures, stated_intervals(figures)

    def __call__(self, *path: str) -> tuple[str, str]:
        value = figure_at(self.figures, path)
        return (_number if path[-1] == "auc" else _percent)(value), bounds_text(self.intervals, path)

    def number(self, *path: str) -> float | None:
        return finite(figure_at(self.figures, path))


def _cards_of_evaluation(figures: Mapping[str, Any]) -> list[Card]:
    stated, behind = _Stated(figures), people_behind(figures)
    std, probes = stated.number("accuracy_std"), stated.number("rank_one_probes")
    found = f"{probes:,.0f} probes, leave one out" if probes else "leave one out"
    told = (
        ("Accuracy on pairs", stated("accuracy"), "" if std is None else f"± {100 * std:.2f} over folds"),
        ("Area under the ROC", stated("auc"), "1 is perfect, 0.5 chance"),
        ("Equal error rate", stated("eer"), "lower is better"),
        _certain_tar(stated),
        ("Rank-one identification", stated("rank_one"), found),
    )
    return [Card(name, *cell, "; ".join(filter(None, (more, behind)))) for name, cell, more in told]


def _certain_tar(stated: _Stated) -> tuple[str, tuple[str, str], str]:
    """The lowest FAR that rests on at least 30 false accepts, all pairs before the list; else the highest stated."""
    found: list[tuple[bool, float, str, FigurePath, str]] = []
    for source, place in (("all pairs", ("all_pairs",)), ("list of pairs", ())):
        tars = figure_at(stated.figures, (*place, "tar_at_far"))
        impostors = stated.number(*place, "impostor_pairs") or 0.0
        for far in tars if isinstance(tars, dict) else ():
            if finite(tars[far]) is not None:
                few = float(far) * impostors < CERTAIN_FALSE_ACCEPTS - 1e-9
                more = f"{source}, {impostors:,.0f} impostor"
                found.append((few, -float(far) if few else float(far), far, (*place, "tar_at_far", far), more))
    if not found:
        return "TAR at FAR", ("–", ""), "too few impostor pairs"
    _, _, far, path, more = min(found, key=lambda one: one[:2])
    return f"TAR at FAR {float(far):g}", stated(*path), more


def _list_of_pairs(run: RunRecord) -> tuple[Float64, Bools] | None:
    """Scores and kinds of the list, if there are any of both kinds."""
    scores, same = run.arrays.get("scores"), run.arrays.get("same")
    if scores is None or same is None or scores.shape != same.shape or len(np.unique(same)) < 2:
        return None
    return scores.astype(np.float64), same.astype(np.bool_)


def _verification(run: RunRecord) -> list[Block]:
    figures = run.evaluation
    if not figures:
        return []
    drawn: list[Block] = []
    if (listed := _list_of_pairs(run)) is not None:
        curve, impostors = None, finite(figure_at(figures, ("all_pairs", "impostor_pairs")))
        if impostors and len(run.arrays.get("all_pairs_far", ())):
            curve = (run.arrays["all_pairs_far"], run.arrays["all_pairs_tar"], int(impostors))
        drawn = [
            Figure("True accepts over false accepts", roc_figure(*listed, curve), ROC_HINT),
            Figure("Scores of the pairs", score_figure(*listed, finite(figures.get("threshold")))),
        ]
    drawn += [_far_table(figures), Table(_pair_rows(figures), title="Figures of the pairs")]
    return [
        Beside(drawn),
        Hint(checked_line(figures)),
        Hint(_about_intervals(figures)),
        Notes([*texts(figures.get("notes")), *texts(figures.get("interval_notes"))]),
    ]


def _about_intervals(figures: Mapping[str, Any]) -> str:
    """What the brackets are, where there are any."""
    confidence, resamples = (finite(figure_at(figures, ("uncertainty", name))) for name in ("confidence", "resamples"))
    if confidence is None or resamples is None or not stated_intervals(figures):
        return ""
    people = finite(figures.get("interval_identities"))
    told = "" if people is None else f" ({people:,.0f} with several images)"
    return (
        f"In brackets: {100 * confidence:g} % intervals, from {resamples:,.0f} bootstrap resamples of the identities{told}: how the figures "
        "vary with the people. Whether another run is better is said by attfc compare."
    )


def _far_table(figures: Mapping[str, Any]) -> Table:
    stated, columns = _Stated(figures), tar_columns(figures)
    tars = {path: tar if isinstance(tar := figure_at(figures, path), dict) else {} for path in columns.values()}
    rows: list[list[Cell]] = []
    for far in sorted({far for tar in tars.values() for far in tar}, key=float, reverse=True):
        cells = [
            "–" if far not in tar else "not stated" if tar[far] is None else stated(*path, far)
            for path, tar in tars.items()
        ]
        rows.append([f"FAR {far}", *cells])
    counts = {
        key: [count_text(stated.number(*path[:-1], key)) for path in tars]
        for key in ("genuine_pairs", "impostor_pairs")
    }
    rows += [[key.replace("_", " "), *count] for key, count in counts.items()]
    return Table(rows, ("", *columns), title="TAR at FAR")


def _pair_rows(figures: Mapping[str, Any]) -> list[list[Cell]]:
    stated = _Stated(figures)
    std, skipped, images = map(stated.number, ("accuracy_std", "skipped_pairs", "images"))
    accuracy, bounds = stated("accuracy")
    rows: list[list[Cell]] = [
        ["accuracy", (accuracy + ("" if std is None else f" ± {100 * std:.2f}"), bounds)],
        ["threshold (cosine)", _number(figures.get("threshold"))],
        ["equal error rate", stated("eer")],
        ["area under the ROC", stated("auc")],
    ]
    if isinstance(source := figures.get("pair_source"), str):
        rows.append(["pairs from", source])
    if skipped is not None:
        rows.append(["pairs skipped", count_text(skipped)])
    return rows if images is None else [*rows, ["images embedded", count_text(images)]]


def _training(run: RunRecord) -> list[Block]:
    drawn: list[Block] = []
    losses, averages = run.train["loss"], run.train["loss_average"]
    if losses[0]:
        lines, hint = [("loss", *losses)], ""
        if averages[0]:
            lines = [("_loss", *losses), ("average", *averages)]
            hint = "faint: the step's loss; strong: its running average"
        drawn.append(Figure("Loss", line_figure(lines, "loss over steps", key="loss"), hint))
    evaluated = columns_of({**record, "tar": _tar_of(record)} for record in run.evaluations)
    names = (("accuracy", "accuracy"), ("rank-one", "rank_one"), ("TAR at FAR 0.01", "tar"))
    lines = [(title, *evaluated[name]) for title, name in names if len(evaluated[name][0]) > 1]
    if lines:
        svg = line_figure(lines, "figures over steps", key="evaluation", markers=True)
        drawn.append(Figure("Evaluation over steps", svg))
    others = sorted(run.train.keys() - NO_METRICS - CURVES.keys())
    curves = {**CURVES, **{name: name.replace("_", " ").capitalize() for name in others}}
    for place, (name, caption) in enumerate(curves.items()):
        steps, values = run.train[name]
        if not steps or (name == "memory_mib" and max(values) < 1.05 * min(values)):
            continue
        svg = line_figure([(caption, steps, values)], f"{caption} over steps", key=f"train{place}", from_zero=True)
        drawn.append(Figure(caption, svg))
    torn = "The last line of metrics.jsonl was cut short (a killed process) and is left out."
    return [Beside(drawn) if drawn else Hint("No training step was logged."), Notes([torn] if run.torn else [])]


def _tar_of(figures: Mapping[str, Any]) -> object:
    holder = figures["all_pairs"] if isinstance(figures.get("all_pairs"), dict) else figures
    return figure_at(holder, ("tar_at_far", "0.01"))


def _hardest_pairs(run: RunRecord, store: Store | None) -> list[Pair]:
    """Worst genuine pairs first, then worst impostor pairs."""
    arrays = run.arrays
    columns = [f"hardest_{name}" for name in HARDEST]
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
            both = int(arrays["first"][place]), int(arrays["second"][place])
            names = [store.where(p) if store is not None and p < len(store) else f"position {p}" for p in both]
            rows.append((kind, float(scores[place]), *both, names[0], names[1]))
    return rows


def _hardest(run: RunRecord, store: Store | None) -> list[Block]:
    rows = _hardest_pairs(run, store)
    blocks: list[Block] = []
    for kind, title in (
        (True, "Genuine pairs with the lowest scores"),
        (False, "Impostor pairs with the highest scores"),
    ):
        of_kind = [row for row in rows if row[0] == kind]
        if not of_kind:
            continue
        shown = [] if store is None else [_faces(row, store) for row in of_kind[:SHOWN_PAIRS]]
        rest = [(f"{score:.4f}", one, other) for _, score, _, _, one, other in of_kind[len(shown) :]]
        table = Table(rest, ("cosine", "first image", "second image"), numbers_from=9)
        blocks += [FacePairs(title, shown), table]
    hint = "Often wrong labels, or very different poses and ages: look at them before trusting the last tenth of a percent."
    return [Hint(hint), *blocks] if blocks else []


def _faces(pair: Pair, store: Store) -> tuple[list[tuple[str, str]], str]:
    """A pair with its faces, as `FacePairs` takes them."""
    _, score, first, second, *names = pair
    for position, where in zip((first, second), names, strict=True):
        if position >= len(store) or store.where(position) != where:
            found = store.where(position) if position < len(store) else f"only {len(store)} images"
            raise UserError(
                f"image {position} of the evaluation is {where}, but {store.name} has {found}: "
                "pass the store that was evaluated, unchanged"
            )
    pictures = map(_picture, store.images([first, second], PICTURE_SIZE).pixels)
    return list(zip(pictures, names, strict=True)), f"{score:.3f}"


def _picture(pixels: UInt8) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _timing(run: RunRecord) -> list[Block]:
    rows: dict[str, str] = {}
    steps, epochs, seconds, speeds, memory = (
        run.train[name][1] for name in ("step", "epoch", "seconds", "images_per_second", "memory_mib")
    )
    if steps:
        rows["steps"] = f"{steps[-1]:,.0f}" + (f" ({epochs[-1]:.2f} epochs)" if epochs else "")
    if seconds:
        rows["training time"] = _duration(seconds[-1])
    if speeds:
        rows["images per second, median"] = f"{statistics.median(speeds):,.1f}"
        rows["images per second, lowest and highest"] = f"{min(speeds):,.1f} – {max(speeds):,.1f}"
    if memory:
        rows["peak memory"] = _mebibytes(max(memory))
    taken, rate = (finite(run.evaluation.get(name)) for name in ("embedding_seconds", "embedded_images_per_second"))
    if taken is not None:
        rows["embedding for the evaluation"] = _duration(taken) + (f", {rate:,.1f} images/s" if rate else "")
    plain = {name: value for name, value in run.environment.items() if not isinstance(value, dict | list)}
    about = {
        "Timing and memory": rows,
        "Machine": run.environment.get("machine"),
        "Versions": run.environment.get("versions"),
        "Environment": plain,
    }
    tables = [
        Table([(str(name), str(value)) for name, value in entries.items()], title=title)
        for title, entries in about.items()
        if isinstance(entries, dict) and entries
    ]
    return [Beside(tables)] if tables else []


def _broken(run: RunRecord) -> list[Block]:
    rows = {
        (str(record.get("where", record.get("position"))), str(record.get("reason", "")), "training")
        for record in run.broken
    }
    where, reasons = run.arrays.get("broken_where"), run.arrays.get("broken_reasons")
    if where is not None and reasons is not None:
        found = zip(where.tolist(), reasons.tolist(), strict=True)
        rows |= {(str(place), str(reason), "evaluation") for place, reason in found}
    if not rows:
        return []
    more = f", the first {LISTED_BROKEN} of them listed" if len(rows) > LISTED_BROKEN else ""
    hint = f"{len(rows):,} broken image{'s' if len(rows) > 1 else ''}{more}. They were replaced or skipped."
    return [Hint(hint), Table(sorted(rows)[:LISTED_BROKEN], ("image", "reason", "found in"), numbers_from=9)]


def _percent(value: object) -> str:
    """Return "93.60 %", a dash for what is no number."""
    number = finite(value)
    return "–" if number is None else f"{100 * number:.2f} %"


def _number(value: object) -> str:
    """Return a number in four places or, from 10 on, two; a dash for what is none."""
    number = finite(value)
    return "–" if number is None else f"{number:.4f}" if abs(number) < 10 else f"{number:,.2f}"


def _duration(seconds: float) -> str:
    """Return "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _mebibytes(value: float) -> str:
    """Return "512 MiB" or "12.3 GiB"."""
    return f"{value / 1024:,.1f} GiB" if value >= 10240 else f"{value:,.0f} MiB"
