"""One HTML file that tells a run: figures, curves, ROC, hardest pairs, timing, configuration, versions.

`run.html` has the sections and their tables, here is what they show. Faces appear only when asked for (`pictures=True` and a store), at most 24 of
them: people in a data set did not agree to be in a report. What a run has not got (no evaluation yet, interrupted) is left out and said so.
"""

import base64
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attfc.data.images import encode_image
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Interval, figure_at, in_words
from attfc.evaluation.operating_point.judging import AT_POINT
from attfc.evaluation.report import people
from attfc.evaluation.report.page import AT_IT, Cell, Figure, Stated, count_text, share_text, texts, write_page
from attfc.evaluation.report.plots import CERTAIN_FALSE_ACCEPTS, line_figure, roc_figure, score_figure
from attfc.evaluation.report.run_record import RunRecord, at_fault, columns_of, read_run
from attfc.evaluation.results import finite
from attfc.templates import macros_of
from attfc.typing import Bools, Float64, Json, PathLike, UInt8

__all__ = ["write_report"]

SHOWN_PAIRS = 6  # of each kind: 24 pictures
LISTED_BROKEN = 50
ROC_HINT = "dotted: fewer than 30 false accepts, uncertain; shaded: so for every curve"
PICTURE_SIZE = 112
NO_METRICS = {"epoch", "loss", "loss_average", "seconds", "step", "kind"}
"""What the log holds beside the curves that are drawn one by one."""
CURVES = {
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
    "memory_mib": "Memory, MiB",
    "positive_cosine": "Cosine with the own center",
    "positive_share": "Share of images with a center",
    "stored_share": "Share of images with a stored center",
    "set_aside_share": "Share of images set aside",
    "disagreeing_share": "Share of images far from their own center",
    "trained_cosine": "Cosine with the trained center",
    "trained_share": "Share of images with a trained center",
}
HARDEST = ("same", "scores", "first", "second", "first_where", "second_where")


class Pair(NamedTuple):
    """A pair of images: whether it is genuine, its score, the images' positions, and where they are."""

    same: bool
    score: float
    positions: tuple[int, int]
    names: Sequence[str]


def write_report(run_folder: PathLike, store: Store | None = None, pictures: bool = False) -> Path:
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
    parts = macros_of(
        Path(__file__).with_name("run.html"),
        run=run,
        figures=run.evaluation,
        stated=_Evaluation(run.evaluation, " %"),
        people=people,
        median=statistics.median,
        in_words=in_words,
        count=count_text,
        number=_number,
        duration=_duration,
        mebibytes=_mebibytes,
        texts=texts,
    )
    with at_fault(folder, f"{log}, environment.json or config.yaml"):
        line, state = _heading(run)
    against = run.evaluation.get("against_start")
    drawn = (
        ("", parts.summary, f"{log}, {evaluation}"),
        (people.people_title(run.evaluation), lambda: parts.verification(_scores(run)), evaluation),
        (
            "At the operating point",
            lambda: parts.at_point(list(_at_point(run))),
            "operating_point.json or evaluation.json",
        ),
        ("Against the start model", lambda: parts.against(against) if against else "", "evaluation.json"),
        ("Training", lambda: parts.training(list(_curves(run))), log),
        ("Hardest pairs", lambda: parts.hardest(list(_hardest(run, store if pictures else None))), evaluation),
        ("Timing, memory and versions", lambda: parts.timing(_environment(run)), f"{log}, {evaluation}"),
        ("Broken images", lambda: parts.broken(_broken(run), LISTED_BROKEN), f"{log} or {evaluation}"),
        ("Configuration", parts.configuration, "config.yaml"),
    )
    sections = []
    for title, draw, source in drawn:
        with at_fault(folder, source):
            sections.append((title, draw()))
    return write_page(folder / "report.html", f"{run.name} · attfc", run.name, line, sections, state)


def _heading(run: RunRecord) -> tuple[str, str]:
    """What the run is of, and its state."""
    named = [figure_at(run.config, (part, "name")) or run.config.get(part) for part in ("head", "backbone")]
    parts = [*named, figure_at(run.config, ("data", "root")), run.environment.get("started")]
    steps = run.train["step"][1]
    at = f" at step {steps[-1]:,.0f}" if steps else ""
    state = "finished" if run.finished else f"not finished{at}: interrupted or still running"
    return " · ".join(part for part in parts if isinstance(part, str) and part), state


