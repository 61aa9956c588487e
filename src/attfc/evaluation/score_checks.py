"""What every metric of scored pairs requires of its arguments, refused in one line with the value."""

import numpy as np
import numpy.typing as npt

from attfc.errors import UserError
from attfc.typing import Bools, Float64

__all__ = ["checked_pairs", "checked_scores"]


def checked_scores(scores: npt.ArrayLike, what: str = "score") -> Float64:
    """Return (P,) float64 scores.

    Raises:
        UserError: booleans, values that are no numbers or not finite, more than one dimension.
    """
    given = np.asarray(scores)
    if given.dtype == np.bool_:
        shown = f"{what} 0 is {bool(given.flat[0])}" if given.size else f"the {what}s are booleans"
        raise UserError(
            f"{shown}: scores are similarities, numbers such as cosines; which pairs are genuine is passed as same"
        )
    try:
        scores_P = given.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}s of type {given.dtype} are no numbers: pass similarities such as cosines") from None
    if scores_P.ndim != 1:
        raise UserError(f"{what}s of shape {scores_P.shape}: pass a row of numbers, one per pair")
    broken = np.flatnonzero(~np.isfinite(scores_P))
    if broken.size:
        raise UserError(
            f"{what} {int(broken[0])} is {scores_P[broken[0]]} "
            f"({broken.size} of {scores_P.size} scores are not finite): check the model for divergence"
        )
    return scores_P


def checked_pairs(scores: npt.ArrayLike, same: npt.ArrayLike, both_kinds: bool = True) -> tuple[Float64, Bools]:
    """Return (P,) float64 scores, and (P,) true where both images show one person.

    Raises:
        UserError: as `checked_scores`; `same` that is neither booleans nor 0 and 1; other lengths; with `both_kinds`, pairs of one kind only.
    """
    scores_P, given = checked_scores(scores), np.asarray(same)
    if given.dtype != np.bool_:
        wrong = np.flatnonzero(~np.isin(given, (0, 1)))
        if wrong.size:
            raise UserError(
                f"same {int(wrong[0])} is {given.ravel()[wrong[0]]}: pass true where both images of a pair show one person, else false"
            )
    same_P = given.astype(np.bool_)
    if scores_P.shape != same_P.shape:
        raise UserError(f"{scores_P.shape} scores do not match {same_P.shape} labels: pass one of each per pair")
    genuine = int(same_P.sum())
    if both_kinds and (genuine == 0 or genuine == same_P.size):
        kind, missing = ("impostor", "genuine") if genuine == 0 else ("genuine", "impostor")
        raise UserError(
            f"all {same_P.size} pairs are {kind} pairs: verification figures need {missing} pairs as well, at least one"
        )
    return scores_P, same_P
