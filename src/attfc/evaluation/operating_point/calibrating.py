"""A threshold for an asked false match rate, measured on other people than those that chose it.

The people are split into halves at random, many times. One half chooses: the lowest threshold at which its nonmated pairs stay within the asked FMR.
The other half is measured at that threshold. The threshold given is the median of those chosen, and the rates are means over the halves measured.
Their intervals come from the variance over people at that threshold (`nonmated`, `bounds`); the interval of the threshold is the scores at which the
bounds of the FMR are reached (Woodruff 1952).

An FMR is stated only if the people support it: with no false match at all in the half that is measured, the rule of three must reach the asked FMR.
Pairs are counted as what they are worth, after what pairs with a person in common have in common.

Cost: all pairs of images once, then a pass over the highest scores per split.
"""

import math

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.operating_point.bounds import RULE_OF_THREE, freedom_of, rate_bounds
from attfc.evaluation.operating_point.logistic import brier_score, fit_logistic
from attfc.evaluation.operating_point.nonmated import FalseMatches, NonmatedTail
from attfc.evaluation.operating_point.point import Estimate, GroupRates, Probability
from attfc.evaluation.operating_point.scores import SAMPLED, Scores
from attfc.evaluation.people import few_people
from attfc.typing import Bools, Float64, Int64, Json, Progress, Texts

__all__ = ["SPLITS", "calibrate_scores", "check_groups", "check_people", "people_needed"]

SPLITS = 100
CONFIDENCE = 0.95
FEWEST_MATED = 4
_CURVES = 20  # splits that fit it


def people_needed(fmr: float, dependence: float = 0.0) -> int:
    """Return how many people support an FMR: the half that is measured is worth 3 / FMR comparisons.

    Args:
        fmr: asked for.
        dependence: correlation of two pairs that have one person in common.

    >>> people_needed(1e-4), people_needed(1e-4, 0.001)
    (492, 626)
    """
    wanted = RULE_OF_THREE / fmr
    low, high = 2, 2**40
    while low < high:
        half = (low + high) // 2
        low, high = (low, half) if _worth_of_all(half, dependence) >= wanted else (half + 1, high)
    return 2 * low


def _worth_of_all(people: int, dependence: float) -> float:
    return people * (people - 1) / 2 / (1 + 2 * max(people - 2, 0) * dependence)