class _Evaluation(Stated):
    """The figures of an evaluation."""

    def tars(self, path: FigurePath) -> Json:
        """FAR -> TAR, or whatever stands at a place by name."""
        found = figure_at(self.figures, path)
        return found if isinstance(found, dict) else {}

    def certain_tar(self) -> tuple[str, Cell, str]:
        """The lowest FAR that rests on at least 30 false accepts, all pairs before the list; else the highest stated."""
        found: list[tuple[bool, float, str, FigurePath, str]] = []
        for source, place in (("all pairs", ("all_pairs",)), ("list of pairs", ())):
            impostors = self.number(*place, "impostor_pairs") or 0.0
            for far, tar in self.tars((*place, "tar_at_far")).items():
                if finite(tar) is not None:
                    few = float(far) * impostors < CERTAIN_FALSE_ACCEPTS - 1e-9
                    more = f"{source}, {impostors:,.0f} non-mated"
                    found.append((few, -float(far) if few else float(far), far, (*place, "tar_at_far", far), more))
        if not found:
            return "TAR at FAR", "–", "too few non-mated pairs"
        _, _, far, path, more = min(found, key=lambda one: one[:2])
        return f"TAR at FAR {float(far):g}", self(*path), more

    def tar_rows(self, paths: Iterable[FigurePath]) -> Iterator[tuple[str, list[Cell]]]:
        """Name and cells of each row of the table of TAR at FAR: the FARs, falling, then the counts of pairs."""
        tars = {path: self.tars(path) for path in paths}
        for far in sorted({far for tar in tars.values() for far in tar}, key=float, reverse=True):
            yield (
                f"FAR {far}",
                [
                    "–" if far not in tar else "not stated" if tar[far] is None else self(*path, far)
                    for path, tar in tars.items()
                ],
            )
        for key in ("genuine_pairs", "impostor_pairs"):
            yield in_words((key,)), [count_text(self.number(*path[:-1], key)) for path in tars]


def _at_point(run: RunRecord) -> Iterator[tuple[str, Cell]]:
    """Name and cell of what the model's operating point says, and of what an evaluation found at it."""
    if point := run.point:
        calibrated = Stated({}, " %")
        calibrated.intervals["fnmr",] = Interval(point.fnmr.value, point.fnmr.low, point.fnmr.high)
        low, high = (share_text(bound) for bound in point.threshold_interval)
        yield "threshold (cosine)", (f"{point.threshold:.4f}", f"[{low}, {high}]")
        yield "FMR asked for", share_text(point.asked_fmr)
        yield "FMR, two people taken for one", (share_text(point.fmr), f"95 % sure below {point.fmr_upper:.2g}")
        yield "FNMR, one person not recognised", calibrated.cell(("fnmr",), point.fnmr.value)
        yield "measured on", f"{point.people:,} people of {point.store}"
    stated = _Evaluation(run.evaluation, " %")
    for name in stated.tars((AT_POINT,)):
        yield f"FNMR of this evaluation, {name.replace('_', ' ')}", stated(AT_POINT, name, "fnmr")
        for title, key in AT_IT.items():
            yield f"{title}, {name.replace('_', ' ')}", share_text(stated.number(AT_POINT, name, key))


def _list_of_pairs(run: RunRecord) -> tuple[Float64, Bools] | None:
    """Scores and kinds of the list, if there are any of both kinds."""
    scores, same = run.arrays.get("scores"), run.arrays.get("same")
    if scores is None or same is None or scores.shape != same.shape or len(np.unique(same)) < 2:
        return None
    return scores.astype(np.float64), same.astype(np.bool_)


def _scores(run: RunRecord) -> list[Figure]:
    """ROC and histogram of an evaluation."""
    listed = _list_of_pairs(run)
    if not run.evaluation or listed is None:
        return []
    curve, impostors = None, finite(figure_at(run.evaluation, ("all_pairs", "impostor_pairs")))
    if impostors and len(run.arrays.get("all_pairs_far", ())):
        curve = (run.arrays["all_pairs_far"], run.arrays["all_pairs_tar"], int(impostors))
    scores, same = listed
    title, cell, _ = _Evaluation(run.evaluation, " %").certain_tar()
    tar = cell if isinstance(cell, str) else cell[0]
    mated, others = (float(np.median(scores[kind])) for kind in (same, ~same))
    return [
        Figure(f"ROC: {title} is {tar}", roc_figure(*listed, curve), ROC_HINT),
        Figure(
            f"Mated pairs score {mated:.2f}, non-mated pairs {others:.2f} (medians)",
            score_figure(*listed, finite(run.evaluation.get("threshold"))),
        ),
    ]


