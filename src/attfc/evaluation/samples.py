"""The scores of each protocol with the identities behind them, ready to be weighted: what `resampling` draws from.

Every class computes its figures under any weights in one pass: with weights 1 those of `metrics`, with whole numbers those of so many copies.

`PairListSample`: a list of pairs (LFW ...): accuracy over folds, AUC, EER, TAR at FAR. All exact.
`TailSample`: lists too long for that (IJB-C, MFR-ALL): TAR at FAR from all genuine scores and the highest impostor scores; of a list AUC and EER
too, from the number of impostors above each genuine score. Exact as far as the 262,144 highest. Further down it is interpolated between 200 ranks,
and the weight of the pairs above a rank is taken from how many of them each identity is in: w_i w_j to first order, w_i + w_j - 1. The single pair
weighs nothing there.
`SearchSample`: rank-k and TPIR at FPIR; probes weigh as their identities, the gallery stays as it is. `ShareSample`: a share of probes.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.evaluation.bootstrap import Draw, Path
from attfc.evaluation.metrics import DISTANCE_GRID, FARS, Thresholds, crossing, far_name, pairs_needed
from attfc.evaluation.people import dominant_person
from attfc.evaluation.protocols.all_pairs import AllPairs
from attfc.evaluation.protocols.identification import Identification
from attfc.evaluation.share_sample import ShareSample

__all__ = ["PairListSample", "SearchSample", "ShareSample", "TailSample"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EXACT_IMPOSTORS = 2**18
_RANKS, _RANK_CELLS = 200, 2**25  # fewer ranks where identities are very many: 256 MiB while they are counted
_SLACK = 1e-9  # FAR x weight in floating point, as in `metrics`


@dataclass(frozen=True, eq=False)
class PairListSample:
    """P scored pairs of a list.

    Attributes:
        scores: (P,) float64. same: (P,) bool. fold: (P,) int64.
        first, second: (P,) int64 the identities of the two images, from 0.
        distances: (P,) squared distances for thresholds "grid"; empty for "exact".
        fars: which TAR to give; those with fewer than 1 / FAR impostor pairs are left out.
    """

    scores: Floats
    same: Bools
    fold: Ints
    first: Ints
    second: Ints
    distances: Floats
    fars: tuple[float, ...] = FARS

    @staticmethod
    def of(
        scores: npt.ArrayLike,
        same: npt.ArrayLike,
        fold: npt.ArrayLike,
        first: npt.ArrayLike,
        second: npt.ArrayLike,
        *,
        thresholds: Thresholds = "exact",
        distances: npt.ArrayLike | None = None,
        fars: Sequence[float] = FARS,
    ) -> "PairListSample":
        """Return the sample of a list; `first` and `second` are labels of any kind, all others as in `evaluate_scores`."""
        scores_P = np.asarray(scores, dtype=np.float64)
        labels, both = np.unique(np.concatenate([np.asarray(first), np.asarray(second)]), return_inverse=True)
        del labels
        grid = np.zeros(0) if thresholds == "exact" else 2.0 - 2.0 * scores_P if distances is None else distances
        return PairListSample(
            scores=scores_P,
            same=np.asarray(same, dtype=np.bool_),
            fold=np.unique(np.asarray(fold), return_inverse=True)[1].astype(np.int64),
            first=both[: len(scores_P)].astype(np.int64),
            second=both[len(scores_P) :].astype(np.int64),
            distances=np.asarray(grid, dtype=np.float64),
            fars=tuple(fars),
        )

    @functools.cached_property
    def identities(self) -> int:
        """How many identities there are."""
        return int(max(self.first.max(), self.second.max())) + 1

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a genuine pair."""
        return len(np.unique(self.first[self.same]))

    def notes(self) -> list[str]:
        """Say if one person holds most genuine pairs of the list."""
        return dominant_person(np.bincount(self.first[self.same]), "list of pairs")

    def facts(self) -> dict[str, npt.NDArray[Any]]:
        """Return the pairs, their identities and folds, and the FARs."""
        return {
            "pairs": self.same,
            "identities": np.stack([self.first, self.second]),
            "folds": self.fold,
            "FARs": np.array(self.fars),
            "thresholds": np.array(["grid" if len(self.distances) else "exact"]),
        }

    def figures(self, draw: Draw) -> dict[Path, float]:
        """Return accuracy, auc, eer and tar_at_far under the weights of a draw."""
        weights_P = np.empty(len(self.scores))
        weights_P[self.same] = draw.of(self.first[self.same])
        weights_P[~self.same] = draw.of_pairs(
            self.first[~self.same], self.second[~self.same], np.flatnonzero(~self.same)
        )
        genuine, impostor = weights_P[self._genuine], weights_P[self._impostor]
        total_genuine, total_impostor = genuine.sum(), impostor.sum()
        fars = [far for far in self.fars if len(impostor) >= pairs_needed(far)]
        if total_genuine == 0 or total_impostor == 0:
            paths: list[Path] = [("accuracy",), ("auc",), ("eer",), *(("tar_at_far", far_name(far)) for far in fars)]
            return dict.fromkeys(paths, math.nan)
        genuine_upto = np.append(0.0, np.cumsum(genuine))  # rising scores
        impostor_upto = np.append(0.0, np.cumsum(impostor))
        auc = genuine @ (impostor_upto[self._below] + impostor_upto[self._not_above])
        found: dict[Path, float] = {
            ("accuracy",): self._accuracy_on_grid(weights_P) if len(self.distances) else self._accuracy(weights_P),
            ("auc",): float(auc / (2 * total_genuine * total_impostor)),
            ("eer",): self._equal_error_rate(genuine_upto, impostor_upto),
        }
        falling = np.cumsum(impostor[::-1])
        rising_scores, genuine_scores = self.scores[self._impostor], self.scores[self._genuine]
        for far in fars:
            allowed = math.floor(far * total_impostor + _SLACK)
            barred = int(np.searchsorted(falling, allowed, side="right"))  # the first impostor that stays out
            accepted = 1.0
            if barred < len(falling):
                place = np.searchsorted(genuine_scores, rising_scores[-1 - barred], side="right")
                accepted = float(1.0 - genuine_upto[place] / total_genuine)
            found["tar_at_far", far_name(far)] = accepted
        return found

    @functools.cached_property
    def _genuine(self) -> Ints:
        return self._rising(self.same)

    @functools.cached_property
    def _impostor(self) -> Ints:
        return self._rising(~self.same)

    def _rising(self, kind: Bools) -> Ints:
        pairs = np.flatnonzero(kind)
        return pairs[np.argsort(self.scores[pairs], kind="stable")]

    @functools.cached_property
    def _below(self) -> Ints:
        return np.searchsorted(self.scores[self._impostor], self.scores[self._genuine], side="left")

    @functools.cached_property
    def _not_above(self) -> Ints:
        return np.searchsorted(self.scores[self._impostor], self.scores[self._genuine], side="right")

    @functools.cached_property
    def _last_of_value(self) -> Ints:
        """Of equal genuine scores the last, rising."""
        scores = self.scores[self._genuine]
        return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))

    def _equal_error_rate(self, genuine_upto: Floats, impostor_upto: Floats) -> float:
        """As `metrics.equal_error_rate`, see `metrics.crossing`."""
        last = self._last_of_value[::-1]
        first = np.append(last[1:] + 1, 0)
        before, after = genuine_upto[last + 1] / genuine_upto[-1], genuine_upto[first] / genuine_upto[-1]
        above = 1.0 - impostor_upto[self._not_above[last]] / impostor_upto[-1]
        with_equal = 1.0 - impostor_upto[self._below[last]] / impostor_upto[-1]
        return crossing(before, after, above, with_equal)

    @functools.cached_property
    def _cells(self) -> Ints:
        """(P,) fold and the first threshold of the grid that takes the pair for one person."""
        return self.fold * (len(DISTANCE_GRID) + 1) + np.searchsorted(DISTANCE_GRID, self.distances, side="right")

    def _accuracy_on_grid(self, weights_P: Floats) -> float:
        folds = int(self.fold.max()) + 1
        signed = np.where(self.same, weights_P, -weights_P)
        steps = np.bincount(self._cells, signed, folds * (len(DISTANCE_GRID) + 1)).reshape(folds, -1)
        impostors_F = np.bincount(self.fold[~self.same], weights_P[~self.same], folds)
        right_FT = impostors_F[:, None] + np.cumsum(steps, axis=1)[:, :-1]
        weight_F = np.bincount(self.fold, weights_P, folds)
        best_F = np.argmax(right_FT.sum(axis=0) - right_FT, axis=1)
        drawn = weight_F > 0
        return float(np.mean((right_FT[np.arange(folds), best_F])[drawn] / weight_F[drawn]))

    @functools.cached_property
    def _falling(self) -> Ints:
        return np.argsort(-self.scores, kind="stable")

    def _accuracy(self, weights_P: Floats) -> float:
        falling = self._falling[weights_P[self._falling] > 0]
        scores, fold = self.scores[falling], self.fold[falling]
        signed = np.where(self.same, weights_P, -weights_P)[falling]
        shares = []
        for number in np.unique(fold).tolist():
            test = fold == number
            threshold = _best_threshold(scores[~test], signed[~test])
            if threshold is None:
                return math.nan
            right = (scores[test] >= threshold) == (signed[test] > 0)
            weights = np.abs(signed[test])
            shares.append(weights[right].sum() / weights.sum())
        return float(np.mean(shares))