def check_people(people: int, fmr: float, where: str, dependence: float = 0.0) -> None:
    """Refuse an FMR that so many people cannot support."""
    needed = people_needed(fmr, dependence)
    if people >= needed:
        return
    supported = RULE_OF_THREE / max(_worth_of_all(people // 2, dependence), RULE_OF_THREE)
    shared = " (some of them match many others)," if dependence else ","
    raise UserError(
        f"{where} has {people:,} people, too few for FMR {fmr:g}: that needs about {needed:,}{shared} half to choose the threshold, half to "
        f"measure; these people support --fmr {_rounded_up(supported):g} or higher"
        + ("" if dependence else ", if none of them matches unusually many others")
    )


def check_groups(group_I: Texts, where: str) -> list[str]:
    """Return the names of the groups; refuse one of a single person."""
    names, counts = np.unique(group_I[group_I != ""], return_counts=True)
    if (counts < 2).any():
        raise UserError(
            f"group {names[counts < 2][0]} has one person in {where}: a group needs at least 2 people, and many more for a useful rate. "
            "Put this person into another group or leave them out of the file"
        )
    found: list[str] = names.tolist()
    return found


def _rounded_up(rate: float) -> float:
    """Return a rate with two digits, not below it.

    >>> _rounded_up(0.01579)
    0.016
    """
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.ceil(rate / unit - 1e-9) * unit:.2g}")


def calibrate_scores(
    scores: Scores,
    fmr: float,
    *,
    where: str,
    group_I: Texts | None = None,
    splits: int = SPLITS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Json:
    """Choose a threshold and measure it on other people.

    Args:
        scores: of `scores_of_people`.
        fmr: false match rate asked for.
        where: name of the set, for messages.
        group_I: the group of each person, "" for none.
        splits, seed: how often the people are split, and the seed of the splits.
        progress: called as (splits done, splits).

    Returns:
        The fields of `OperatingPoint` that scores decide.

    Raises:
        UserError: too few people for the FMR, or in a group.
    """
    people, tail = scores.people, scores.tail
    mated = scores.mated_pairs > 0
    check_people(people, fmr, where)
    if mated.sum() < FEWEST_MATED:
        raise UserError(
            f"{int(mated.sum())} people of {where} have two images or more: FNMR needs at least {FEWEST_MATED} of them, half to be measured"
        )
    kinds = [_Kind.everyone(tail), *_kinds_of_groups(tail, group_I, where)]
    thresholds, briers = [], []
    for number in range(splits):
        chosen = _half(mated, np.random.default_rng([seed, number]))
        thresholds.append(tail.threshold(fmr, chosen))
        rejected, upto = scores.rejected(thresholds[-1]), tail.above(thresholds[-1])
        measured = np.where(tail.within(~chosen)[:upto], tail.weights[:upto], 0.0)
        for kind in kinds:
            kind.measure(measured, ~chosen, rejected)
        if number < _CURVES:
            briers.append(_brier(scores, chosen))
        if progress is not None:
            progress(number + 1, splits)
    threshold = float(np.median(thresholds))
    found = tail.at(threshold)
    dependence = max(found.design_effect - 1.0, 0.0) / (2.0 * (people - 2))
    check_people(people, fmr, where, dependence)
    total, *groups = (kind.rates(scores, threshold, dependence) for kind in kinds)
    across = groups.pop() if len(groups) > 1 else None
    slope, offset = fit_logistic(*_curve_data(scores, np.ones(people, dtype=np.bool_)))
    return {
        "people": people,
        "mated_people": int(mated.sum()),
        "asked_fmr": fmr,
        "threshold": threshold,
        "threshold_interval": _interval_of_threshold(tail, fmr, total.fmr, found),
        "fmr": total.fmr,
        "fmr_upper": total.fmr_upper,
        "fnmr": total.fnmr,
        "comparisons": total.comparisons,
        "false_matches": total.false_matches,
        "worth": found.worth,
        "probability": Probability(slope=slope, offset=offset, brier=float(np.mean(briers))),
        "groups": tuple(groups),
        "across": across,
        "worst_over_geometric_mean": _worst_over_geometric_mean([group.fmr for group in groups]),
        "splits": splits,
        "seed": seed,
        "confidence": CONFIDENCE,
        "people_needed": tuple((rate, people_needed(rate, dependence * rate / fmr)) for rate in (fmr, fmr / 10)),
        "notes": _notes(int(mated.sum()), groups),
    }


def _half(mated: Bools, draw: np.random.Generator) -> Bools:
    """Choose half of the people at random, and half of those with mated pairs."""
    shuffled = draw.permutation(len(mated))
    chosen = np.zeros(len(mated), dtype=np.bool_)
    chosen[shuffled[np.argsort(~mated[shuffled], kind="stable")][1::2]] = True
    return chosen


def _interval_of_threshold(
    tail: NonmatedTail, fmr: float, rate: float, found: FalseMatches
) -> tuple[float | None, float | None]:
    """Return the scores at which the bounds of the FMR are reached; None: it lies beyond all scores."""
    low, high = rate_bounds(rate, found.worth, found.freedom, (1 + CONFIDENCE) / 2)
    if low <= 0:
        return None, None
    everybody = np.ones(tail.people, dtype=np.bool_)
    most, least = fmr * max(high / rate, rate / low), fmr * min(low / rate, rate / high)
    return tail.threshold(most, everybody), tail.threshold(least, everybody)


def _worst_over_geometric_mean(rates: list[float]) -> float | None:
    """Return how much worse the worst group is than the middle of all; None: no groups, or one without a false match."""
    return max(rates) / math.exp(float(np.mean(np.log(rates)))) if rates and min(rates) > 0 else None


def _notes(mated: int, groups: list[GroupRates]) -> tuple[str, ...]:
    silent = [group.name for group in groups if group.fmr == 0]
    notes = few_people(mated)
    if silent:
        notes.append(
            f"no false match within {', '.join(silent[:5])}{' and others' if len(silent) > 5 else ''}: the bounds are by the rule of three, "
            "and no worst FMR over the geometric mean can be given"
        )
    return tuple(notes)


ACROSS = "across groups"


class _Kind:
    """Pairs of people that are counted together (all, those within a group, those across groups), and what the halves measured showed of them.

    Attributes:
        name: "" for all. of_K: which scores of the tail. member_I: whose mated pairs.
        apart_I: the group of each member, whose own pairs are left out; None: none are.
    """

    def __init__(self, name: str, of_K: Bools, member_I: Bools, apart_I: Texts | None = None) -> None:
        self.name, self.of_K, self.member_I, self.apart_I = name, of_K, member_I, apart_I
        self.matched = self.compared = self.rejected = self.known = 0.0

    @staticmethod
    def everyone(tail: NonmatedTail) -> "_Kind":
        return _Kind("", np.ones(len(tail.scores), dtype=np.bool_), np.ones(tail.people, dtype=np.bool_))

    def compared_with(self, among_I: Bools) -> Int64:
        """Return with how many of these people each is compared."""
        present_I = among_I & self.member_I
        others_I = np.full(len(present_I), int(present_I.sum()) - 1)
        if self.apart_I is not None:
            _, group_I = np.unique(self.apart_I, return_inverse=True)
            others_I = others_I + 1 - np.bincount(group_I[present_I], minlength=int(group_I.max()) + 1)[group_I]
        return np.where(present_I, others_I, 0)

    def measure(self, weights: Float64, among_I: Bools, rejected_I: Float64) -> None:
        """Add a half: the weights of its scores above the threshold (0 for those of others), its people, their mated pairs rejected."""
        self.matched += float(weights[self.of_K[: len(weights)]].sum())
        self.compared += float(self.compared_with(among_I).sum()) / 2
        known = among_I & self.member_I & np.isfinite(rejected_I)
        self.rejected, self.known = self.rejected + float(rejected_I[known].sum()), self.known + int(known.sum())

    def rates(self, scores: Scores, threshold: float, dependence: float) -> GroupRates:
        """Return the rates of the halves measured, with bounds by what people differ at the threshold."""
        everybody = np.ones(scores.people, dtype=np.bool_)
        degree_I = self.compared_with(everybody)
        found = scores.tail.at(threshold, self.of_K, degree_I)
        fmr = self.matched / self.compared if self.compared else 0.0
        worth, freedom = found.worth, found.freedom
        if not found.matched:
            shared = float((degree_I * (degree_I - 1.0)).sum()) / found.pairs
            worth, freedom = found.pairs / (1 + dependence * shared), 1e6
        upper = rate_bounds(fmr, worth, freedom, CONFIDENCE)[1]
        return GroupRates(
            name=self.name,
            people=int(self.member_I.sum()),
            comparisons=found.pairs,
            false_matches=found.matched,
            fmr=fmr,
            fmr_upper=upper,
            fnmr=self._fnmr(scores.rejected(threshold)) if self.apart_I is None and self.known else None,
        )

    def _fnmr(self, rejected_I: Float64) -> Estimate:
        own = rejected_I[self.member_I & np.isfinite(rejected_I)]
        value, mean = self.rejected / self.known, float(own.mean())
        variance = float(own.var(ddof=1)) / len(own) if len(own) > 1 else 0.0
        worth = mean * (1 - mean) / variance if variance > 0 else float(len(own))
        freedom = freedom_of(own - mean) if variance > 0 else 1e6
        low, high = rate_bounds(value, worth, freedom, (1 + CONFIDENCE) / 2)
        return Estimate(value=value, low=low, high=high)


def _kinds_of_groups(tail: NonmatedTail, group_I: Texts | None, where: str) -> list[_Kind]:
    """Return the pairs within each group and those across groups."""
    if group_I is None:
        return []
    names = check_groups(group_I, where)
    of_first, of_second = group_I[tail.first], group_I[tail.second]
    kinds = [_Kind(name, (of_first == name) & (of_second == name), group_I == name) for name in names]
    if len(names) > 1:
        grouped = group_I != ""
        kinds.append(_Kind(ACROSS, (of_first != of_second) & tail.within(grouped), grouped, group_I))
    return kinds


def _curve_data(scores: Scores, among_I: Bools) -> tuple[Float64, Bools, Float64, int]:
    """Return scores, which are mated, weights and the number of people, for P(same person) of these people."""
    mated = np.flatnonzero(among_I[scores.mated_person])
    if len(mated) > SAMPLED:
        mated = np.random.default_rng(0).choice(mated, SAMPLED, replace=False)
    nonmated = among_I[scores.sampled_people].all(axis=0)
    both = np.concatenate([scores.mated[mated], scores.sampled[nonmated]])
    same = np.arange(len(both)) < len(mated)
    weights = np.append(1.0 / scores.mated_pairs[scores.mated_person[mated]], np.ones(int(nonmated.sum())))
    return both, same, weights, int(among_I.sum())


def _brier(scores: Scores, chosen_I: Bools) -> float:
    """Return the Brier score of the people not chosen under the curve of those chosen."""
    return brier_score(fit_logistic(*_curve_data(scores, chosen_I)), *_curve_data(scores, ~chosen_I)[:3])