def _curves(run: RunRecord) -> Iterator[Figure]:
    """What changed over the steps."""
    losses, averages = run.train["loss"], run.train["loss_average"]
    if losses[0] and averages[0]:
        lines = [("_loss", *losses), ("average", *averages)]
        svg = line_figure(lines, "loss over steps", key="loss")
        yield Figure(_ending("Loss", averages[1]), svg, "faint: the step's loss; strong: its running average")
    elif losses[0]:
        yield Figure(_ending("Loss", losses[1]), line_figure([("loss", *losses)], "loss over steps", key="loss"))
    evaluated = columns_of({**record, "tar": _tar_of(record)} for record in run.evaluations)
    names = (("accuracy", "accuracy"), ("rank-one", "rank_one"), ("TAR at FAR 0.01", "tar"))
    lines = [(title, *evaluated[name]) for title, name in names if len(evaluated[name][0]) > 1]
    if lines:
        svg = line_figure(lines, "metrics over steps", key="evaluation", markers=True)
        ends = ", ".join(f"{title} {values[-1]:.3f}" for title, _, values in lines)
        yield Figure(f"Evaluation over steps ends at {ends}", svg)
    others = sorted(run.train.keys() - NO_METRICS - CURVES.keys())
    curves = {**CURVES, **{name: name.replace("_", " ").capitalize() for name in others}}
    for place, (name, caption) in enumerate(curves.items()):
        steps, values = run.train[name]
        if steps and (name != "memory_mib" or max(values) >= 1.05 * min(values)):
            label = f"{caption} over steps"
            title = (
                f"{caption}: {_number(statistics.median(values))} in the median" if name == "images_per_second" else ""
            )
            svg = line_figure([(caption, steps, values)], label, key=f"train{place}", from_zero=True)
            yield Figure(title or _ending(caption, values), svg)


def _ending(caption: str, values: Sequence[float]) -> str:
    """What a curve shows, in a title."""
    return f"{caption}: {_number(values[-1])} at the end, {_number(max(values))} at most"


def _tar_of(figures: Mapping[str, Any]) -> object:
    holder = figures["all_pairs"] if isinstance(figures.get("all_pairs"), dict) else figures
    return figure_at(holder, ("tar_at_far", "0.01"))


def _hardest_pairs(run: RunRecord, store: Store | None) -> list[Pair]:
    """Worst mated pairs first, then worst non-mated pairs."""
    arrays = run.arrays
    columns = [f"hardest_{name}" for name in HARDEST]
    if all(name in arrays for name in columns):
        listed = zip(*(arrays[name].tolist() for name in columns), strict=True)
        return [Pair(same, score, (one, other), names) for same, score, one, other, *names in listed]
    known = _list_of_pairs(run)
    if known is None or "first" not in arrays or "second" not in arrays:
        return []
    scores, same = known
    pairs = []
    for kind in (True, False):
        places = np.flatnonzero(same == kind)
        for place in places[np.argsort(scores[places] if kind else -scores[places], kind="stable")][: 2 * SHOWN_PAIRS]:
            both = int(arrays["first"][place]), int(arrays["second"][place])
            names = [store.where(p) if store is not None and p < len(store) else f"position {p}" for p in both]
            pairs.append(Pair(kind, float(scores[place]), both, names))
    return pairs


def _hardest(run: RunRecord, store: Store | None) -> Iterator[tuple[str, list[tuple[Pair, list[str]]], list[Pair]]]:
    """Title, pairs with their pictures, and the other pairs, of mated and of non-mated pairs."""
    pairs = _hardest_pairs(run, store)
    for kind, title in (
        (True, "Mated pairs with the lowest scores"),
        (False, "Non-mated pairs with the highest scores"),
    ):
        of_kind = [pair for pair in pairs if pair.same == kind]
        pictured = [] if store is None else [(pair, _faces(pair, store)) for pair in of_kind[:SHOWN_PAIRS]]
        if of_kind:
            yield title, pictured, of_kind[len(pictured) :]


def _faces(pair: Pair, store: Store) -> list[str]:
    """The pictures of a pair, as addresses."""
    for position, where in zip(pair.positions, pair.names, strict=True):
        if position >= len(store) or store.where(position) != where:
            found = store.where(position) if position < len(store) else f"only {len(store)} images"
            raise UserError(
                f"image {position} of the evaluation is {where}, but {store.name} has {found}: "
                "pass the store that was evaluated, unchanged"
            )
    return list(map(_picture, store.images(list(pair.positions), PICTURE_SIZE).pixels))


def _picture(pixels: UInt8) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode_image(pixels, 'JPEG', quality=88)).decode('ascii')}"


def _environment(run: RunRecord) -> Json:
    """Title -> facts about the machine and what ran on it."""
    plain = {name: value for name, value in run.environment.items() if not isinstance(value, dict | list)}
    return {
        "Machine": run.environment.get("machine"),
        "Versions": run.environment.get("versions"),
        "Environment": plain,
    }


def _broken(run: RunRecord) -> list[tuple[str, str, str]]:
    """Image, reason and where it was found, sorted."""
    rows = {
        (str(record.get("where", record.get("position"))), str(record.get("reason", "")), "training")
        for record in run.broken
    }
    where, reasons = run.arrays.get("broken_where"), run.arrays.get("broken_reasons")
    if where is not None and reasons is not None:
        found = zip(where.tolist(), reasons.tolist(), strict=True)
        rows |= {(str(place), str(reason), "evaluation") for place, reason in found}
    return sorted(rows)


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
