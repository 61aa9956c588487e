"""Figures of a list of scored pairs: k-fold accuracy, ROC, AUC, equal error rate, TAR at FAR.

Everything is exact: no histogram, no subsample, ties counted as ties. Scores are similarities (cosines; higher = same
person) in float64. The cost is a few sorts: O(folds P log P) time, O(P) memory.

A figure that the pairs cannot state is None, with a note that says how many pairs it would take; it is never made up.

Sources: LFW protocol (Huang et al. 2007), the 10-fold accuracy with the threshold taken from the other nine folds.
`evaluate_pairs` tries the thresholds of the published scripts, 400 squared distances, as they do: contiguous folds, same
when the squared distance of the unit vectors is below the threshold, the strictest of equally good thresholds. Scores
of any other kind (`evaluate_scores`) are cut in the gaps between all scores that occur. Differs from the
scripts: TAR at FAR is taken on all pairs at once, at a FAR that does not exceed the one asked for; they take each fold's
from the others by interpolation (pairs), or the nearest point of the curve, on either side (`tar_at_nearest_far`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.rates import FARS, far_name, pairs_needed, tar_at_far, tar_of_kinds
from attfc.evaluation.score_checks import checked_pairs

__all__ = [
    "DISTANCE_GRID",
    "FARS",
    "PairScores",
    "Roc",
    "area_under_roc",
    "best_threshold",
    "cosine_of_pairs",
    "crossing",
    "equal_error_rate",
    "evaluate_pairs",
    "evaluate_scores",
    "far_name",
    "fold_numbers",
    "pairs_needed",
    "roc",
    "squared_distances_of_pairs",
    "tar_at_far",
    "tar_at_nearest_far",
    "tar_of_kinds",
    "unit_rows",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Thresholds = Literal["exact", "grid"]

DISTANCE_GRID: Floats = np.arange(0, 4, 0.01)
"""Squared distances of unit vectors that are tried as thresholds, as in the published scripts."""


@dataclass(frozen=True, eq=False)
class Roc:
    """The whole ROC curve, one point a distinct score, from the strictest threshold to the laxest.

    Point 0 is (0, 0) at threshold +inf; at point k every pair with score >= thresholds[k] is accepted.
    """

    far: Floats
    tar: Floats
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class PairScores:
    """The figures of one list of pairs.

    `accuracy` and `std` are mean and standard deviation (of the population) over the folds; `threshold` is the cosine
    that is best on all pairs together, for use outside (the accuracy does not use it); `tar_at_far` holds None where
    too few impostor pairs exist to state the FAR, and `notes` says so.
    """

    accuracy: float
    std: float
    threshold: float
    auc: float
    eer: float
    tar_at_far: dict[float, float | None]
    fold_accuracies: tuple[float, ...]
    genuine: int
    impostors: int
    notes: tuple[str, ...] = ()
    scores: Floats = field(default_factory=lambda: np.zeros(0), repr=False)
    same: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in the form of a run folder: plain JSON types, FARs as text, unknown figures as None."""
        return {
            "pairs": self.genuine + self.impostors,
            "genuine_pairs": self.genuine,
            "impostor_pairs": self.impostors,
            "accuracy": self.accuracy,
            "accuracy_std": self.std,
            "fold_accuracies": list(self.fold_accuracies),
            "threshold": self.threshold,
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "notes": list(self.notes),
        }


def unit_rows(vectors: npt.NDArray[Any] | Tensor) -> Floats:
    """Return the rows at length 1, in float64 on the CPU.

    Raises:
        UserError: a row holds NaN or infinity, or has length 0; the message names the first such row and counts them.
    """
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().to("cpu", torch.float64).numpy()
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise UserError(f"embeddings have shape {rows.shape}: pass one row per image, (N, D)")
    # Scaled by the largest element first: a row of tiny or huge numbers has a direction too, but its squares overflow.
    peak = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(peak) & (peak > 0)).ravel())
    if bad.size:
        first = int(bad[0])
        what = "length 0" if peak[first, 0] == 0 else "NaN or infinity"
        raise UserError(
            f"embedding {first} has {what} ({bad.size} of {len(rows)} embeddings are unusable): "
            "check the model for divergence, lower the learning rate or take an earlier checkpoint"
        )
    scaled = rows / peak
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float64)


