"""The scores of each protocol with the identities behind them, ready to be weighted: what `bootstrap` draws from.

Every class computes its figures under any weights in one pass: with weights 1 those of `metrics`, with whole numbers those of so many copies.

`PairListSample`: a list of pairs (LFW ...): accuracy over folds, AUC, EER, TAR at FAR. All exact.
`SearchSample`: rank-k and TPIR at FPIR; probes weigh as their identities, the gallery stays as it is. `ShareSample`: a share of probes.
`TailSample`, for lists too long to keep (IJB-C, MFR-ALL), has a file of its own.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from attfc.evaluation.bootstrap import FigurePath, IdentityDraw
from attfc.evaluation.metrics import PairScores, ScoredPairs
from attfc.evaluation.people import dominant_person
from attfc.evaluation.rates import FARS, barred_place, far_name, pairs_needed
from attfc.typing import Array, Bools, Float64, Int64

__all__ = ["PairListSample", "SearchSample", "ShareSample"]


@dataclass(frozen=True, eq=False)
class PairListSample:
    """P scored pairs of a list.

    Attributes:
        scores: (P,) float64. same: (P,) bool. fold: (P,) int64.
        first, second: (P,) int64 the identities of the two images, from 0.
        distances: (P,) squared distances for thresholds "grid"; empty for "exact".
        fars: which TAR to give; those with fewer than 1 / FAR non-mated pairs are left out.
    """

    scores: Float64
    same: Bools
    fold: Int64
    first: Int64
    second: Int64
    distances: Float64
    fars: tuple[float, ...] = FARS

    @staticmethod
    def of(found: PairScores, first: npt.ArrayLike, second: npt.ArrayLike) -> "PairListSample":
        """Return the sample of a list that `evaluate_scores` found figures of; `first` and `second` are labels of any kind."""
        both = np.unique(np.stack([np.asarray(first), np.asarray(second)]), return_inverse=True)[1].reshape(2, -1)
        distances = np.zeros(0) if found.distances is None else found.distances
        of_first, of_second = both
        fars = tuple(found.tar_at_far)
        return PairListSample(found.scores, found.same, found.fold, of_first, of_second, distances, fars)

    @functools.cached_property
    def identities(self) -> int:
        """How many identities there are."""
        return int(max(self.first.max(), self.second.max())) + 1

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a mated pair."""
        return len(np.unique(self.first[self.same]))

    def notes(self, title: str) -> list[str]:
        """Say if one person holds most mated pairs of the list (`Pairs.title`)."""
        return dominant_person(np.bincount(self.first[self.same]), title)

    def facts(self) -> dict[str, Array]:
        """Return the pairs, their identities and folds, and the FARs."""
        return {
            "pairs": self.same,
            "identities": np.stack([self.first, self.second]),
            "folds": self.fold,
            "FARs": np.array(self.fars),
            "thresholds": np.array(["grid" if len(self.distances) else "exact"]),
        }

    @functools.cached_property
    def _pairs(self) -> ScoredPairs:
        return ScoredPairs(self.scores, self.same, self.fold, self.distances if len(self.distances) else None)

    def figures(self, draw: IdentityDraw) -> dict[FigurePath, float]:
        """Return accuracy, auc, eer and tar_at_far under the weights of a draw."""
        impostors = np.flatnonzero(~self.same)
        weights_P = draw.of(self.first)
        weights_P[impostors] = draw.of_pairs(self.first[impostors], self.second[impostors], impostors)
        accepts = self._pairs.accepts(weights_P)
        tars: dict[FigurePath, float] = {
            ("tar_at_far", far_name(far)): far for far in self.fars if len(impostors) >= pairs_needed(far)
        }
        if not (accepts.false[-1] and accepts.true[-1]):
            return dict.fromkeys([("accuracy",), ("auc",), ("eer",), *tars], math.nan)
        return {
            ("accuracy",): float(np.mean(self._pairs.accuracies(weights_P))),
            ("auc",): accepts.area,
            ("eer",): accepts.equal_error_rate,
            **{path: accepts.tar(far) for path, far in tars.items()},
        }


