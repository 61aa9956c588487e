"""Is one variant of a study behind another: the paired difference of a figure over seeds x people, its 95 % interval, and one word.

Both variants were judged on the same people with the same seeds, so that what a seed or a person does to both cancels. Each resample draws the people
again and, of S seeds, S - 1 (that many draws give a mean's variance without bias). Weights of both kinds multiply, which counts the chance of a
single person under a single seed once too often: with the variance V_s of seeds alone, V_p of people alone and V of both, the percentiles are drawn
in to the variance 2 (V_s + V_p) - V, at least the larger of V_s and V_p. Few seeds tell their variance badly: the percentiles are widened as
Student's t is against the normal distribution, degrees of freedom after Satterthwaite. In simulations of 3 and 5 seeds 93 to
98 % of the intervals held the truth.

Where each seed keeps other people aside (folds), people are drawn within their fold. The spread of the folds then has the people's in it already:
the variance is V_s, at least V_p.

Thresholds are those of all impostor pairs and stay: how far the impostors of other people would move them is not in the interval.

Cost: a product (resamples x people) (people x seeds) per figure. Sources: Owen 2007 (both factors of a crossed array drawn again); Rao and Wu 1988
(S - 1 of S); Satterthwaite 1946.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.operating_point.bounds import student_quantile
from attfc.lab.study_people import unpacked
from attfc.typing import Array, Float64

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
    one: Sequence[dict[str, Any]],
    other: Sequence[dict[str, Any]],
    figure: str,
    split: str,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Return `one` less `other`, or None with fewer than `FEWEST_SEEDS` common seeds whose cells keep each person's hits.

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
    folds = len({of_one[number]["images"] for number in seeds}) > 1
    rng, people = np.random.default_rng(seed), 0
    columns: list[Float64] = []
    for number in seeds:
        if folds or not columns:
            count = len(unpacked(of_one[number]["images"]))
            weights_RP = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
            weights_RP = np.concatenate([np.ones((1, count)), weights_RP])
            people += count
        columns.append(_rates(of_one[number], figure, weights_RP) - _rates(of_other[number], figure, weights_RP))
    found_RS, draws = np.stack(columns, axis=1), len(seeds) - 1
    shares_RS = rng.multinomial(draws, np.full(len(seeds), 1 / len(seeds)), size=resamples) / draws
    return _interval(found_RS[0], found_RS[1:], shares_RS, people, folds)


def _interval(whole_S: Float64, found_RS: Float64, shares_RS: Float64, people: int, folds: bool) -> Difference:
    value, both_R = float(whole_S.mean()), (found_RS * shares_RS).sum(axis=1)
    of_seeds, of_people = float(np.var(shares_RS @ whole_S)), float(np.var(found_RS.mean(axis=1)))
    total = float(np.var(both_R))
    if total == 0.0:
        return Difference(value, value, value)
    variance = max(of_seeds, of_people) if folds else max(2 * (of_seeds + of_people) - total, of_seeds, of_people)
    freedom = variance**2 / (of_seeds**2 / (len(whole_S) - 1) + of_people**2 / (people - 1))
    wider = student_quantile(0.975, freedom) / student_quantile(0.975, 1e6)
    scale = math.sqrt(variance / total) * wider
    low, high = np.quantile(both_R, [0.025, 0.975])
    return Difference(value, value + scale * (float(low) - value), value + scale * (float(high) - value))


def _rates(people: dict[str, Any], figure: str, weights_RP: Float64) -> Float64:
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
    rates_R: Float64 = (weights_RP @ hits_P) / (weights_RP @ of_P)
    return rates_R
