"""Is one variant of a study behind another: the paired difference of a figure over seeds x people, its 95 % interval, and one word.

Both variants were judged on the same people with the same seeds, so that what a seed or a person does to both cancels. Each resample draws the people
again and, of S seeds, S - 1 (that many draws give a mean's variance without bias). Weights of both kinds multiply, which counts the chance of a
single person under a single seed once too often: with the variance V_s of seeds alone, V_p of people alone and V of both, the percentiles are drawn
in to the variance 2 (V_s + V_p) - V, at least the larger of V_s and V_p. Few seeds tell their variance badly: the percentiles are widened as
Student's t is against the normal distribution, degrees of freedom after Satterthwaite. In simulations of 3 and 5 seeds 93 to
98 % of the intervals held the truth.

Where seeds keep other people aside (folds), people are drawn within their fold; equal numbers of images are the same people. Where several seeds
judge each fold, seeds are drawn within it too, and all is as above. With one seed a fold, the spread of the folds has the people's in it already: the
variance is V_s, at least V_p.

Thresholds are those of all impostor pairs and stay: how far the impostors of other people would move them is not in the interval.

Cost: a product (resamples x people) (people x seeds) per figure. Sources: Owen 2007 (both factors of a crossed array drawn again); Rao and Wu 1988
(S - 1 of S); Satterthwaite 1946.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.operating_point.bounds import student_quantile
from attfc.lab.study_people import unpacked
from attfc.typing import Array, Float64, Json

__all__ = ["FEWEST_SEEDS", "Difference", "difference"]

FEWEST_SEEDS = 3
"""Fewer common seeds give no interval."""
BEHIND, LEVEL = 0.005, 0.01


@dataclass(frozen=True)
class Difference:
    """One variant's figure less another's, with its 95 % interval; 0.01 is a point."""

    value: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Return "behind" | "ahead" (the interval lies beyond half a point), "level" (within one point), else "open"."""
        if self.high < -BEHIND:
            return "behind"
        if self.low > BEHIND:
            return "ahead"
        return "level" if self.low >= -LEVEL and self.high <= LEVEL else "open"

    def text(self) -> str:
        """Return value, interval and word, in points.

        >>> Difference(0.004, -0.003, 0.011).text(), Difference(-0.02, -0.03, -0.01).text()
        ('+0.4 [-0.3, +1.1] open', '-2.0 [-3.0, -1.0] behind')
        """
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] {self.word}"


def difference(
    one: Sequence[Json],
    other: Sequence[Json],
    figure: str,
    split: str,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Return `one` less `other`, or None with fewer than `FEWEST_SEEDS` common seeds whose cells keep each person's hits, or one person.

    Args:
        one, other: cells of two variants.
        figure: "tar_at_far/0.01" | "person_balanced_tar_at_far/0.01" | "rank_one".
        split: whose people: "all" | "test".
        resamples, seed: of the bootstrap; the same seed draws the same people for every pair of variants.

    Raises:
        UserError: the variants were judged on other people under the same seed.
    """
    far = figure.partition("/")[2]
    of_one, of_other = (
        {
            cell["seed"]: cell["people"][split]
            for cell in cells
            if split in cell.get("people", {}) and far in {"", *cell["people"][split]["accepted"]}
        }
        for cells in (one, other)
    )
    seeds = sorted({*of_one} & {*of_other})
    if len(seeds) < FEWEST_SEEDS:
        return None
    if any(of_one[number]["images"] != of_other[number]["images"] for number in seeds):
        raise UserError(f"{one[0]['variant']} and {other[0]['variant']} were judged on other people: no difference")
    rng, people = np.random.default_rng(seed), 0
    weights: dict[str, Float64] = {}
    columns: dict[str, list[Float64]] = {}
    for number in seeds:
        fold = of_one[number]["images"]
        if fold not in weights:
            count = len(unpacked(fold))
            weights_RP = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
            weights[fold] = np.concatenate([np.ones((1, count)), weights_RP])
            people += count
        each = [_rates(cells[number], figure, weights[fold]) for cells in (of_one, of_other)]
        columns.setdefault(fold, []).append(each[0] - each[1])
    folds = [np.stack(of_fold, axis=1) for of_fold in columns.values()]
    if people < 2:
        return None
    alone = min(found_RS.shape[1] for found_RS in folds) == 1
    if alone:
        folds = [np.stack([found_RS.mean(axis=1) for found_RS in folds], axis=1)]
    return _interval(folds, rng, people, alone)


def _interval(folds: list[Float64], rng: np.random.Generator, people: int, alone: bool) -> Difference:
    """`folds`: of each the difference (1 + R, S), all people once and then drawn R times; `alone`: the columns are folds of one seed each."""
    resamples = len(folds[0]) - 1
    drawn = [(size - 1, np.full(size, 1 / size)) for size in (fold_RS.shape[1] for fold_RS in folds)]
    shares = [rng.multinomial(draws, even, size=resamples) / draws for draws, even in drawn]
    value = float(np.mean([fold_RS[0].mean() for fold_RS in folds]))
    pairs = list(zip(folds, shares, strict=True))
    both_R = np.mean([(fold_RS[1:] * shares_RS).sum(axis=1) for fold_RS, shares_RS in pairs], axis=0)
    of_seeds = float(np.var(np.mean([shares_RS @ fold_RS[0] for fold_RS, shares_RS in pairs], axis=0)))
    of_people = float(np.var(np.mean([fold_RS[1:].mean(axis=1) for fold_RS in folds], axis=0)))
    total = float(np.var(both_R))
    variance = max(of_seeds, of_people) if alone else max(2 * (of_seeds + of_people) - total, of_seeds, of_people)
    if total == 0.0 or variance == 0.0:
        return Difference(value, value, value)
    freedom = variance**2 / (of_seeds**2 / sum(draws for draws, _ in drawn) + of_people**2 / (people - 1))
    wider = student_quantile(0.975, freedom) / student_quantile(0.975, 1e6)
    scale = math.sqrt(variance / total) * wider
    low, high = np.quantile(both_R, [0.025, 0.975])
    return Difference(value, value + scale * (float(low) - value), value + scale * (float(high) - value))


def _rates(people: Json, figure: str, weights_RP: Float64) -> Float64:
    """A figure under each row of weights of the people, (R,)."""
    images_P = unpacked(people["images"])
    hits_P: Array
    of_P: Array
    if figure == "rank_one":
        hits_P, of_P = unpacked(people["rank_one"]), images_P
    else:
        hits_P, of_P = unpacked(people["accepted"][figure.partition("/")[2]]), images_P * (images_P - 1) // 2
    if figure.startswith("person_balanced"):
        hits_P, of_P = hits_P / of_P, np.ones(len(of_P))
    return (weights_RP @ hits_P) / (weights_RP @ of_P)
