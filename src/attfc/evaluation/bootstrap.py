"""How far a figure would move with other people of the same kind: bootstrap by identity, with weights instead of copies.

An evaluation set is a sample of people. Its pairs are none: two pairs that share a person stand and fall together, so people are drawn again and not
pairs. Drawing n identities with replacement gives each a weight w, how often it was drawn; a mated pair of identity i counts w_i times, an
non-mated pair of i and j w_i w_j times (the vertex bootstrap), and every threshold is derived anew from the weighted scores. In identification each
probe weighs as its identity.

Product weights are right for what pairs share through a person, but count the chance of the single non-mated pair three times (E w^4 - 1 = 3 for two
independent weights of variance 1; no bootstrap of such arrays is exact, McCullagh 2000). The excess is known: a second bootstrap, of the single
pairs, gives their variance V_pair, and the percentiles are drawn in to the estimate by sqrt(1 - 2 V_pair / V_identity), sqrt(1/3) at the least. For
means that is the variance of Aronow, Samii and Assenova (2015).

A figure that no resample moves (TAR 1: no error at all) has no percentiles. Its bound is that of n identities without an error, (alpha / 2)^(1/n).

Cost: a pass over the scores a resample, in time and memory.

Sources: Snijders and Borgatti 1999 (vertex bootstrap); Owen and Eckles 2012 (product weights overstate interactions); Fogliato, Patil and Perona
2024, arXiv 2306.01198 (both for 1:1 matching); Aronow, Samii and Assenova 2015.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from attfc.errors import UserError
from attfc.typing import Array, Float64, Int64, Json

__all__ = [
    "FigurePath",
    "IdentityDraw",
    "Interval",
    "PairDraw",
    "Resampled",
    "Sample",
    "Samples",
    "figure_at",
    "identity_draws",
    "in_words",
    "interval_of_difference",
    "linked_identities",
    "nested",
    "resample",
]

FigurePath = tuple[str, ...]
"""Where a figure stands among the others: ("accuracy",), ("tar_at_far", "0.001")."""

PAIR_DRAWS = 500  # of the second bootstrap: a variance to within a sixteenth
FEW_IDENTITIES = 30


class IdentityDraw:
    """The weights of one resample: identities drawn again, (n,) how often each was drawn."""

    def __init__(self, weights: npt.ArrayLike) -> None:
        self.weights: Float64 = np.asarray(weights, dtype=np.float64)

    def of(self, identities: Int64) -> Float64:
        """Return the weights of what belongs to one identity each, (K,)."""
        return self.weights[identities]

    def of_pairs(self, first: Int64, second: Int64, codes: Int64) -> Float64:
        """Return the weights of non-mated pairs, (K,): the product of two; one where a list calls two images of one identity a non-mated pair.

        `codes` tell pairs apart, in every order and list of them.
        """
        weights = self.weights[first]
        weights *= np.where(first == second, 1.0, self.weights[second])
        return weights

    def linear(self, counts_I: Array, pairs: float) -> float:
        """Return the weight of so many non-mated pairs to first order, from how many of them each identity is in.

        The sum of w_i + w_j - 1 over the pairs: the product without (w_i - 1)(w_j - 1).
        """
        return float(counts_I @ self.weights) - pairs

    def all_pairs(self, images_I: Float64) -> float:
        """Return the weight of all non-mated pairs of identities with so many images, the sum of w_i w_j m_i m_j over i < j."""
        weighted = self.weights * images_I
        return float((weighted.sum() ** 2 - (weighted**2).sum()) / 2)


class PairDraw(IdentityDraw):
    """Non-mated pairs drawn again, each for itself (Poisson weights, a function of the number and the pair); each of n people stays."""

    _CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])

    def __init__(self, identities: int, number: int, seed: int) -> None:
        super().__init__(np.ones(identities))
        self._salt = np.random.default_rng([seed, 1, number]).integers(2**63, dtype=np.uint64)

    def of_pairs(self, first: Int64, second: Int64, codes: Int64) -> Float64:
        """Return Poisson(1) numbers, the same for the same code."""
        with np.errstate(over="ignore"):  # splitmix64 is meant to wrap around
            mixed = (codes.astype(np.uint64) + self._salt) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.searchsorted(self._CUMULATIVE, uniform, side="right").astype(np.float64)

    def linear(self, counts_I: Array, pairs: float) -> float:
        """Return the number of pairs: where they are so many, the single one does not matter."""
        return pairs


class Sample(Protocol):
    """Scores of an evaluation with the identity of each, from which all figures follow again under other weights."""

    @property
    def identities(self) -> int:
        """How many identities there are, numbered from 0."""

    @property
    def carriers(self) -> int:
        """How many of them can show an error of the model: those with a mated pair, those searched."""

    def figures(self, draw: IdentityDraw) -> dict[FigurePath, float]:
        """Return the figures under the weights of a draw; NaN for one that the draw leaves without a pair."""

    def facts(self) -> dict[str, Array]:
        """Return what two samples must have in common for their resamples to be the same people, and their figures comparable."""


Samples = dict[FigurePath, list[Sample]]
"""What figures were made of, by the place of their group."""


@dataclass(frozen=True)
class Interval:
    """A figure with its interval: `value` over all people, bounds None where the people are too few to say."""

    value: float
    low: float | None
    high: float | None

    def plain(self) -> list[float] | None:
        """Return [low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def text(self, places: int = 3, percent: bool = False) -> str:
        """Return "0.936 [0.921, 0.949]".

        >>> Interval(0.936, 0.9213, 0.949).text(), Interval(0.936, 0.9213, 0.949).text(2, percent=True)
        ('0.936 [0.921, 0.949]', '93.60 [92.13, 94.90]')
        """
        factor = 100 if percent else 1
        bounds = [f"{factor * bound:.{places}f}" for bound in self.plain() or ()]
        return f"{factor * self.value:.{places}f} [{', '.join(bounds) or '-'}]"


@dataclass(frozen=True, eq=False)
class Resampled:
    """A sample's figures over the resamples.

    Attributes:
        values: figure -> its value over all people.
        by_identity: figure -> (R,) values with identities drawn again; NaN where a draw left nothing to score.
        by_pair: figure -> (R',) values with non-mated pairs drawn again.
        carriers: see `Sample`.
        confidence: of the intervals.
    """

    values: dict[FigurePath, float]
    by_identity: dict[FigurePath, Float64] = field(repr=False)
    by_pair: dict[FigurePath, Float64] = field(repr=False)
    carriers: int
    confidence: float

    def intervals(self) -> dict[FigurePath, Interval]:
        """Return the interval of every figure."""
        return {path: self.interval(path) for path in self.values}

    def interval(self, path: FigurePath) -> Interval:
        """Return the interval of one figure."""
        value = self.values[path]
        low, high = _bounds(value, self.by_identity[path], self.by_pair[path], self.confidence)
        if low is not None and low == high and value in (0.0, 1.0) and self.carriers:
            # No resample has an error where none was seen. n people without one: their share may be up to 1 - (alpha/2)^(1/n).
            bound = 1.0 - ((1.0 - self.confidence) / 2) ** (1.0 / self.carriers)
            return Interval(value, 0.0 if value == 0.0 else 1.0 - bound, bound if value == 0.0 else 1.0)
        return Interval(value, low, high) if low != high else Interval(value, None, None)

    def notes(self) -> tuple[str, ...]:
        """Say what a reader of the intervals should know."""
        if self.carriers >= FEW_IDENTITIES or not self.values:
            return ()
        figures = ", ".join(dict.fromkeys(in_words(path[:1]) for path in self.values))
        people = "1 identity" if self.carriers == 1 else f"{self.carriers} identities"
        return (
            f"the intervals of {figures} rest on {people}: with fewer than {FEW_IDENTITIES} they tend to be too narrow",
        )


def _bounds(
    value: float, by_identity: Float64, by_pair: Float64, confidence: float
) -> tuple[float, float] | tuple[None, None]:
    known, pairs = by_identity[np.isfinite(by_identity)], by_pair[np.isfinite(by_pair)]
    if known.size < max(2, by_identity.size / 2):
        return None, None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    variance = float(np.mean((known - value) ** 2))
    excess = 2.0 * float(np.var(pairs)) / variance if variance > 0 and pairs.size else 0.0
    drawn_in = math.sqrt(max(1.0 / 3.0, 1.0 - excess))
    return value + drawn_in * (float(low) - value), value + drawn_in * (float(high) - value)


def interval_of_difference(one: Resampled, other: Resampled, path: FigurePath) -> Interval:
    """Return `one` minus `other` of a figure, the same people drawn for both.

    Both must come from `resample` with the same seed and number of resamples, of samples with equal `facts`.
    """
    value = one.values[path] - other.values[path]
    low, high = _bounds(
        value,
        one.by_identity[path] - other.by_identity[path],
        one.by_pair[path] - other.by_pair[path],
        one.confidence,
    )
    return Interval(value, low, high)


def identity_draws(identities: int, resamples: int, seed: int) -> Iterator[IdentityDraw]:
    """Draw `identities` of them with replacement, `resamples` times; number r depends on (seed, r) alone."""
    for number in range(resamples):
        chosen = np.random.default_rng([seed, 0, number]).integers(identities, size=identities)
        yield IdentityDraw(np.bincount(chosen, minlength=identities))


def resample(sample: Sample, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Resampled:
    """Compute a sample's figures over all people and over resamples of them.

    Args:
        sample: of `samples`.
        resamples: at least 20.
        confidence: of the intervals, between 0.5 and 1.
        seed: the same seed draws the same people.

    Raises:
        UserError: a number out of its range.
    """
    check_resampling(resamples, confidence)
    people = sample.identities
    values = sample.figures(IdentityDraw(np.ones(people)))

    def under(draws: Iterable[IdentityDraw]) -> dict[FigurePath, Float64]:
        rows = [sample.figures(draw) for draw in draws]
        return {path: np.array([row[path] for row in rows], dtype=np.float64) for path in values}

    by_identity = under(identity_draws(people, resamples, seed))
    by_pair = under(PairDraw(people, number, seed) for number in range(min(resamples, PAIR_DRAWS)))
    return Resampled(values, by_identity, by_pair, sample.carriers, confidence)


def check_resampling(resamples: int, confidence: float) -> None:
    """Refuse numbers that give no interval, before anything is embedded."""
    if resamples < 20:
        raise UserError(f"resamples={resamples}: an interval needs at least 20 of them, or 0 for none")
    if not 0.5 <= confidence < 1:
        raise UserError(f"confidence={confidence} is not a confidence: use a number from 0.5 to below 1, e.g. 0.95")


_WORDS = {
    "auc": "AUC",
    "eer": "EER",
    "tar_at_far": "TAR at FAR",
    "rank_one": "rank-1",
    "person_balanced_tar_at_far": "person-balanced TAR at FAR",
    "threshold_at_far": "threshold at FAR",
    "genuine_pairs": "mated pairs",
    "impostor_pairs": "non-mated pairs",
    "tpir_at_fpir": "TPIR at FPIR",
}


def in_words(path: FigurePath) -> str:
    """Return the place of a figure in the words of docs/glossary.md.

    >>> in_words(("all_pairs", "tar_at_far", "0.01"))
    'all pairs TAR at FAR 0.01'
    """
    return " ".join(_WORDS.get(name, name.replace("_", " ")) for name in path)


def figure_at(figures: Any, path: FigurePath) -> Any:
    """Return what stands at a place of nested figures, None where nothing does.

    >>> figure_at({"tar_at_far": {"0.001": 0.9}}, ("tar_at_far", "0.001"))
    0.9
    """
    for name in path:
        figures = figures.get(name) if isinstance(figures, Mapping) else None
    return figures


def nested(values: Mapping[FigurePath, Interval | float]) -> Json:
    """Return bounds, or figures, laid out as figures are in JSON: {"auc": [0.9, 0.95], "tar_at_far": {"0.001": [...]}}."""
    laid: Json = {}
    for path, value in values.items():
        holder = laid
        for name in path[:-1]:
            holder = holder.setdefault(name, {})
        holder[path[-1]] = value.plain() if isinstance(value, Interval) else value
    return laid


def linked_identities(count: int, first: Int64, second: Int64) -> Int64:
    """Number the groups of things that links join, directly or over others: (count,) int64, dense from 0.

    For lists that name no people: two images of a mated pair show one person. Two groups may still be one person, whom the list nowhere
    compares.

    >>> linked_identities(5, np.array([0, 3]), np.array([1, 0])).tolist()
    [0, 0, 1, 0, 2]
    """
    lowest = np.arange(count, dtype=np.int64)
    while True:
        both = np.minimum(lowest[first], lowest[second])
        before = lowest.copy()
        np.minimum.at(lowest, first, both)
        np.minimum.at(lowest, second, both)
        np.minimum.at(lowest, before[first], both)  # the group's number learns it as well: chains halve at each turn
        np.minimum.at(lowest, before[second], both)
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return np.unique(lowest, return_inverse=True)[1].astype(np.int64)
