"""What a model's operating point does to the people of an evaluation: FNMR and FMR at its threshold, from the scores behind the evaluation's figures.

`attfc calibrate` measured the point on its own people; here it is judged on others, and `attfc compare` judges each model at its own threshold.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from attfc.evaluation.bootstrap import FigurePath, Samples, figure_at
from attfc.evaluation.operating_point.point import OperatingPoint
from attfc.evaluation.protocols.protocol import Cell, Outcome, Table
from attfc.evaluation.samples import PairListSample, ShareSample
from attfc.evaluation.tail_sample import TailSample
from attfc.typing import Json

__all__ = ["AT_POINT", "at_point_of", "judged_at"]

AT_POINT = "at_operating_point"


def judged_at(point: OperatingPoint, outcome: Outcome) -> Outcome:
    """Return an outcome with `at_operating_point`: threshold, FNMR and FMR of its pairs, with the sample of FNMR.

    FMR is None where the threshold lies below the impostor scores that were kept.
    """
    samples: Samples = {}
    figures: dict[str, dict[str, float | None]] = {}
    for place, several in outcome.samples.items():
        if "slices" in place or "groups" in place:
            continue
        for sample in several:
            if isinstance(sample, PairListSample):
                who, genuine = sample.first[sample.same], sample.scores[sample.same]
                impostors, pairs = sample.scores[~sample.same], int((~sample.same).sum())
            elif isinstance(sample, TailSample):
                order = np.argsort(sample.genuine_identities, kind="stable")  # not of the scores: equal for every model
                who, genuine = sample.genuine_identities[order], sample.genuine_scores[order]
                impostors, pairs = sample.impostor_scores, sample.impostor_pairs
            else:
                continue
            name = _named(place)
            missed, accepted = genuine <= point.threshold, int((impostors > point.threshold).sum())
            known = accepted < len(impostors) or len(impostors) == pairs
            figures[name] = {"threshold": point.threshold, "fnmr": float(np.mean(missed))}
            figures[name]["fmr"] = accepted / pairs if known else None
            samples[AT_POINT, name] = [ShareSample("fnmr", missed, np.unique(who, return_inverse=True)[1])]
    if not samples:
        return outcome
    outcome.figures[AT_POINT] = figures
    columns = {"threshold": Cell(("threshold",), "share"), "FNMR %": Cell(("fnmr",)), "FMR": Cell(("fmr",), "share")}
    table = Table.of(
        "at the operating point", columns, [(name.replace("_", " "), (AT_POINT, name)) for name in figures]
    )
    return dataclasses.replace(outcome, samples={**outcome.samples, **samples}, shown=[*outcome.shown, table])


def at_point_of(figures: Mapping[str, Any], place: FigurePath) -> Json:
    """Return what figures of any origin state at the operating point for the pairs whose figures stand at a place; empty: nothing."""
    found = figure_at(figures, (AT_POINT, _named(place)))
    return found if isinstance(found, dict) else {}


def _named(place: FigurePath) -> str:
    return " ".join(place) or "pairs"