def _best_threshold(falling: Floats, signed: Floats) -> float | None:
    """As `metrics.best_threshold`, of scores that fall; weights are negative for impostors."""
    if not len(falling):
        return None
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    right = np.append(0.0, np.cumsum(signed)[last])  # less the impostors' weight, which is the same everywhere
    values = falling[last]
    best = np.flatnonzero(right == right.max())
    place = int(best[best.size // 2])
    if place == 0:
        return float(np.nextafter(values[0], np.inf))
    if place == len(values):
        return float(values[-1])
    middle = (values[place - 1] + values[place]) / 2
    return float(middle if middle > values[place] else values[place - 1])


@dataclass(frozen=True, eq=False)
class TailSample:
    """All genuine scores and the highest impostor scores of a long list.

    Attributes:
        genuine_scores: (G,) rising. genuine_identities: (G,) int64.
        impostor_scores: (M,) the highest, falling. impostor_first, impostor_second: (M,) their identities.
        impostor_codes: (M,) int64 which pair it is, the same number for every model.
        impostor_pairs: how many were scored in all.
        deep_scores: (K,) thresholds further down, falling; deep_counts: (K,) impostor pairs above each; deep_identities: (K, n) how many of them an
            identity is in. Empty where the highest scores are all.
        identity_pairs: (n,) impostor pairs an identity is in.
        identity_images: (n,) images, if all pairs of images were scored; else empty.
        fars: which TAR to give.
        genuine_above, genuine_not_below: (G,) int64 impostor pairs that score above each genuine pair, and at least as high; empty where that is not
            known (all pairs): no AUC and no EER then.
    """

    genuine_scores: Floats
    genuine_identities: Ints
    impostor_scores: Floats
    impostor_first: Ints
    impostor_second: Ints
    impostor_codes: Ints
    impostor_pairs: int
    deep_scores: Floats
    deep_counts: Floats
    deep_identities: npt.NDArray[np.float32]
    identity_pairs: Floats
    identity_images: Floats
    fars: tuple[float, ...]
    genuine_above: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    genuine_not_below: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @staticmethod
    def of_list(
        scores: npt.NDArray[Any],
        same: Bools,
        first: Ints,
        second: Ints,
        *,
        codes: Ints | None = None,
        fars: Sequence[float],
        exact: int = EXACT_IMPOSTORS,
    ) -> "TailSample":
        """Return the sample of a list of scored pairs.

        Args:
            scores, same: (P,).
            first, second: (P,) identities from 0.
            codes: (P,) which pair of the list each is; None = all, in order.
            fars: those with fewer than 1 / FAR impostor pairs are left out.
            exact: how many of the highest impostor scores to keep one by one.
        """
        impostor = np.flatnonzero(~same)
        identities = int(max(first.max(), second.max())) + 1
        kept, values = impostor, scores[impostor]
        rising = np.sort(values)
        deep_scores, deep_counts = np.zeros(0), np.zeros(0)
        deep_identities = np.zeros((0, identities), dtype=np.float32)
        if len(impostor) > exact:
            kept = impostor[np.argpartition(-values, exact - 1)[:exact]]
            ranks = _deep_ranks(exact, len(impostor), identities)
            deep_scores, deep_counts, deep_identities = _deep(
                values, rising[::-1][ranks], first[impostor], second[impostor], identities
            )
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        genuine = np.flatnonzero(same)
        genuine = genuine[np.argsort(scores[genuine], kind="stable")]
        below = np.searchsorted(rising, scores[genuine], side="left")
        not_above = np.searchsorted(rising, scores[genuine], side="right")
        return TailSample(
            genuine_scores=scores[genuine].astype(np.float64),
            genuine_identities=first[genuine],
            impostor_scores=scores[kept].astype(np.float64),
            impostor_first=first[kept],
            impostor_second=second[kept],
            impostor_codes=kept if codes is None else codes[kept],
            impostor_pairs=len(impostor),
            deep_scores=deep_scores,
            deep_counts=deep_counts,
            deep_identities=deep_identities,
            identity_pairs=_pairs_of_identities(first[impostor], second[impostor], identities),
            identity_images=np.zeros(0),
            fars=tuple(far for far in fars if len(impostor) >= pairs_needed(far)),
            genuine_above=(len(rising) - not_above).astype(np.int64),
            genuine_not_below=(len(rising) - below).astype(np.int64),
        )

    @staticmethod
    def of_all_pairs(found: AllPairs, exact: int = EXACT_IMPOSTORS) -> "TailSample":
        """Return the sample of `score_all_pairs`, whose `spare` says how far below the largest FAR's threshold a resample can look."""
        top, labels = found.top_impostors, found.top_labels
        deep_scores, deep_counts = np.zeros(0), np.zeros(0)
        deep_identities = np.zeros((0, found.identities), dtype=np.float32)
        if len(top) > exact:
            ranks = _deep_ranks(exact, len(top), found.identities)
            deep_scores, deep_counts, deep_identities = _deep(
                top, top[ranks], labels[:, 0], labels[:, 1], found.identities
            )
        order = np.argsort(found.genuine_scores, kind="stable")
        kept = slice(0, exact)
        images = found.identity_images.astype(np.float64)
        return TailSample(
            genuine_scores=found.genuine_scores[order].astype(np.float64),
            genuine_identities=found.genuine_labels[order],
            impostor_scores=top[kept].astype(np.float64),
            impostor_first=labels[kept, 0].astype(np.int64),
            impostor_second=labels[kept, 1].astype(np.int64),
            impostor_codes=found.top_codes[kept],
            impostor_pairs=found.impostor_pairs,
            deep_scores=deep_scores,
            deep_counts=deep_counts,
            deep_identities=deep_identities,
            identity_pairs=images * (images.sum() - images),
            identity_images=images,
            fars=tuple(far for far, tar in found.tar_at_far.items() if tar is not None),
        )

    @property
    def identities(self) -> int:
        """How many identities there are."""
        return len(self.identity_pairs)

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a genuine pair."""
        return len(np.unique(self.genuine_identities))

    def facts(self) -> dict[str, npt.NDArray[Any]]:
        """Return how many pairs each identity is in, and the FARs."""
        return {
            "genuine pairs of the identities": np.bincount(self.genuine_identities, minlength=self.identities),
            "impostor pairs of the identities": self.identity_pairs,
            "FARs": np.array(self.fars),
        }

    def figures(self, draw: Draw) -> dict[Path, float]:
        """Return tar_at_far, of all pairs also person_balanced_tar_at_far, of a list auc and eer, under the weights of a draw."""
        weights_M = draw.of_pairs(self.impostor_first, self.impostor_second, self.impostor_codes)
        falling = np.cumsum(weights_M)
        if len(self.identity_images):
            total = draw.all_pairs(self.identity_images)
        elif len(weights_M) == self.impostor_pairs:
            total = float(falling[-1])
        else:
            total = draw.linear(self.identity_pairs, self.impostor_pairs)
        weights_I = draw.of(np.arange(self.identities))
        genuine = weights_I @ self._genuine_pairs
        balanced_I = weights_I * self._balance if len(self.identity_images) else np.zeros(0)
        paths: dict[float, Path] = {far: ("tar_at_far", far_name(far)) for far in self.fars}
        ranked: list[Path] = [("auc",), ("eer",)] if len(self.genuine_above) else []
        if total <= 0 or genuine == 0:
            balanced = [_balanced(path) for path in paths.values()] if len(balanced_I) else []
            return dict.fromkeys([*paths.values(), *balanced, *ranked], math.nan)
        found: dict[Path, float] = {}
        deep: Floats | None = None
        for far, path in paths.items():
            allowed = math.floor(far * total + _SLACK)
            barred = int(np.searchsorted(falling, allowed, side="right"))
            if barred < len(falling):
                threshold = float(self.impostor_scores[barred])
            elif len(falling) == self.impostor_pairs:
                threshold = -2.0  # all may be accepted
            elif len(self.deep_scores):
                deep = self._deep_weights(draw) if deep is None else deep
                threshold = float(np.interp(allowed, deep, self.deep_scores))
            else:
                threshold = float(self.impostor_scores[-1])
            found[path] = self._accepted(weights_I, threshold) / float(genuine)
            if len(balanced_I):
                found[_balanced(path)] = self._accepted(balanced_I, threshold) / float(balanced_I @ self._genuine_pairs)
        if ranked:
            if deep is None and int(self.genuine_not_below[0]) > len(
                falling
            ):  # the lowest genuine score has most above it
                deep = self._deep_weights(draw)
            found.update(zip(ranked, self._auc_and_eer(draw, falling, deep, total), strict=True))
        return found

    def _auc_and_eer(self, draw: Draw, falling: Floats, deep: Floats | None, total: float) -> tuple[float, float]:
        """As `metrics`, from the weight of the impostors above each genuine score. `falling` is the weight of the 1, 2 ... highest."""
        last = self._last_of_value
        upto = np.cumsum(draw.of(self.genuine_identities))[last]
        weights_D = np.diff(upto, prepend=0.0)  # of the distinct genuine scores, rising
        above_D, with_equal_D = (
            np.minimum(self._weight_of_highest(counts[last], falling, deep, total) / total, 1.0)
            for counts in (self.genuine_above, self.genuine_not_below)
        )
        auc = 1.0 - float(weights_D @ (above_D + with_equal_D)) / (2.0 * float(upto[-1]))
        before_D = upto / upto[-1]
        after_D = np.append(0.0, before_D[:-1])
        return auc, crossing(before_D[::-1], after_D[::-1], above_D[::-1], with_equal_D[::-1])

    def _weight_of_highest(self, counts: Ints, falling: Floats, deep: Floats | None, total: float) -> Floats:
        """Weight of so many of the highest impostor scores: summed where these were kept, below it their number times the mean weight of one.

        The mean weight changes slowly with the rank, the number is exact: with weights 1 the figures are those of `metrics`.
        """
        kept = len(falling)
        weights = np.append(0.0, falling)[np.minimum(counts, kept)]
        if deep is None:
            return weights
        beyond = self.deep_counts > kept
        ranks = np.concatenate([[kept], self.deep_counts[beyond], [self.impostor_pairs]])
        upto = np.maximum.accumulate(np.concatenate([falling[-1:], deep[beyond], [total]]))
        below = counts > kept
        weights[below] = counts[below] * np.interp(np.log(counts[below]), np.log(ranks), upto / ranks)
        return weights

    @functools.cached_property
    def _last_of_value(self) -> Ints:
        """Of equal genuine scores the last, rising."""
        return np.flatnonzero(np.append(self.genuine_scores[1:] != self.genuine_scores[:-1], True))

    def _deep_weights(self, draw: Draw) -> Floats:
        weights = [
            draw.linear(row, float(pairs)) for row, pairs in zip(self.deep_identities, self.deep_counts, strict=True)
        ]
        rising: Floats = np.maximum.accumulate(np.array(weights))
        return rising

    @functools.cached_property
    def _genuine_pairs(self) -> Floats:
        return np.bincount(self.genuine_identities, minlength=self.identities).astype(np.float64)

    @functools.cached_property
    def _landings(self) -> dict[int, Floats]:
        """Place in the genuine scores -> genuine pairs of each identity from there on; see `_accepted`."""
        return {}

    @functools.cached_property
    def _balance(self) -> Floats:
        """Weight of a genuine pair of each identity if all identities that have one weigh alike."""
        return np.where(self._genuine_pairs > 0, 1.0 / np.maximum(self._genuine_pairs, 1.0), 0.0)

    def _accepted(self, weights_I: Floats, threshold: float) -> float:
        """Weight of the genuine pairs above a threshold, those of an identity weighing alike.

        Thresholds of a FAR lie close together: counts an identity are kept for every 4,096th place, and only the pairs up to the next such place are
        weighted one by one.
        """
        place = int(np.searchsorted(self.genuine_scores, threshold, side="right"))
        landing = min(-(-place // _LANDING) * _LANDING, len(self.genuine_scores))
        if landing not in self._landings:
            if len(self._landings) >= _MOST_LANDINGS:
                self._landings.clear()
            counts = np.bincount(self.genuine_identities[landing:], minlength=self.identities)
            self._landings[landing] = counts.astype(np.float64)
        return float(weights_I @ self._landings[landing] + weights_I[self.genuine_identities[place:landing]].sum())


_LANDING, _MOST_LANDINGS = 4096, 32


def _balanced(path: Path) -> Path:
    return (f"person_balanced_{path[0]}", *path[1:])


def _pairs_of_identities(first: Ints, second: Ints, identities: int) -> Floats:
    counts = np.bincount(first, minlength=identities) + np.bincount(second, minlength=identities)
    return counts.astype(np.float64)


def _deep_ranks(exact: int, scores: int, identities: int) -> Ints:
    number = max(20, min(_RANKS, _RANK_CELLS // identities))
    return np.unique(np.geomspace(exact / 2, scores - 1, number).astype(np.int64))


def _deep(
    scores: npt.NDArray[Any], falling: npt.NDArray[Any], first: Ints, second: Ints, identities: int
) -> tuple[Floats, Floats, npt.NDArray[np.float32]]:
    """Distinct thresholds, how many scores are above each, and how many of those each identity is in."""
    thresholds = np.unique(falling)  # rising
    places = np.searchsorted(thresholds, scores, side="left")  # above thresholds[0 ... place - 1]
    cells = len(thresholds) + 1
    counted = np.zeros(cells * identities, dtype=np.int64)
    for side in (first, second):
        counted += np.bincount(places * identities + side, minlength=cells * identities)
    above = np.cumsum(counted.reshape(cells, identities)[::-1], axis=0)[:-1]  # the strictest threshold first
    counts = np.cumsum(np.bincount(places, minlength=cells)[::-1])[:-1]
    return thresholds[::-1].astype(np.float64), counts.astype(np.float64), above.astype(np.float32)


@dataclass(frozen=True, eq=False)
class SearchSample:
    """Searches in one gallery or several; figures are means over the galleries.

    Attributes:
        ranks, mates, probe_identities: of all mated probes, gallery after gallery: rank, score with the own identity, identity from 0.
        strangers, stranger_identities: best score of each stranger, and who.
        probe_gallery, stranger_gallery: which gallery each was searched in, from 0.
        rank_limits, fpirs: what to give. worst_rank: a true positive's rank must be at most this.
        searched: identities in all.
    """

    ranks: Ints
    mates: Floats
    probe_identities: Ints
    probe_gallery: Ints
    strangers: Floats
    stranger_identities: Ints
    stranger_gallery: Ints
    rank_limits: tuple[int, ...]
    fpirs: tuple[float, ...]
    searched: int
    worst_rank: int = 1

    @staticmethod
    def of(searches: Sequence[Identification]) -> "SearchSample":
        """Return the sample of searches of the same probes in one or several galleries."""
        probes = [one.probe_labels for one in searches]
        strangers = [one.stranger_labels for one in searches]
        labels, number = np.unique(np.concatenate([*probes, *strangers]), return_inverse=True)
        mated = sum(map(len, probes))

        def numbered(parts: list[Any]) -> Ints:
            return np.repeat(np.arange(len(parts)), [len(part) for part in parts])

        def stated(name: str) -> Any:
            return (
                key
                for key in getattr(searches[0], name)
                if all(getattr(one, name)[key] is not None for one in searches)
            )

        return SearchSample(
            ranks=np.concatenate([one.probe_ranks for one in searches]),
            mates=np.concatenate([one.mate_scores for one in searches]),
            probe_identities=number[:mated].astype(np.int64),
            probe_gallery=numbered(probes),
            strangers=np.concatenate([one.stranger_scores for one in searches]),
            stranger_identities=number[mated:].astype(np.int64),
            stranger_gallery=numbered(strangers),
            rank_limits=tuple(stated("rank_rates")),
            fpirs=tuple(stated("tpir_at_fpir")),
            searched=len(labels),
        )

    @property
    def identities(self) -> int:
        """How many identities are searched."""
        return self.searched

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a mated probe."""
        return len(np.unique(self.probe_identities))

    def facts(self) -> dict[str, npt.NDArray[Any]]:
        """Return who is searched where, and the figures given."""
        return {
            "probes": np.stack([self.probe_identities, self.probe_gallery]),
            "strangers": np.stack([self.stranger_identities, self.stranger_gallery]),
            "ranks": np.array(self.rank_limits),
            "FPIRs": np.array(self.fpirs),
        }

    def figures(self, draw: Draw) -> dict[Path, float]:
        """Return rank and tpir_at_fpir under the weights of a draw."""
        found: dict[Path, list[float]] = {}
        for probes, strangers, falling in self._galleries:
            weights = draw.of(self.probe_identities[probes])
            total = weights.sum()
            for limit in self.rank_limits:
                share = weights[self.ranks[probes] <= limit].sum() / total if total else math.nan
                found.setdefault(("rank", str(limit)), []).append(float(share))
            upto = np.cumsum(draw.of(self.stranger_identities[strangers]))
            in_rank = self.ranks[probes] <= self.worst_rank
            for fpir in self.fpirs:
                share = math.nan
                if total and upto.size and upto[-1]:
                    barred = int(np.searchsorted(upto, math.floor(fpir * upto[-1] + _SLACK), side="right"))
                    threshold = falling[barred] if barred < len(falling) else -np.inf
                    share = float(weights[in_rank & (self.mates[probes] > threshold)].sum() / total)
                found.setdefault(("tpir_at_fpir", far_name(fpir)), []).append(share)
        return {path: float(np.mean(values)) for path, values in found.items()}

    @functools.cached_property
    def _galleries(self) -> list[tuple[Ints, Ints, Floats]]:
        """Probes, strangers from the highest score down, and these scores, of each gallery."""
        found = []
        for gallery in range(int(self.probe_gallery.max()) + 1):
            strangers = np.flatnonzero(self.stranger_gallery == gallery)
            strangers = strangers[np.argsort(-self.strangers[strangers], kind="stable")]
            found.append((np.flatnonzero(self.probe_gallery == gallery), strangers, self.strangers[strangers]))
        return found