def cosine_of_pairs(unit_ND: npt.NDArray[Any], first_P: Ints, second_P: Ints) -> Floats:
    """Return the cosines of pairs of unit rows, (P,) float64, 65,536 pairs at a time."""
    scores = np.empty(len(first_P), dtype=np.float64)
    for start in range(0, len(first_P), 65536):
        part = slice(start, start + 65536)
        left, right = unit_ND[first_P[part]].astype(np.float64), unit_ND[second_P[part]].astype(np.float64)
        scores[part] = np.einsum("pd,pd->p", left, right)
    return scores


def squared_distances_of_pairs(unit_ND: npt.NDArray[Any], first_P: Ints, second_P: Ints) -> Floats:
    """Return |a - b|^2 of pairs of rows, (P,) float64, from the differences as the published scripts do, not as 2 - 2 cos."""
    distances = np.empty(len(first_P), dtype=np.float64)
    for start in range(0, len(first_P), 65536):
        part = slice(start, start + 65536)
        difference = unit_ND[first_P[part]].astype(np.float64) - unit_ND[second_P[part]].astype(np.float64)
        distances[part] = np.sum(np.square(difference), axis=1)
    return distances


def fold_numbers(pairs: int, folds: int) -> Ints:
    """Number P pairs by contiguous folds, as the LFW protocol does; the first P % folds of them hold one more pair.

    >>> fold_numbers(5, 2)
    array([0, 0, 0, 1, 1])
    """
    if not 2 <= folds <= pairs:
        raise UserError(
            f"{pairs} pairs cannot be split into {folds} folds: folds must be between 2 and the number of pairs"
        )
    sizes = np.full(folds, pairs // folds, dtype=np.int64)
    sizes[: pairs % folds] += 1
    return np.repeat(np.arange(folds, dtype=np.int64), sizes)


def _counts(scores_P: Floats, same_P: Bools) -> tuple[Ints, Ints, Floats]:
    """Return false accepts, true accepts and threshold at every distinct score, falling; int64, int64, float64."""
    rising = np.sort(scores_P)
    values = rising[np.append(0, np.flatnonzero(np.diff(rising)) + 1)]  # distinct, rising
    at_least = rising.size - np.searchsorted(rising, values)
    genuine = np.sort(scores_P[same_P])
    true_accepts = genuine.size - np.searchsorted(genuine, values)
    return (at_least - true_accepts)[::-1], true_accepts[::-1], values[::-1]


def roc(scores: npt.ArrayLike, same: npt.ArrayLike) -> Roc:
    """Return the ROC curve of scored pairs: every distinct score is a point, equal scores share one.

    Args:
        scores: (P,) similarities.
        same: (P,) true where both images show one person.

    Raises:
        UserError: scores that are not finite, or pairs of one kind only.
    """
    false_accepts, true_accepts, thresholds = _counts(*checked_pairs(scores, same))
    return Roc(
        far=np.concatenate([[0.0], false_accepts / false_accepts[-1]]),
        tar=np.concatenate([[0.0], true_accepts / true_accepts[-1]]),
        thresholds=np.concatenate([[np.inf], thresholds]),
    )


def area_under_roc(scores: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """Return P(genuine score > impostor score) + P(equal) / 2, counted in integers (Mann-Whitney).

    >>> area_under_roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    scores_P, same_P = checked_pairs(scores, same)
    genuine, impostor = scores_P[same_P], np.sort(scores_P[~same_P])
    below = np.searchsorted(impostor, genuine, side="left")
    not_above = np.searchsorted(impostor, genuine, side="right")
    return int(below.sum() + not_above.sum()) / (2 * genuine.size * impostor.size)


def equal_error_rate(scores: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """Return the error rate at which false accepts equal false rejects, on the straight line between two ROC points.

    >>> equal_error_rate([0.9, 0.5, 0.6, 0.1], [True, True, False, False])
    0.5
    """
    scores_P, same_P = checked_pairs(scores, same)
    values, counts = np.unique(scores_P[same_P], return_counts=True)
    impostor = np.sort(scores_P[~same_P])
    accepted = np.cumsum(counts[::-1])
    # Down the genuine scores: first the impostors between two of them come in, then those equal to the next with it.
    before = 1.0 - (accepted - counts[::-1]) / accepted[-1]  # false rejects before that genuine score comes in
    after = 1.0 - accepted / accepted[-1]
    above = 1.0 - np.searchsorted(impostor, values[::-1], side="right") / impostor.size
    with_equal = 1.0 - np.searchsorted(impostor, values[::-1], side="left") / impostor.size
    return crossing(before, after, above, with_equal)


def crossing(before: Floats, after: Floats, above: Floats, with_equal: Floats) -> float:
    """Return the equal error rate: down the distinct genuine scores, on the straight line between two points of the curve.

    Args:
        before, after: false rejects before and after the pairs of a score come in.
        above, with_equal: false accepts above that score, and with those equal to it.
    """
    k = int(np.argmax(with_equal >= after))
    if above[k] >= before[k]:
        return float(before[k])
    gap = above[k] - before[k]
    share = gap / (gap - (with_equal[k] - after[k]))
    return float(above[k] + share * (with_equal[k] - above[k]))


def tar_at_nearest_far(scores: npt.ArrayLike, same: npt.ArrayLike, fars: Sequence[float] = FARS) -> dict[float, float]:
    """Return TAR at the point of the ROC whose FAR is nearest, as the published IJB scripts print it.

    The curve is reduced to its corners first, as scikit-learn's `roc_curve` does; of equally near points the one
    with the higher TAR is taken. The FAR of that point may be above the one asked for: at 15.6 million impostor
    pairs, FAR 1e-6 is 16 false accepts here and 15 in `tar_at_far`. For comparing with published tables, not for use.

    >>> scores, same = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
    >>> tar_at_nearest_far(scores, same, [0.3])
    {0.3: 1.0}
    """
    false_accepts, true_accepts, _ = _counts(*checked_pairs(scores, same))
    turns = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
    corner = np.ones(len(false_accepts), dtype=np.bool_)
    corner[1:-1] = turns
    far = np.append(0.0, false_accepts[corner] / false_accepts[-1])[::-1]
    tar = np.append(0.0, true_accepts[corner] / true_accepts[-1])[::-1]
    return {rate: float(tar[np.argmin(np.abs(far - rate))]) for rate in fars}


def _candidates(scores_P: Floats) -> Floats:
    """Thresholds from strict to lax; a pair is accepted when its score >= threshold."""
    values = np.unique(scores_P)[::-1]
    middle = (values[:-1] + values[1:]) / 2
    middle = np.where(middle > values[1:], middle, values[:-1])  # neighbours in floating point have no middle
    return np.concatenate([[np.nextafter(values[0], np.inf)], middle, [values[-1]]])


def _best_distance(distances_P: Floats, same_P: Bools) -> float:
    """Return the squared distance of the grid with the most right answers, the smallest of the best."""
    genuine, impostor = np.sort(distances_P[same_P]), np.sort(distances_P[~same_P])
    right = (
        np.searchsorted(genuine, DISTANCE_GRID) + impostor.size - np.searchsorted(impostor, DISTANCE_GRID)
    )  # same: distance < grid
    return float(DISTANCE_GRID[np.argmax(right)])


def best_threshold(scores: npt.ArrayLike, same: npt.ArrayLike, thresholds: Thresholds = "exact") -> float:
    """Return the threshold with the most right answers ("same" when score >= threshold).

    `exact` tries every gap between two scores and one beyond either end; of several best ones it takes the middle one.
    `grid` takes the scores for cosines, tries squared distances (2 - 2 cos) 0, 0.01 ... 3.99 and takes the strictest of
    the best, as the published scripts do.

    >>> best_threshold([0.9, 0.7, 0.3, 0.1], [True, True, False, False])
    0.5
    """
    scores_P, same_P = checked_pairs(scores, same, both_kinds=False)
    return _best_threshold(scores_P, same_P, thresholds)


def _best_threshold(scores_P: Floats, same_P: Bools, thresholds: Thresholds = "exact") -> float:
    if thresholds == "grid":
        return _as_cosine(_best_distance(2.0 - 2.0 * scores_P, same_P))
    genuine, impostor = np.sort(scores_P[same_P]), np.sort(scores_P[~same_P])
    candidates = _candidates(scores_P)
    right = genuine.size - np.searchsorted(genuine, candidates) + np.searchsorted(impostor, candidates)
    best = np.flatnonzero(right == right.max())
    return float(candidates[best[best.size // 2]])


def _as_cosine(distance: float) -> float:
    """The least cosine whose squared distance is below `distance`."""
    return float(np.nextafter(1.0 - distance / 2.0, np.inf))


def evaluate_scores(
    scores: npt.ArrayLike,
    same: npt.ArrayLike,
    folds: int | npt.ArrayLike = 10,
    *,
    thresholds: Thresholds = "exact",
    fars: Sequence[float] = FARS,
    squared_distances: npt.ArrayLike | None = None,
) -> PairScores:
    """Return all figures of scored pairs.

    Args:
        scores: (P,) similarities, higher = same person.
        same: (P,) true where both images show one person.
        folds: number of contiguous folds in the order given (LFW), or (P,) the fold number of every pair.
        thresholds: candidates for the accuracy, see `best_threshold`; each fold's comes from the other folds alone.
        fars: false accept rates for TAR at FAR.
        squared_distances: (P,) of the unit vectors, which the grid is of; None: 2 - 2 score.

    Raises:
        UserError: scores not finite, pairs of one kind only, fewer pairs than folds, one fold only.
    """
    scores_P, same_P = checked_pairs(scores, same)
    if thresholds not in ("exact", "grid"):
        raise UserError(f"thresholds={thresholds!r} is unknown: use 'exact' or 'grid'")
    fold_P = fold_numbers(scores_P.size, int(folds)) if np.ndim(folds) == 0 else np.asarray(folds, dtype=np.int64)  # type: ignore[arg-type]
    if fold_P.shape != scores_P.shape:
        raise UserError(f"{fold_P.shape} fold numbers do not match {scores_P.shape} scores: pass one per pair")
    numbers = np.unique(fold_P)
    if numbers.size < 2:
        raise UserError("all pairs are in one fold: the threshold of a fold comes from the others, so use at least 2")
    distances_P = 2.0 - 2.0 * scores_P if squared_distances is None else np.asarray(squared_distances, np.float64)
    if not np.isfinite(distances_P).all():
        first = int(np.flatnonzero(~np.isfinite(distances_P))[0])
        raise UserError(f"squared distance {first} is {distances_P[first]}: check the model for divergence")
    if distances_P.shape != scores_P.shape:
        raise UserError(
            f"{distances_P.shape} squared distances do not match {scores_P.shape} scores: pass one per pair"
        )
    accuracies = []
    for number in numbers:
        test = fold_P == number
        if thresholds == "grid":
            accepted = distances_P[test] < _best_distance(distances_P[~test], same_P[~test])
        else:
            accepted = scores_P[test] >= _best_threshold(scores_P[~test], same_P[~test])
        accuracies.append(float(np.mean(accepted == same_P[test])))
    genuine, impostor = scores_P[same_P], scores_P[~same_P]
    tars = tar_of_kinds(genuine, impostor, fars)
    notes = tuple(
        f"TAR at FAR {far_name(far)} is not stated: {impostor.size:,} impostor pairs, "
        f"at least {pairs_needed(far):,} needed"
        for far, tar in tars.items()
        if tar is None
    )
    return PairScores(
        accuracy=float(np.mean(accuracies)),
        std=float(np.std(accuracies)),
        threshold=_as_cosine(_best_distance(distances_P, same_P))
        if thresholds == "grid"
        else _best_threshold(scores_P, same_P),
        auc=area_under_roc(scores_P, same_P),
        eer=equal_error_rate(scores_P, same_P),
        tar_at_far=tars,
        fold_accuracies=tuple(accuracies),
        genuine=genuine.size,
        impostors=impostor.size,
        notes=notes,
        scores=scores_P,
        same=same_P,
    )


def evaluate_pairs(
    embeddings: npt.NDArray[Any] | Tensor,
    same: npt.ArrayLike,
    folds: int | npt.ArrayLike = 10,
    *,
    thresholds: Thresholds = "grid",
    fars: Sequence[float] = FARS,
) -> PairScores:
    """Score pairs of neighbouring rows by cosine and return all figures, the accuracy as the published scripts compute it.

    Args:
        embeddings: (2P, D) rows 2i and 2i + 1 are pair i; any length but 0.
        same: (P,) true where both images show one person.
        folds, thresholds, fars: see `evaluate_scores`.

    Raises:
        UserError: as `evaluate_scores`; a row with NaN or of length 0; rows that are not two a pair.
    """
    rows = unit_rows(embeddings)
    pairs = np.asarray(same).size
    if len(rows) != 2 * pairs:
        raise UserError(f"{len(rows)} embeddings for {pairs} pairs: rows 2i and 2i + 1 are pair i, so pass {2 * pairs}")
    first = np.arange(0, len(rows), 2)
    return evaluate_scores(
        cosine_of_pairs(rows, first, first + 1),
        same,
        folds,
        thresholds=thresholds,
        fars=fars,
        squared_distances=squared_distances_of_pairs(rows, first, first + 1) if thresholds == "grid" else None,
    )
