"""Pairs of images of two people (nonmated comparisons), weighed by people: thresholds of a false match rate, and what such a rate is worth.

The rate of two people is the share of their pairs of images above the threshold; FMR is its mean over pairs of people, so that nobody weighs by the
square of their images. Pairs of people that have a person in common stand and fall together: FMR is a U-statistic, and its variance over draws of
people follows without bias from what pairs with nobody in common have in common: V = U^2 - mean over such pairs of h h'. In sums of h, of its squares
and per person; no pair of pairs is looked at. It is at least that of independent pairs.

Cost: some passes over the highest scores kept.

Sources: Hoeffding 1948 (U-statistics); Aronow, Samii and Assenova 2015 (variance of pairs that share members); ISO/IEC 19795-1 (FMR).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attfc.evaluation.operating_point.bounds import freedom_of
from attfc.evaluation.protocols.all_pairs_scores import AllPairs
from attfc.typing import Bools, Float64, Int64

__all__ = ["FalseMatches", "NonmatedTail"]

_SLACK = 1e-9  # sums of shares in floating point


@dataclass(frozen=True, eq=False)
class FalseMatches:
    """What passed a threshold.

    Attributes:
        rate: FMR. pairs: of people compared. matched: image pairs above the threshold.
        variance: of the rate over draws of people; that of independent pairs at the least.
        design_effect: that variance over the one of independent pairs of people; 1 where nothing passed.
        freedom: degrees of freedom of the variance, few where few people make up most of it: 2 n / (kurtosis of the people's sums - 1).
    """

    rate: float
    pairs: int
    matched: int
    variance: float
    design_effect: float
    freedom: float

    @property
    def worth(self) -> float:
        """How many independent comparisons tell as much."""
        return self.rate * (1 - self.rate) / self.variance if self.variance > 0 else float(self.pairs)


@dataclass(frozen=True, eq=False)
class NonmatedTail:
    """The K highest scores of nonmated pairs.

    Attributes:
        scores: (K,) falling. first, second: (K,) the two people. weights: (K,) which part of the pair of people each is.
        people: how many there are.
    """

    scores: Float64
    first: Int64
    second: Int64
    weights: Float64
    people: int

    @staticmethod
    def of(pairs: AllPairs, person_of: Int64, images_I: Int64) -> "NonmatedTail":
        """Return the tail of scored pairs.

        Args:
            pairs: what was kept of all of them.
            person_of: number of each of their identities among all people.
            images_I: images of each person, with those that count as failed.
        """
        first, second = person_of[pairs.top_labels].T
        weights = 1.0 / (images_I[first] * images_I[second])
        return NonmatedTail(pairs.top_impostors.astype(np.float64), first, second, weights, len(images_I))

    def within(self, chosen_I: Bools) -> Bools:
        """Return (K,) true for pairs of two chosen people."""
        return chosen_I[self.first] & chosen_I[self.second]

    def threshold(self, fmr: float, chosen_I: Bools) -> float:
        """Return the lowest score above which the pairs of chosen people have at most this FMR."""
        allowed = fmr * _pairs(int(chosen_I.sum()))
        upto = np.cumsum(self.weights * self.within(chosen_I))
        place = int(np.searchsorted(upto, allowed * (1 + _SLACK), side="right"))
        return float(self.scores[min(place, len(self.scores) - 1)])

    def above(self, threshold: float) -> int:
        """Return how many scores are above a threshold."""
        return int(np.searchsorted(-self.scores, -threshold, side="left"))

    def at(self, threshold: float, of_K: Bools | None = None, compared_I: npt.ArrayLike | None = None) -> FalseMatches:
        """Return what passed a threshold.

        Args:
            threshold: a score.
            of_K: which pairs count, None: all.
            compared_I: with how many others each person is compared in these, None: with all.
        """
        upto, n = self.above(threshold), self.people
        kept = np.flatnonzero(of_K[:upto]) if of_K is not None else np.arange(upto)
        degree_I = np.full(n, n - 1) if compared_I is None else np.asarray(compared_I)
        pairs = int(degree_I.sum()) // 2
        low, high = np.minimum(self.first[kept], self.second[kept]), np.maximum(self.first[kept], self.second[kept])
        codes, of_code = np.unique(low * n + high, return_inverse=True)
        share = np.bincount(of_code, self.weights[kept], len(codes))
        of_person_I = np.bincount(codes // n, share, n) + np.bincount(codes % n, share, n)
        total, squares = float(share.sum()), float((share**2).sum())
        rate = total / pairs
        disjoint = (
            pairs**2 - pairs - float((degree_I * (degree_I - 1.0)).sum())
        )  # ordered pairs of pairs with nobody in common
        independent = max(squares - pairs * rate**2, 0.0) / pairs**2
        variance = independent
        if disjoint > 0:
            variance = max(independent, rate**2 - (total**2 + squares - float((of_person_I**2).sum())) / disjoint)
        effect = variance / independent if independent > 0 else 1.0
        freedom = freedom_of((of_person_I - rate * degree_I)[degree_I > 0])
        return FalseMatches(rate, pairs, len(kept), variance, effect, freedom)


def _pairs(people: int) -> int:
    return people * (people - 1) // 2
