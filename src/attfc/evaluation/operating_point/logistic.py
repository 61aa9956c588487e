"""P(same person | score): a logistic curve through mated and nonmated scores that weigh alike, and how good it is on other people (Brier score).

Targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2) for n people, so that kinds which do not overlap give a finite curve. Newton's method, some
ten passes.

Sources: Platt 1999 (the curve and its targets); Brier 1950: the mean of (P - 1 if same, else 0)^2; knowing nothing gives 0.25.
"""

import numpy as np

from attfc.typing import Bools, Float64

__all__ = ["brier_score", "fit_logistic"]

_PASSES = 50


def fit_logistic(scores: Float64, same: Bools, weights: Float64, people: int) -> tuple[float, float]:
    """Return slope and offset of P = 1 / (1 + exp(-(slope score + offset))); each kind's weights count as one half in all.

    >>> slope, offset = fit_logistic(np.array([0.9, 0.6, 0.4, 0.1]), np.array([True, False, True, False]), np.ones(4), 100)
    >>> round(-offset / slope, 3)  # where both are as likely
    0.5
    """
    weights = _even(weights, same)
    target = np.where(same, (people + 1.0) / (people + 2.0), 1.0 / (people + 2.0))
    centre, spread = float(weights @ scores), float(np.sqrt(np.cov(scores, aweights=weights))) or 1.0
    design = np.stack([(scores - centre) / spread, np.ones_like(scores)])
    found = np.array([1.0, 0.0])
    for _ in range(_PASSES):
        chance = _chance(found @ design)
        gradient = design @ (weights * (target - chance))
        bend = (design * (weights * chance * (1 - chance))) @ design.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, gradient)
        found = found + np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(found[0] / spread), float(found[1] - found[0] * centre / spread)


def brier_score(curve: tuple[float, float], scores: Float64, same: Bools, weights: Float64) -> float:
    """Return the mean squared error of P(same person), each kind counting as one half in all."""
    return float(_even(weights, same) @ (_chance(curve[0] * scores + curve[1]) - same) ** 2)


def _even(weights: Float64, same: Bools) -> Float64:
    even: Float64 = weights / np.where(same, weights[same].sum(), weights[~same].sum()) / 2
    return even


def _chance(logit: Float64) -> Float64:
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -500.0, 500.0)))
