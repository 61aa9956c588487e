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

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.rates import (
    FARS,
    Figures,
    allowed_weight,
    barred_place,
    check_rates,
    checked_pairs,
    not_stated,
)
from attfc.evaluation.unit_rows import cosine_of_pairs, squared_distances_of_pairs, unit_rows
from attfc.typing import Array, Bools, Float64, Int64

__all__ = [
    "Accepts",
    "PairScores",
    "Roc",
    "ScoredPairs",
    "Thresholds",
    "area_under_roc",
    "crossing",
    "equal_error_rate",
    "evaluate_pairs",
    "evaluate_scores",
    "fold_numbers",
    "last_of_value",
    "roc",
    "tar_at_nearest_far",
]

Thresholds = Literal["exact", "grid"]

DISTANCE_GRID: Float64 = np.arange(0, 4, 0.01)
"""Squared distances of unit vectors that are tried as thresholds, as in the published scripts."""


@dataclass(frozen=True, eq=False)
class Roc:
    """The whole ROC curve, one point a distinct score, from the strictest threshold to the laxest.

    Point 0 is (0, 0) at threshold +inf; at point k every pair with score >= thresholds[k] is accepted.
    """

    far: Float64
    tar: Float64
    thresholds: Float64


@dataclass(frozen=True, eq=False)
class PairScores(Figures):
    """The metrics of one list of pairs.

    `accuracy` and `std` are mean and standard deviation (of the population) over the folds. `threshold` is the cosine that is best on all
    pairs together, for use outside: the accuracy does not use it. `tar_at_far` holds None where too few non-mated pairs exist to state the
    FAR, and `notes` says so. `distances`: of each pair, if they are the thresholds.
    """

    pairs: int
    genuine_pairs: int
    impostor_pairs: int
    accuracy: float
    accuracy_std: float
    fold_accuracies: tuple[float, ...]
    threshold: float
    auc: float
    eer: float
    tar_at_far: dict[float, float | None]
    notes: tuple[str, ...]
    scores: Float64 = field(repr=False)
    same: Bools = field(repr=False)
    fold: Int64 = field(repr=False)
    distances: Float64 | None = field(repr=False)

    @property
    def std(self) -> float:
        """Standard deviation of the accuracy over the folds."""
        return self.accuracy_std


def fold_numbers(pairs: int, folds: int) -> Int64:
    """Number P pairs by contiguous folds, as the LFW protocol does; the first P % folds of them hold one more pair.

    >>> fold_numbers(5, 2)
    array([0, 0, 0, 1, 1])
    """
    if not 2 <= folds <= pairs:
        raise UserError(
            f"{pairs} pairs cannot be split into {folds} folds: folds must be between 2 and the number of pairs"
        )
    return np.sort(np.arange(pairs, dtype=np.int64) % folds)


def last_of_value(sorted_P: Float64) -> Int64:
    """Of equal neighbours the last."""
    return np.flatnonzero(np.append(sorted_P[1:] != sorted_P[:-1], True))