@dataclass(frozen=True, eq=False)
class ShareSample:
    """A share of probes, by the name of the figure. hits: (M,) bool; probe_identities: (M,) from 0."""

    name: str
    hits: Bools
    probe_identities: Int64

    @functools.cached_property
    def identities(self) -> int:
        """How many identities are searched."""
        return int(self.probe_identities.max()) + 1

    @property
    def carriers(self) -> int:
        """The same."""
        return self.identities

    def facts(self) -> dict[str, Array]:
        """Return who is searched."""
        return {"probes": self.probe_identities}

    def figures(self, draw: IdentityDraw) -> dict[FigurePath, float]:
        """Return the share under the weights of a draw."""
        return {(self.name,): _share(draw.of(self.probe_identities), self.hits)}


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

    ranks: Int64
    mates: Float64
    probe_identities: Int64
    probe_gallery: Int64
    strangers: Float64
    stranger_identities: Int64
    stranger_gallery: Int64
    rank_limits: tuple[int, ...]
    fpirs: tuple[float, ...]
    searched: int
    worst_rank: int = 1

    @property
    def identities(self) -> int:
        """How many identities are searched."""
        return self.searched

    @functools.cached_property
    def carriers(self) -> int:
        """How many identities have a mated probe."""
        return len(np.unique(self.probe_identities))

    def facts(self) -> dict[str, Array]:
        """Return who is searched where, and the figures given."""
        return {
            "probes": np.stack([self.probe_identities, self.probe_gallery]),
            "strangers": np.stack([self.stranger_identities, self.stranger_gallery]),
            "ranks": np.array(self.rank_limits),
            "FPIRs": np.array(self.fpirs),
        }

    def probing(self, chosen: Bools) -> "SearchSample | None":
        """Return the sample of some of the mated probes among the same strangers; None: of none."""
        fields = ("ranks", "mates", "probe_identities", "probe_gallery")
        return replace(self, **{name: getattr(self, name)[chosen] for name in fields}) if chosen.any() else None

    def figures(self, draw: IdentityDraw) -> dict[FigurePath, float]:
        """Return rank and tpir_at_fpir under the weights of a draw."""
        found: dict[FigurePath, list[float]] = {}
        for probes, strangers, falling in self._galleries:
            weights, ranks = draw.of(self.probe_identities[probes]), self.ranks[probes]
            for limit in self.rank_limits:
                found.setdefault(("rank", str(limit)), []).append(_share(weights, ranks <= limit))
            upto = np.cumsum(draw.of(self.stranger_identities[strangers]))
            for fpir in self.fpirs:
                share = math.nan
                if upto.size and upto[-1]:
                    threshold = np.append(falling, -np.inf)[barred_place(upto, fpir, upto[-1])]
                    share = _share(weights, (ranks <= self.worst_rank) & (self.mates[probes] > threshold))
                found.setdefault(("tpir_at_fpir", far_name(fpir)), []).append(share)
        return {path: float(np.mean(values)) for path, values in found.items()}

    @functools.cached_property
    def _galleries(self) -> list[tuple[Int64, Int64, Float64]]:
        """Probes, strangers from the highest score down, and these scores, of each gallery."""
        order = np.argsort(-self.strangers, kind="stable")
        of_gallery = self.stranger_gallery[order]
        found = []
        for gallery in range(int(self.probe_gallery.max()) + 1):
            strangers = order[of_gallery == gallery]
            found.append((np.flatnonzero(self.probe_gallery == gallery), strangers, self.strangers[strangers]))
        return found


def _share(weights: Float64, hits: Bools) -> float:
    total = weights.sum()
    return float(weights[hits].sum() / total) if total else math.nan
