"""TAR at FAR: the rate of accepted mated pairs at a rate of accepted non-mated pairs; which FARs a number of pairs can state.

What every metric of scored pairs requires of its arguments, refused in one line with the value. And the form in which results state metrics: plain
JSON types, rates as text (`Figures`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from attfc.errors import UserError
from attfc.typing import Bools, Float64, Json

__all__ = [
    "FARS",
    "Figures",
    "allowed_weight",
    "barred_place",
    "check_rates",
    "checked_pairs",
    "far_name",
    "not_stated",
    "pairs_needed",
    "plain",
    "tar_at_far",
    "tar_of_kinds",
]

FARS: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
_SLACK = 1e-9  # FAR x impostors in floating point: 0.29 x 100 is 28.999999999999996


def far_name(far: float) -> str:
    """Return the key of a FAR in JSON files: "0.1", "0.0001", "1e-06"."""
    return f"{far:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
    """A result that states some of its attributes as they stand in JSON files: those named in `STATED`, else the fields of its `repr`."""

    STATED: ClassVar[tuple[str, ...]] = ()

    def figures(self) -> Json:
        """Return the figures: plain JSON types, rates as text, unknown figures as None."""
        names = self.STATED or [field.name for field in dataclasses.fields(self) if field.repr]
        return {name: plain(getattr(self, name)) for name in names}


def plain(value: Any) -> Any:
    """Return a figure, or several laid into each other, as JSON has them."""
    if isinstance(value, Figures):
        return value.figures()
    if isinstance(value, Mapping):
        return {far_name(key) if isinstance(key, float) else str(key): plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def pairs_needed(far: float) -> int:
    """Return the least number of non-mated pairs that can state a FAR: 1 / FAR, rounded up."""
    return math.ceil(1.0 / far - _SLACK)


def not_stated(rates: Mapping[float, object], impostors: int, what: str, of: str = "non-mated pairs") -> list[str]:
    """Return a note for each rate that so many non-mated pairs cannot state: those whose value is None."""
    return [
        f"{what} {far_name(rate)} is not stated: {impostors:,} {of}, at least {pairs_needed(rate):,} needed"
        for rate, value in rates.items()
        if value is None
    ]


def check_rates(fars: Sequence[float]) -> None:
    """Refuse a FAR that is not a rate."""
    for far in fars:
        if not 0 < far <= 1:
            raise UserError(f"FAR {far} is not a rate: use a number above 0 and at most 1")


def allowed_weight(rate: float, total: float) -> int:
    """Return how many of so many non-mated pairs may be accepted at a rate: rate x total, rounded down."""
    return math.floor(rate * total + _SLACK)


def barred_place(upto: Float64, rate: float, total: float) -> int:
    """Return the place of the first non-mated score that stays out when `rate` of their weight may be accepted.

    Args:
        upto: weight of the 1, 2 ... highest non-mated scores.
        rate: FAR or FPIR.
        total: weight of all non-mated pairs; some of the lowest may be missing in `upto`.
    """
    return int(np.searchsorted(upto, allowed_weight(rate, total), side="right"))


def tar_at_far(
    scores: npt.ArrayLike, same: npt.ArrayLike, fars: Sequence[float] = FARS, *, impostor_pairs: int | None = None
) -> dict[float, float | None]:
    """Return the share of mated scores accepted at the laxest threshold whose share of accepted non-mated pairs is <= FAR.

    Of I non-mated scores floor(FAR x I) may be accepted; a mated pair is accepted when its score is above the next
    non-mated one. Equal scores are accepted or rejected together. With fewer than 1 / FAR non-mated pairs the value is
    None: not a single false accept would be allowed, and the figure would be that of another FAR.

    Args:
        scores: (P,) similarities.
        same: (P,) booleans, true where both images show one person. Or, if no booleans, (I,) the scores of the non-mated pairs;
            then `scores` are those of the mated pairs.
        fars: false accept rates in (0, 1].
        impostor_pairs: how many non-mated pairs were scored when only the highest are passed; a FAR that
            reaches below the scores held is None as well.

    Raises:
        UserError: scores that are booleans or not finite, pairs of one kind only, a FAR that is not a rate.

    >>> tar_at_far([0.9, 0.5, 0.7, 0.4, 0.3, 0.2, 0.1], [True, False, True, False, True, False, False], (0.25, 0.5, 0.1))
    {0.25: 0.6666666666666666, 0.5: 1.0, 0.1: None}
    >>> tar_at_far([0.9, 0.7, 0.3], [0.5, 0.4, 0.2, 0.1], fars=(0.25, 0.5, 0.1))
    {0.25: 0.6666666666666666, 0.5: 1.0, 0.1: None}
    """
    others = np.asarray(same)
    if others.dtype == np.bool_:
        scores_P, same_P = checked_pairs(scores, others, both_kinds=False)
        genuine, impostors = scores_P[same_P], scores_P[~same_P]
    else:
        genuine, impostors = checked_scores(scores, "mated score"), checked_scores(others, "non-mated score")
        if others.dtype.kind in "iu" and genuine.size == impostors.size and np.isin(others, (0, 1)).all():
            raise UserError(
                f"same 0 is {others.ravel()[0]}, of type {others.dtype}: pass booleans (same == 1), or non-mated scores as floating-point numbers"
            )
    return tar_of_kinds(genuine, impostors, fars, impostor_pairs)


def tar_of_kinds(
    genuine: npt.ArrayLike, impostors: npt.ArrayLike, fars: Sequence[float], impostor_pairs: int | None = None
) -> dict[float, float | None]:
    """Return `tar_at_far` of mated and non-mated scores that are known to be numbers; -inf is never accepted."""
    genuine_G = np.asarray(genuine, dtype=np.float64)
    highest = np.sort(np.asarray(impostors, dtype=np.float64))[::-1]
    total = highest.size if impostor_pairs is None else impostor_pairs
    if genuine_G.size == 0 or total == 0:
        raise UserError(f"{genuine_G.size} mated and {total} non-mated scores: TAR at FAR needs at least one of each")
    check_rates(fars)
    found: dict[float, float | None] = dict.fromkeys(fars)
    for far in fars:
        allowed = allowed_weight(far, total)
        if allowed >= total:
            found[far] = 1.0
        elif 0 < allowed < highest.size:
            found[far] = float(np.mean(genuine_G > highest[allowed]))
    return found


def checked_scores(scores: npt.ArrayLike, what: str = "score") -> Float64:
    """Return (P,) float64 scores.

    Raises:
        UserError: booleans, values that are not numbers or not finite, more than one dimension.
    """
    given = np.asarray(scores)
    if given.dtype == np.bool_:
        shown = f"{what} 0 is {bool(given.flat[0])}" if given.size else f"the {what}s are booleans"
        raise UserError(
            f"{shown}: scores are similarities, numbers such as cosines; which pairs are mated is passed as same"
        )
    try:
        scores_P = given.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}s of type {given.dtype} are not numbers: pass similarities such as cosines") from None
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
        kind, missing = ("non-mated", "mated") if genuine == 0 else ("mated", "non-mated")
        raise UserError(
            f"all {same_P.size} pairs are {kind} pairs: verification metrics need at least one {missing} pair too"
        )
    return scores_P, same_P