@dataclass(frozen=True, eq=False)
class Accepts:
    """Weight of false and of true accepts at the distinct scores, falling; the last is that of all pairs, and neither is 0."""

    scores: Array
    false: Float64
    true: Float64

    @staticmethod
    def of(scores_P: Array, same_P: Bools) -> "Accepts":
        """Return what is accepted at every distinct score, the pairs that score at least that, each pair once.

        Each kind is sorted by itself and the two are merged, which is faster than sorting the places of all pairs.
        """
        genuine = np.sort(scores_P[same_P])
        rising = np.concatenate([genuine, np.sort(scores_P[~same_P])])
        falling = np.argsort(rising, kind="stable")[::-1]
        last = last_of_value(rising[falling])
        true = np.cumsum(falling < len(genuine))[last].astype(np.float64)
        return Accepts(rising[falling[last]], last + 1 - true, true)

    @property
    def area(self) -> float:
        """P(mated score > non-mated score) + P(equal) / 2, from whole numbers (Mann-Whitney)."""
        twice_below = (
            2.0 * self.false[-1] - np.append(0.0, self.false[:-1]) - self.false
        )  # those below, and below or equal
        return float(np.diff(self.true, prepend=0.0) @ twice_below / (2.0 * self.true[-1] * self.false[-1]))

    @property
    def equal_error_rate(self) -> float:
        """The rate at which false accepts equal false rejects."""
        return crossing(1.0 - (self.false[-1] - self.false) / self.false[-1], 1.0 - self.true / self.true[-1])

    def tar(self, far: float) -> float:
        """Return the share of mated pairs above the first non-mated score that stays out; see `tar_at_far`."""
        place = barred_place(self.false, far, self.false[-1])
        return 1.0 if place == len(self.false) else float(self.true[place - 1] / self.true[-1]) if place else 0.0

    def tar_at_far(self, fars: Sequence[float]) -> dict[float, float | None]:
        """Return `tar`, None for a FAR that so few non-mated pairs cannot state."""
        return {far: self.tar(far) if allowed_weight(far, self.false[-1]) else None for far in fars}

    def tar_at_nearest_far(self, fars: Sequence[float]) -> dict[float, float]:
        """See the function of this name."""
        corner = np.ones(len(self.false), dtype=np.bool_)
        corner[1:-1] = (np.diff(self.false, 2) != 0) | (np.diff(self.true, 2) != 0)
        far = np.append(0.0, self.false[corner] / self.false[-1])[::-1]
        tar = np.append(0.0, self.true[corner] / self.true[-1])[::-1]
        return {rate: float(tar[np.argmin(np.abs(far - rate))]) for rate in fars}


class ScoredPairs:
    """P scored pairs, sorted once: every metric follows under any weights, in a pass over the pairs.

    Weights are whole numbers, how often a pair counts, so that their sums are exact.

    Args:
        scores_P: float64. same_P: true where both images show one person.
        fold_P: (P,) int64, 0 ... folds - 1, for the accuracy.
        distances_P: squared distances, for thresholds of the published grid; None: thresholds lie between the scores.
    """

    def __init__(self, scores_P: Float64, same_P: Bools, fold_P: Int64, distances_P: Float64 | None) -> None:
        self._scores_P, self._same_P, self._fold_P, self._distances_P = scores_P, same_P, fold_P, distances_P

    @functools.cached_property
    def _falling(self) -> Int64:
        return np.argsort(self._scores_P)[::-1]

    @functools.cached_property
    def _last(self) -> Int64:
        return last_of_value(self._scores_P[self._falling])

    def accepts(self, weights_P: Float64) -> Accepts:
        """Return what is accepted at every distinct score, the pairs that score at least that."""
        weights, genuine = weights_P[self._falling], self._same_P[self._falling]
        upto, true = np.cumsum(weights), np.cumsum(np.where(genuine, weights, 0.0))
        return Accepts(self._scores_P[self._falling[self._last]], (upto - true)[self._last], true[self._last])

    def accuracies(self, weights_P: Float64) -> Float64:
        """Return the share of right answers in each fold that has weight, at the threshold that is best on the other folds."""
        if self._distances_P is not None:
            right_FT = self._right_on_grid(weights_P)
            best_F = np.argmax(right_FT.sum(axis=0) - right_FT, axis=1)
            weight_F = np.bincount(self._fold_P, weights_P)
            drawn = np.flatnonzero(weight_F)
            on_grid: Float64 = right_FT[drawn, best_F[drawn]] / weight_F[drawn]
            return on_grid
        falling = self._falling[weights_P[self._falling] > 0]
        scores, fold = self._scores_P[falling], self._fold_P[falling]
        signed = np.where(self._same_P, weights_P, -weights_P)[falling]
        shares = []
        for number in np.unique(fold).tolist():
            test = fold == number
            if test.all():
                return np.array([math.nan])
            right = (scores[test] >= _best_threshold(scores[~test], signed[~test])) == (signed[test] > 0)
            weights = np.abs(signed[test])
            shares.append(weights[right].sum() / weights.sum())
        return np.array(shares)

    def best_threshold(self) -> float:
        """Return the cosine with the most right answers ("same" when score >= threshold).

        Between the scores: of several best gaps, one beyond either end included, the middle one. On the grid: the strictest of the best squared
        distances 0, 0.01 ... 3.99, as the published scripts take it, as the least cosine that it accepts.
        """
        if self._distances_P is None:
            falling = self._falling
            return _best_threshold(self._scores_P[falling], np.where(self._same_P[falling], 1.0, -1.0))
        distance = DISTANCE_GRID[np.argmax(self._right_on_grid(np.ones(len(self._same_P))).sum(axis=0))]
        return float(np.nextafter(1.0 - distance / 2.0, np.inf))

    @functools.cached_property
    def _cells(self) -> Int64:
        """Fold and the first distance of the grid that takes the pair for one person, as one number."""
        assert self._distances_P is not None
        return self._fold_P * (len(DISTANCE_GRID) + 1) + np.searchsorted(DISTANCE_GRID, self._distances_P, side="right")

    def _right_on_grid(self, weights_P: Float64) -> Float64:
        """Weight of the right answers of each fold at each distance of the grid, (folds, 400)."""
        folds = int(self._fold_P.max()) + 1
        signed = np.where(self._same_P, weights_P, -weights_P)
        steps = np.bincount(self._cells, signed, folds * (len(DISTANCE_GRID) + 1)).reshape(folds, -1)
        impostors_F = np.bincount(self._fold_P, np.where(self._same_P, 0.0, weights_P))
        return np.asarray(impostors_F[:, None] + np.cumsum(steps, axis=1)[:, :-1], dtype=np.float64)


