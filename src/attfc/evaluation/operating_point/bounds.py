"""Bounds of a rate that was counted on people: exact for independent comparisons, widened for those that share a person.

Korn and Graubard: a rate p whose variance over draws of people is V is worth as much as n = p (1 - p) / V independent comparisons, and gets the
bounds of Clopper and Pearson for n p of n. The variance itself is an estimate, from few people who matched at all: n is reduced by
(t_infinity / t_df)^2. Where nothing was seen, 0 of n gives the rule of three, 3 / n.

Cost: a grid of 8,192 numbers per bound.

Sources: Clopper and Pearson 1934; Korn and Graubard 1998 (few positives under dependence); Hanley and Lippman-Hand 1983 (rule of three).
"""

import math

import numpy as np

from attfc.typing import Float64

__all__ = ["RULE_OF_THREE", "beta_quantile", "freedom_of", "rate_bounds", "student_quantile"]

RULE_OF_THREE = 3.0  # -ln 0.05 = 2.996: none of n seen leaves up to 3 / n, with 95 % confidence
_GRID = 8192


def beta_quantile(share: float, a: float, b: float) -> float:
    """Return the number below which `share` of the beta distribution of a, b > 0 lies, to 1e-4 of itself.

    >>> round(beta_quantile(0.95, 1, 100), 4)  # 0 of 100 seen: the rule of three
    0.0295
    """

    # The density of the logit l is exp(a l - (a + b) log(1 + e^l)): smooth, with one peak at log(a / b), tails exp(a l) and exp(-b l).
    def log_density(logit: Float64) -> Float64:
        return a * logit - (a + b) * np.logaddexp(0.0, logit)

    peak, spread = math.log(a / b), 12.0 / math.sqrt(1.0 / (1.0 / a + 1.0 / b))
    logits = np.linspace(peak - spread - 30.0 / a * (a < 4), peak + spread + 30.0 / b * (b < 4), _GRID)
    density = np.exp(log_density(logits) - log_density(np.array([peak])))
    upto = np.cumsum((density[1:] + density[:-1]) / 2)
    logit = float(np.interp(share, np.append(0.0, upto / upto[-1]), logits))
    return 1.0 / (1.0 + math.exp(min(-logit, 700.0)))


def student_quantile(share: float, freedom: float) -> float:
    """Return the quantile of Student's t, share above 0.5.

    >>> round(student_quantile(0.95, 10), 3)
    1.812
    """
    x = beta_quantile(2 * (1 - share), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def freedom_of(parts: Float64) -> float:
    """Return the degrees of freedom of a variance estimated from n people, by what each deviates: 2 n / (kurtosis - 1), from 1 to a million.

    Few where few people make up most of it, as those who match many others, or the few who are not recognised.

    >>> round(freedom_of(np.array([1.0, -1.0, 1.0, -1.0, 3.0, -3.0])), 5)
    11.34375
    """
    squares = parts**2
    return float(min(max(2 * float(squares.sum()) ** 2 / max(len(parts) * float(squares.var()), 1e-300), 1.0), 1e6))


def rate_bounds(rate: float, comparisons: float, freedom: float, share: float = 0.95) -> tuple[float, float]:
    """Return the lower and the upper bound of a rate, each of confidence `share`.

    Args:
        rate: seen.
        comparisons: how many independent ones it is worth.
        freedom: degrees of freedom of the variance from which that follows.

    >>> [round(bound, 5) for bound in rate_bounds(0.0, 1000, 1e6)]
    [0.0, 0.00299]
    """
    worth = comparisons * (student_quantile(share, 1e7) / student_quantile(share, freedom)) ** 2
    seen, others = rate * worth, (1.0 - rate) * worth
    low = beta_quantile(1 - share, seen, others + 1) if seen > 0 else 0.0
    high = beta_quantile(share, seen + 1, others) if others > 0 else 1.0
    return low, high
