"""Which score a model's own evaluation calls the same person: the threshold of each FAR, from `evaluation.json` of its run.

A run's `evaluation.json` and a file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` have it. A FAR is taken where 30 pairs of different
people or more passed its threshold; of fewer the rate is not known. This is the one place that reads thresholds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attfc.errors import UserError

__all__ = ["lowest_far", "read_thresholds", "thresholds_of_run"]

LARGEST = 2**24
FEWEST_ACCEPTED = 30  # pairs of strangers above a threshold


def read_thresholds(file: Path) -> dict[float, float]:
    """Return FAR -> threshold (cosine) of an evaluation of all pairs.

    Raises:
        OSError: not readable.
        UserError: it holds no threshold of which 30 pairs of strangers or more passed.
    """
    try:
        with file.open("rb") as opened:
            found: Any = json.loads(opened.read(LARGEST))
        found = found.get("all_pairs", found)
        stated, strangers = found["threshold_at_far"], int(found["impostor_pairs"])
        sure = {float(far): value for far, value in stated.items() if value is not None}
        known = {far: float(value) for far, value in sure.items() if far * strangers >= FEWEST_ACCEPTED}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        known = {}
    if not known:
        raise UserError(
            f"{file} states no threshold that {FEWEST_ACCEPTED} pairs of different people or more passed: take a file of "
            "attfc evaluate MODEL all-pairs FOLDER --json FILE, on more people"
        )
    return known


def thresholds_of_run(model: Path) -> dict[float, float]:
    """Return FAR -> threshold of a run's last evaluation, beside its `model/`; empty: none is known."""
    if model.name != "model":  # best/ is of another step than evaluation.json
        return {}
    try:
        return read_thresholds(model.parent / "evaluation.json")
    except (OSError, UserError):
        return {}


def lowest_far(score: float, thresholds: Mapping[float, float]) -> float | None:
    """Return the lowest FAR at which a score (cosine) is accepted, of FAR -> threshold; None: it is at none.

    >>> lowest_far(0.4, {1e-3: 0.5, 1e-2: 0.3, 1e-1: 0.2})
    0.01
    """
    return min((far for far, threshold in thresholds.items() if score > threshold), default=None)
