"""What an export costs, measured on faces: false non-matches at the operating point, paired by identity; time per face; bytes.

Two losses count, and the worse decides: at the threshold that the model had before, which whoever uses it keeps, and at the export's own threshold of
the same FMR. An export that only moved all scores loses nothing at the second and much at the first. Cost: up to 2,000 faces through both models.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.embed import Embedder
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.all_pairs_scores import SPARE_FOR_INTERVALS, AllPairs, score_all_pairs
from attfc.evaluation.protocols.held_out import gallery_of
from attfc.evaluation.rates import far_name, pairs_needed
from attfc.evaluation.results import EvaluationResult, compare_results
from attfc.evaluation.samples import ShareSample
from attfc.typing import Json, Progress

__all__ = ["Cost", "Terms", "measure_cost", "operating_threshold"]

_FACES, _RESAMPLES, _TIMED = 2_000, 400, 20


@dataclass(frozen=True)
class Terms:
    """On what terms an export is accepted.

    Attributes:
        calibration: whose faces set the ranges of the numbers. faces: on whose the cost is measured, of several people.
        fmr: false match rate of the operating point. threshold: of it, as it was calibrated; None: the one that gives the FMR on these faces.
        most_loss: FNMR that may be lost there, in points of percent; more is accepted where the interval of the loss includes 0.
        progress: called as (faces done, faces) of each model.
    """

    calibration: Store
    faces: Store
    fmr: float = 1e-3
    most_loss: float = 0.2
    progress: Progress | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Cost:
    """What an export costs.

    Attributes:
        faces, people, source: on what it was measured; people with several faces.
        fmr, threshold: the operating point, of the model before.
        fnmr, fnmr_before, fmr_after, fmr_before: at it, as shares.
        loss: FNMR lost at that threshold; loss_at_fmr: at the export's own threshold of the same FMR.
        milliseconds, milliseconds_before: per face, one at a time, medians.
        bytes, bytes_before: of the files.
        notes: what a reader should know.
    """

    faces: int
    people: int
    source: str
    fmr: float
    threshold: float
    fnmr: float
    fnmr_before: float
    fmr_after: float
    fmr_before: float
    loss: Interval
    loss_at_fmr: Interval
    milliseconds: float
    milliseconds_before: float
    bytes: int
    bytes_before: int
    notes: tuple[str, ...] = ()

    def accepted(self, most_loss: float) -> bool:
        """Whether neither loss is beyond `most_loss` points and certain, and the FMR at the threshold that is kept has not doubled."""
        losses = (self.loss, self.loss_at_fmr)
        small = all(100 * each.value <= most_loss or (each.low is not None and each.low <= 0) for each in losses)
        return small and self.fmr_after <= 2 * max(self.fmr_before, self.fmr)

    def text(self) -> str:
        """Return the metrics in one line."""
        losses = [
            f"{100 * each.value:.2f}" if each.low is None else each.text(2, percent=True)
            for each in (self.loss, self.loss_at_fmr)
        ]
        return (
            f"FNMR {100 * self.fnmr:.2f} % (float32 {100 * self.fnmr_before:.2f} %) at threshold {self.threshold:.4f}, FMR {self.fmr_after:.2g} "
            f"(float32 {self.fmr_before:.2g}): rises by {losses[0]} points, {losses[1]} at equal FMR. Measured on {self.faces:,} faces of "
            f"{self.people:,} people of {self.source}. {self.milliseconds:.2f} ms per face (float32 {self.milliseconds_before:.2f}), "
            f"{self.bytes / 2**20:.1f} MiB (float32 {self.bytes_before / 2**20:.1f})"
        )

    def to_dict(self) -> Json:
        """Return it as plain JSON types."""
        losses = {
            name: {"value": each.value, "interval": each.plain()}
            for name, each in (("loss", self.loss), ("loss_at_fmr", self.loss_at_fmr))
        }
        return {**vars(self), **losses, "notes": list(self.notes)}


def operating_threshold(before: AllPairs, terms: Terms) -> float:
    """Return the threshold of the operating point: the calibrated one, else that of all pairs of the people at hand.

    Raises:
        UserError: they do not have 1 / FMR non-mated pairs.
    """
    threshold = before.threshold_at_far[terms.fmr]
    if threshold is None:
        raise UserError(
            f"FMR {terms.fmr:g} needs at least {pairs_needed(terms.fmr):,} pairs of different people, and there are "
            f"{before.impostor_pairs:,}: give more people (--check-images) or a higher --fmr"
        )
    return threshold if terms.threshold is None else terms.threshold


def measure_cost(before: nn.Module, after: nn.Module, terms: Terms, sizes: tuple[int, int]) -> Cost:
    """Measure an export against the model that it was made from.

    Args:
        before, after: as `open_model` gives them.
        terms: the faces and the operating point.
        sizes: bytes of both files.

    Raises:
        UserError: faces without two people, one of them with two faces; an FMR that they cannot state.
    """
    store, far = terms.faces, far_name(terms.fmr)
    positions, _ = gallery_of(store, _FACES, 0)
    scored: list[AllPairs] = []
    for model in (before, after):
        found = Embedder(model, batch_size=32).embed_within(store, positions, 0.01, progress=terms.progress)
        labels = store.labels(found.positions[found.valid])
        options: dict[str, Any] = {"fars": (terms.fmr,), "spare": SPARE_FOR_INTERVALS}
        scored.append(score_all_pairs(found.vectors[found.valid], labels, **options))
    threshold = operating_threshold(scored[0], terms)
    one, other = (_result(store, pairs, threshold) for pairs in scored)
    lost = {each.path: each for each in compare_results(one, other, _RESAMPLES)}
    kept, at_fmr = lost["kept", "tar"], lost["all_pairs", "tar_at_far", far]
    matched = [float((each.top_impostors > threshold).sum() / each.impostor_pairs) for each in scored]
    milliseconds = _milliseconds((before, after))
    return Cost(
        faces=scored[0].images,
        people=scored[0].carriers,
        source=store.name,
        fmr=terms.fmr,
        threshold=threshold,
        fnmr=1 - kept.other.value,
        fnmr_before=1 - kept.one.value,
        fmr_after=matched[1],
        fmr_before=matched[0],
        loss=kept.difference,
        loss_at_fmr=at_fmr.difference,
        milliseconds=milliseconds[1],
        milliseconds_before=milliseconds[0],
        bytes=sizes[1],
        bytes_before=sizes[0],
        notes=(*few_people(scored[0].carriers), *scored[0].notes),
    )


def _result(store: Store, pairs: AllPairs, threshold: float) -> EvaluationResult:
    """Return what a model did: TAR at its own threshold, and at the one that is kept."""
    carriers = np.unique(pairs.genuine_labels, return_inverse=True)[1]
    kept = ShareSample("tar", pairs.genuine_scores > threshold, carriers)
    figures = {"all_pairs": pairs.figures(), "kept": {"tar": float(np.mean(kept.hits))}}
    return EvaluationResult(
        "a model", "all-pairs", (store.name,), figures, {("all_pairs",): [pairs.sample()], ("kept",): [kept]}
    )


def _milliseconds(models: tuple[nn.Module, nn.Module]) -> list[float]:
    """Return the median time of one face of each model; they take turns, so that a machine that slows down slows both."""
    size = int(models[0].image_size)  # type: ignore[arg-type]
    face, spent = torch.zeros(1, 3, size, size), [[0.0] * 0, [0.0] * 0]
    with torch.no_grad():
        for turn in range(_TIMED + 2):
            for times, model in zip(spent, models, strict=True):
                start = time.perf_counter()
                model(face)
                if turn >= 2:  # the first runs allocate
                    times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in spent]