def crossing(accepts: Float64, rejects: Float64) -> float:
    """Return the error rate at which false accepts equal false rejects, on the straight line between two points of the curve.

    Args:
        accepts: rate of false accepts, from the strictest threshold on: rising to 1.
        rejects: rate of false rejects, falling to 0. At the threshold above all scores they are 0 and 1.
    """
    k = int(np.argmax(accepts >= rejects))
    accepted, rejected = (accepts[k - 1], rejects[k - 1]) if k else (0.0, 1.0)
    if rejected == rejects[k]:
        return float(rejected)
    gap = accepted - rejected
    share = gap / (gap - (accepts[k] - rejects[k]))
    return float(accepted + share * (accepts[k] - accepted))


def _best_threshold(falling: Float64, signed: Float64) -> float:
    """Return the best gap between scores that fall; weights are negative for non-mated pairs."""
    last = last_of_value(falling)
    right = np.append(0.0, np.cumsum(signed)[last])  # less the impostors' weight, which is the same everywhere
    values = falling[last]
    best = np.flatnonzero(right == right.max())
    place = int(best[best.size // 2])
    if place == 0:
        return float(np.nextafter(values[0], np.inf))
    if place == len(values):
        return float(values[-1])
    middle = (values[place - 1] + values[place]) / 2
    return float(middle if middle > values[place] else values[place - 1])  # neighbours in floating point have no middle


def roc(scores: npt.ArrayLike, same: npt.ArrayLike) -> Roc:
    """Return the ROC curve of scored pairs: every distinct score is a point, equal scores share one.

    Args:
        scores: (P,) similarities.
        same: (P,) true where both images show one person.

    Raises:
        UserError: scores that are not finite, or pairs of one kind only.
    """
    accepts = Accepts.of(*checked_pairs(scores, same))
    return Roc(
        far=np.append(0.0, accepts.false / accepts.false[-1]),
        tar=np.append(0.0, accepts.true / accepts.true[-1]),
        thresholds=np.append(np.inf, accepts.scores),
    )


def area_under_roc(scores: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """Return P(mated score > non-mated score) + P(equal) / 2, counted in integers (Mann-Whitney).

    >>> area_under_roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    return Accepts.of(*checked_pairs(scores, same)).area


def equal_error_rate(scores: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """Return the error rate at which false accepts equal false rejects, on the straight line between two ROC points.

    >>> equal_error_rate([0.9, 0.5, 0.6, 0.1], [True, True, False, False])
    0.5
    """
    return Accepts.of(*checked_pairs(scores, same)).equal_error_rate


def tar_at_nearest_far(scores: npt.ArrayLike, same: npt.ArrayLike, fars: Sequence[float] = FARS) -> dict[float, float]:
    """Return TAR at the point of the ROC whose FAR is nearest, as the published IJB scripts print it.

    The curve is reduced to its corners first, as scikit-learn's `roc_curve` does; of equally near points the one
    with the higher TAR is taken. The FAR of that point may be above the one asked for: at 15.6 million impostor
    pairs, FAR 1e-6 is 16 false accepts here and 15 in `tar_at_far`. For comparing with published tables, not for use.

    >>> scores, same = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
    >>> tar_at_nearest_far(scores, same, [0.3])
    {0.3: 1.0}
    """
    return Accepts.of(*checked_pairs(scores, same)).tar_at_nearest_far(fars)


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
        thresholds: candidates for the accuracy: "exact" every gap between two scores, "grid" the published scripts' squared distances. Each
            fold's comes from the other folds alone.
        fars: false accept rates for TAR at FAR.
        squared_distances: (P,) of the unit vectors, which the grid is of; None: 2 - 2 score.

    Raises:
        UserError: scores not finite, pairs of one kind only, fewer pairs than folds, one fold only.
    """
    scores_P, same_P = checked_pairs(scores, same)
    if thresholds not in ("exact", "grid"):
        raise UserError(f"thresholds={thresholds!r} is unknown: use 'exact' or 'grid'")
    fold_P = fold_numbers(scores_P.size, int(folds)) if np.ndim(folds) == 0 else np.asarray(folds, dtype=np.int64)  # type: ignore[arg-type]
    distances_P = 2.0 - 2.0 * scores_P if squared_distances is None else np.asarray(squared_distances, np.float64)
    for what, values in (("fold numbers", fold_P), ("squared distances", distances_P)):
        if values.shape != scores_P.shape:
            raise UserError(f"{values.shape} {what} do not match {scores_P.shape} scores: pass one per pair")
    numbers, fold_P = np.unique(fold_P, return_inverse=True)
    if numbers.size < 2:
        raise UserError("all pairs are in one fold: the threshold of a fold comes from the others, so use at least 2")
    for first in np.flatnonzero(~np.isfinite(distances_P)).tolist():
        raise UserError(f"squared distance {first} is {distances_P[first]}: check the model for divergence")
    check_rates(fars)
    of_grid = distances_P if thresholds == "grid" else None
    pairs, accepts = ScoredPairs(scores_P, same_P, fold_P, of_grid), Accepts.of(scores_P, same_P)
    accuracies = pairs.accuracies(np.ones(len(scores_P)))
    tars, impostors = accepts.tar_at_far(fars), int(accepts.false[-1])
    return PairScores(
        pairs=len(scores_P),
        genuine_pairs=len(scores_P) - impostors,
        impostor_pairs=impostors,
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        fold_accuracies=tuple(accuracies.tolist()),
        threshold=pairs.best_threshold(),
        auc=accepts.area,
        eer=accepts.equal_error_rate,
        tar_at_far=tars,
        notes=tuple(not_stated(tars, impostors, "TAR at FAR")),
        scores=scores_P,
        same=same_P,
        fold=fold_P,
        distances=of_grid,
    )


def evaluate_pairs(
    embeddings: Array | Tensor,
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
    sides = (np.arange(0, len(rows), 2), np.arange(1, len(rows), 2))
    distances = squared_distances_of_pairs(rows, *sides) if thresholds == "grid" else None
    scores = cosine_of_pairs(rows, *sides)
    return evaluate_scores(scores, same, folds, thresholds=thresholds, fars=fars, squared_distances=distances)
