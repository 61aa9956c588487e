"""The scores of lists too long to keep whole (IJB-C, MFR-ALL), with the identities behind them, ready to be weighted: see `samples`.

TAR at FAR from all mated scores and the highest non-mated scores; of a list AUC and EER too, from the number of non-mated pairs above each genuine
score. Exact as far as the 262,144 highest. Further down it is interpolated between 200 ranks, and the weight of the pairs above a rank is taken
from how many of them each identity is in: w_i w_j to first order, w_i + w_j - 1. The single pair weighs nothing there.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attfc.evaluation.bootstrap import FigurePath, IdentityDraw
from attfc.evaluation.metrics import crossing, last_of_value
from attfc.evaluation.rates import allowed_weight, far_name, pairs_needed
from attfc.typing import Array, Bools, Float32, Float64, Int64

__all__ = ["EXACT_IMPOSTORS", "TailSample", "tail_of"]


EXACT_IMPOSTORS = 2**18
_RANKS, _RANK_CELLS = 200, 2**25  # fewer ranks where identities are very many: 256 MiB while they are counted
_LANDING, _MOST_LANDINGS = 4096, 32


@dataclass(frozen=True, eq=False)
class TailSample:
    """All mated scores and the highest non-mated scores of a long list.

    Attributes:
        genuine_scores: (G,) rising. genuine_identities: (G,) int64.
        impostor_scores: (M,) the highest, falling. impostor_first, impostor_second: (M,) their identities.
        impostor_codes: (M,) int64 which pair it is, the same number for every model.
        impostor_pairs: how many were scored in all.
        deep_scores: (K,) thresholds further down, falling; deep_counts: (K,) non-mated pairs above each; deep_identities: (K, n) how many of them an
            identity is in. Empty where the highest scores are all.
        identity_pairs: (n,) non-mated pairs an identity is in.
        identity_images: (n,) images, if all pairs of images were scored; else empty.
        fars: which TAR to give.
        genuine_above, genuine_not_below: (G,) int64 non-mated pairs that score above each mated pair, and at least as high; empty where that is not
            known (all pairs): no AUC and no EER then.
    """

    genuine_scores: Float64
    genuine_identities: Int64
    impostor_scores: Float64
    impostor_first: Int64
    impostor_second: Int64
    impostor_codes: Int64
    impostor_pairs: int
    deep_scores: Float64
    deep_counts: Float64
    deep_identities: Float32
    identity_pairs: Float64
    identity_images: Float64
    fars: tuple[float, ...]
    genuine_above: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    genuine_not_below: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @staticmethod
    def of_list(
        scores: Array,
        same: Bools,
        first: Int64,
        second: Int64,
        *,
        codes: Int64 | None = None,
        fars: Sequence[float],
        exact: int = EXACT_IMPOSTORS,
    ) -> "TailSample":
        """Return the sample of a list of scored pairs.

        Args:
            scores, same: (P,).
            first, second: (P,) identities from 0.
            codes: (P,) which pair of the list each is; None = all, in order.
            fars: those with fewer than 1 / FAR non-mated pairs are left out.
            exact: how many of the highest non-mated scores to keep one by one.
        """
        impostor = np.flatnonzero(~same)
        rising, genuine_scores = np.sort(scores[impostor]), np.sort(scores[same])
        above, not_below = (len(rising) - np.searchsorted(rising, genuine_scores, side) for side in ("right", "left"))
        sides = np.concatenate([first[impostor], second[impostor]])
        return tail_of(
            (scores[same], first[same]),
            (scores[impostor], first[impostor], second[impostor], impostor if codes is None else codes[impostor]),
            exact,
            impostor_pairs=len(impostor),
            identity_pairs=np.bincount(sides, minlength=int(max(first.max(), second.max())) + 1).astype(np.float64),
            identity_images=np.zeros(0),
            fars=tuple(far for far in fars if len(impostor) >= pairs_needed(far)),
            genuine_above=above,
            genuine_not_below=not_below,
        )

    @property
    def identities(self) -> int:
        """How many identities there are."""
        return len(self.identity_pairs)

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a mated pair."""
        return len(np.unique(self.genuine_identities))

    def facts(self) -> dict[str, Array]:
        """Return how many pairs each identity is in, and the FARs."""
        return {
            "mated pairs of the identities": np.bincount(self.genuine_identities, minlength=self.identities),
            "non-mated pairs of the identities": self.identity_pairs,
            "FARs": np.array(self.fars),
        }

    def figures(self, draw: IdentityDraw) -> dict[FigurePath, float]:
        """Return tar_at_far, of all pairs also person_balanced_tar_at_far, of a list auc and eer, under the weights of a draw."""
        falling = np.cumsum(draw.of_pairs(self.impostor_first, self.impostor_second, self.impostor_codes))
        weights_I = draw.of(np.arange(self.identities))
        kinds = {"tar_at_far": weights_I}
        if len(self.identity_images):
            total = draw.all_pairs(self.identity_images)
            # A genuine pair weighs so that all identities that have one weigh alike.
            kinds["person_balanced_tar_at_far"] = weights_I * (1.0 / np.maximum(self._genuine_pairs, 1.0))
        elif len(falling) == self.impostor_pairs:
            total = float(falling[-1])
        else:
            total = draw.linear(self.identity_pairs, self.impostor_pairs)
        genuine = {name: float(weights @ self._genuine_pairs) for name, weights in kinds.items()}
        tars = [(name, far_name(far)) for far in self.fars for name in kinds]
        ranked: list[FigurePath] = [("auc",), ("eer",)] if len(self.genuine_above) else []
        if total <= 0 or genuine["tar_at_far"] == 0:
            return dict.fromkeys([*ranked, *tars], math.nan)
        deep = functools.cache(lambda: self._deep_weights(draw))
        thresholds = {far_name(far): self._threshold(falling, deep, allowed_weight(far, total)) for far in self.fars}
        found: dict[FigurePath, float] = {
            (name, far): self._accepted(kinds[name], thresholds[far]) / genuine[name] for name, far in tars
        }
        if ranked:
            found.update(zip(ranked, self._auc_and_eer(draw, falling, deep, total), strict=True))
        return found

    def _threshold(self, falling: Float64, deep: Callable[[], Float64], allowed: int) -> float:
        """The first non-mated score that stays out when so much of their weight may be accepted."""
        barred = int(np.searchsorted(falling, allowed, side="right"))
        if barred < len(falling):
            return float(self.impostor_scores[barred])
        if len(falling) == self.impostor_pairs:
            return -2.0  # all may be accepted
        if len(self.deep_scores):
            return float(np.interp(allowed, deep(), self.deep_scores))
        return float(self.impostor_scores[-1])

    def _auc_and_eer(
        self, draw: IdentityDraw, falling: Float64, deep: Callable[[], Float64], total: float
    ) -> tuple[float, float]:
        """As `metrics`, from the weight of the non-mated pairs above each mated score. `falling` is the weight of the 1, 2 ... highest."""
        last = last_of_value(self.genuine_scores)
        upto = np.cumsum(draw.of(self.genuine_identities))[last]  # at the distinct genuine scores, rising
        above_D, with_equal_D = (
            np.minimum(self._weight_of_highest(counts[last], falling, deep, total) / total, 1.0)
            for counts in (self.genuine_above, self.genuine_not_below)
        )
        auc = 1.0 - float(np.diff(upto, prepend=0.0) @ (above_D + with_equal_D)) / (2.0 * float(upto[-1]))
        before_D = upto / upto[-1]
        # Two points at each score: without its genuine pairs, and with them.
        rejects = np.column_stack([before_D, np.append(0.0, before_D[:-1])])
        accepts = np.column_stack([above_D, with_equal_D])
        return auc, crossing(accepts[::-1].ravel(), rejects[::-1].ravel())

    def _weight_of_highest(self, counts: Int64, falling: Float64, deep: Callable[[], Float64], total: float) -> Float64:
        """Weight of so many of the highest non-mated scores: summed where these were kept, below it their number times the mean weight of one.

        The mean weight changes slowly with the rank, the number is exact: with weights 1 the figures are those of `metrics`.
        """
        kept = len(falling)
        weights = np.append(0.0, falling)[np.minimum(counts, kept)]
        below = counts > kept
        if below.any():
            beyond = self.deep_counts > kept
            ranks = np.concatenate([[kept], self.deep_counts[beyond], [self.impostor_pairs]])
            upto = np.maximum.accumulate(np.concatenate([falling[-1:], deep()[beyond], [total]]))
            weights[below] = counts[below] * np.interp(np.log(counts[below]), np.log(ranks), upto / ranks)
        return weights

    def _deep_weights(self, draw: IdentityDraw) -> Float64:
        rows = zip(self.deep_identities, self.deep_counts, strict=True)
        return np.maximum.accumulate(np.array([draw.linear(row, float(pairs)) for row, pairs in rows]))

    @functools.cached_property
    def _genuine_pairs(self) -> Float64:
        return np.bincount(self.genuine_identities, minlength=self.identities).astype(np.float64)

    @functools.cached_property
    def _landings(self) -> dict[int, Float64]:
        """Place in the mated scores -> mated pairs of each identity from there on; see `_accepted`."""
        return {}

    def _accepted(self, weights_I: Float64, threshold: float) -> float:
        """Weight of the mated pairs above a threshold, those of an identity weighing alike.

        Thresholds of a FAR lie close together: counts per identity are kept for every 4,096th place, and only the pairs up to the next such place
        are weighted one by one.
        """
        place = int(np.searchsorted(self.genuine_scores, threshold, side="right"))
        landing = min(-(-place // _LANDING) * _LANDING, len(self.genuine_scores))
        if landing not in self._landings:
            if len(self._landings) >= _MOST_LANDINGS:
                self._landings.clear()
            counts = np.bincount(self.genuine_identities[landing:], minlength=self.identities)
            self._landings[landing] = counts.astype(np.float64)
        return float(weights_I @ self._landings[landing] + weights_I[self.genuine_identities[place:landing]].sum())


def tail_of(
    genuine: tuple[Array, Int64],
    impostors: tuple[Array, Array, Array, Int64],
    exact: int,
    **facts: Any,
) -> TailSample:
    """Return the sample of scored pairs of which only the highest non-mated scores are kept.

    Args:
        genuine: scores and identities.
        impostors: scores, both identities, and which pair each is.
        exact: how many of the highest to keep one by one; where there are more, thresholds further down are counted for each identity.
        facts: the other fields of `TailSample`.
    """
    scores, first, second, codes = impostors
    identities = len(facts["identity_pairs"])
    kept, ranks = np.arange(len(scores)), np.zeros(0, dtype=np.int64)
    if len(scores) > exact:
        kept = np.argpartition(-scores, exact - 1)[:exact]
        number = max(20, min(_RANKS, _RANK_CELLS // identities))
        ranks = np.geomspace(exact / 2, len(scores) - 1, number).astype(np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    thresholds = np.unique(np.sort(scores)[::-1][ranks])  # rising
    places = np.searchsorted(thresholds, scores, side="left")  # above thresholds[0 ... place - 1]
    shape = (len(thresholds) + 1, identities)
    counted = sum(np.bincount(places * identities + side, minlength=math.prod(shape)) for side in (first, second))
    above = np.cumsum(np.reshape(counted, shape)[::-1], axis=0)[:-1]  # the strictest threshold first
    rising = np.argsort(genuine[0], kind="stable")
    return TailSample(
        genuine_scores=genuine[0][rising].astype(np.float64),
        genuine_identities=genuine[1][rising],
        impostor_scores=scores[kept].astype(np.float64),
        impostor_first=first[kept].astype(np.int64),
        impostor_second=second[kept].astype(np.int64),
        impostor_codes=codes[kept],
        deep_scores=thresholds[::-1].astype(np.float64),
        deep_counts=np.cumsum(np.bincount(places, minlength=shape[0])[::-1])[:-1].astype(np.float64),
        deep_identities=above.astype(np.float32),
        **facts,
    )
