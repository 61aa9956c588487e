"""Which score a model's own evaluation calls the same person: the threshold of each FAR, from `evaluation.json` of its run.

A run's `evaluation.json` and a file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` have it. A FAR is taken where 30 pairs of different
people or more passed its threshold; of fewer the rate is not known. `thresholds_of` is the one place that chooses a model's thresholds.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attfc.errors import UserError

__all__ = ["lowest_far", "thresholds_of"]

EVALUATION = "evaluation.json"
LARGEST = 2**24
FEWEST_ACCEPTED = 30  # pairs of strangers above a threshold


def thresholds_of(model: Path, digest: str, evaluation: Path | None = None) -> tuple[dict[float, float], str]:
    """Return FAR -> threshold (cosine) of a model, and what states them; nothing and "" where nothing does.

    Args:
        model, digest: the model's folder or file, and the SHA-256 of its weights.
        evaluation: of `attfc evaluate MODEL all-pairs FOLDER --json FILE`; None: the last evaluation of the model's run.

    Raises:
        OSError: the evaluation cannot be read.
        UserError: it is of another model, or holds no threshold that 30 pairs of strangers or more passed.
    """
    if evaluation is not None:
        known, of = _read(evaluation)
        if of is None:
            return known, f"{evaluation} (it does not say of which model)"
        if of != digest and os.path.realpath(of) != os.path.realpath(model):
            raise UserError(
                f"{evaluation} is an evaluation of another model ({of}) than {model} ({digest}), whose scores differ: evaluate this one, "
                f"attfc evaluate {model} all-pairs FOLDER --json far.json"
            )
        return known, str(evaluation)
    if model.name != "model":  # best/ is of another step than evaluation.json
        return {}, ""
    try:
        return _read(model.parent / EVALUATION)[0], str(model.parent / EVALUATION)
    except (OSError, UserError):
        return {}, ""


def _read(file: Path) -> tuple[dict[float, float], str | None]:
    """Return the thresholds of a file, and whose they are: a digest, a run's model, or None where it says neither."""
    of = None
    try:
        with file.open("rb") as opened:
            found: Any = json.loads(opened.read(LARGEST))
        of = found.get("model_digest") or (str(file.parent / "model") if "step" in found else None)
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
    return known, None if of is None else str(of)


def lowest_far(score: float, thresholds: Mapping[float, float]) -> float | None:
    """Return the lowest FAR at which a score (cosine) is accepted, of FAR -> threshold; None: it is at none.

    >>> lowest_far(0.4, {1e-3: 0.5, 1e-2: 0.3, 1e-1: 0.2})
    0.01
    """
    return min((far for far, threshold in thresholds.items() if score > threshold), default=None)
