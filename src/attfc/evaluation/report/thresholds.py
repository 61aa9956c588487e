"""Which score counts as the same person: the threshold of a model's operating point (`attfc calibrate`), else those of its own evaluation.

A run's `evaluation.json` and a file of `attfc evaluate MODEL all-pairs FOLDER --json FILE` have it. A FAR is taken where 30 pairs of different
people or more passed its threshold; of fewer the rate is not known. `thresholds_of` is the one place that chooses a model's thresholds.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attfc.errors import UserError
from attfc.evaluation.operating_point.point import ModelFile, OperatingPoint, beside, point_of, read_point
from attfc.evaluation.people import FEW_PEOPLE, rests_on

__all__ = ["Thresholds", "lowest_far", "thresholds_of"]

EVALUATION = "evaluation.json"
LARGEST = 2**24
FEWEST_ACCEPTED = 30  # pairs of strangers above a threshold


class Thresholds(NamedTuple):
    """Which score each FAR takes.

    Attributes:
        of_far: FAR -> threshold (cosine). source: what states them; "" where nothing does.
        point: the operating point, where it is one; its FMR is the FAR to go by where the user names none.
    """

    of_far: dict[float, float]
    source: str
    point: OperatingPoint | None = None

    @staticmethod
    def of(point: OperatingPoint, source: object) -> "Thresholds":
        """Return those of an operating point."""
        return Thresholds({point.asked_fmr: point.threshold}, str(source), point)


def thresholds_of(model: ModelFile, evaluation: Path | None = None) -> Thresholds:
    """Return the thresholds of a model: of the file that the user names, else its operating point, else the last evaluation of its run.

    Args:
        model: as `point_of` takes it.
        evaluation: of `attfc evaluate MODEL all-pairs FOLDER --json FILE`, or of `attfc calibrate`; None: what lies beside the model.

    Raises:
        OSError: the evaluation cannot be read.
        UserError: it is of another model, or holds no threshold that 30 pairs of strangers or more passed.
    """
    if evaluation is not None:
        known, of, point, rests = _read(evaluation)
        if point is not None:
            return Thresholds.of(point.check(model.digest, evaluation), evaluation)
        if of is None:
            return Thresholds(known, f"{evaluation}{rests} (it does not say of which model)")
        if of != model.digest and os.path.realpath(of) != os.path.realpath(model.path):
            raise UserError(
                f"{evaluation} is an evaluation of another model ({of}) than {model.path} ({model.digest}), whose scores differ: evaluate this one, "
                f"attfc evaluate {shlex.quote(str(model.path))} all-pairs FOLDER --json far.json"
            )
        return Thresholds(known, f"{evaluation}{rests}")
    point, path = point_of(model), model.path
    if point is not None:
        return Thresholds.of(point, beside(path) if beside(path).exists() else path)
    if path.name != "model":  # best/ is of another step than evaluation.json
        return Thresholds({}, "")
    try:
        known, _, _, rests = _read(path.parent / EVALUATION)
        return Thresholds(known, f"{path.parent / EVALUATION}{rests}")
    except (OSError, UserError):
        return Thresholds({}, "")


def _read(file: Path) -> tuple[dict[float, float], str | None, OperatingPoint | None, str]:
    """Return the thresholds of a file; whose they are, a digest, a run's model, or None where it says neither; the operating point it is; how few
    people it rests on."""
    of, rests = None, ""
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST)
        found: Any = json.loads(text)
        if "asked_fmr" in found:
            return {}, None, read_point(text, file), ""
        of = found.get("model_digest") or (str(file.parent / "model") if "step" in found else None)
        unseen = found.get("unseen") or {}
        found = found.get("all_pairs", found)
        stated, strangers, people = found["threshold_at_far"], int(found["impostor_pairs"]), found.get("identities")
        rests = f",\nwhich {rests_on(people)}" if isinstance(people, int) and people < FEW_PEOPLE else ""
        if isinstance(shared := unseen.get("shared_identities"), int) and shared:
            rests += f",\nof whose people {shared:,} were trained on"
        sure = {float(far): float(value) for far, value in stated.items() if value is not None}
        known = {far: value for far, value in sure.items() if far * strangers >= FEWEST_ACCEPTED}
    except (ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError):
        sure, known = {}, {}
    if odd := [
        f"{value:g} at FAR {far:g}" for far, value in sure.items() if not (0 <= far <= 1 and abs(value) <= 2)
    ]:  # a little above 1: nobody passes
        raise UserError(f"{file} is damaged: its threshold {odd[0]} cannot be, of a cosine and a rate; evaluate again")
    if not known:
        raise UserError(
            f"{file} states no threshold that {FEWEST_ACCEPTED} pairs of different people or more passed: take a file of "
            "attfc evaluate MODEL all-pairs FOLDER --json FILE, on more people"
        )
    return known, None if of is None else str(of), None, rests


def lowest_far(score: float, thresholds: Mapping[float, float]) -> float | None:
    """Return the lowest FAR at which a score (cosine) is accepted, of FAR -> threshold; None: it is at none.

    >>> lowest_far(0.4, {1e-3: 0.5, 1e-2: 0.3, 1e-1: 0.2})
    0.01
    """
    return min((far for far, threshold in thresholds.items() if score > threshold), default=None)
