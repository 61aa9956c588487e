"""The weighted metrics, with weights 1, are those of the unweighted definitions to the last bit."""

import math

import numpy as np
import pytest

from attfc.evaluation.bootstrap import IdentityDraw
from attfc.evaluation.metrics import area_under_roc, equal_error_rate, evaluate_scores
from attfc.evaluation.samples import PairListSample
from attfc.evaluation.tail_sample import TailSample

FARS = (0.5, 0.1, 0.02, 1e-3)


GRID = np.arange(0, 4, 0.01)


def naive_area(scores: np.ndarray, same: np.ndarray) -> float:
    """P(genuine > impostor) + P(equal) / 2."""
    genuine, impostor = scores[same], np.sort(scores[~same])
    below = np.searchsorted(impostor, genuine, side="left")
    not_above = np.searchsorted(impostor, genuine, side="right")
    return int(below.sum() + not_above.sum()) / (2 * genuine.size * impostor.size)


def naive_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Down the genuine scores: first the impostors between two of them come in, then those equal to the next with it."""
    values, counts = np.unique(scores[same], return_counts=True)
    impostor = np.sort(scores[~same])
    accepted = np.cumsum(counts[::-1])
    before, after = 1.0 - (accepted - counts[::-1]) / accepted[-1], 1.0 - accepted / accepted[-1]
    above = 1.0 - np.searchsorted(impostor, values[::-1], side="right") / impostor.size
    with_equal = 1.0 - np.searchsorted(impostor, values[::-1], side="left") / impostor.size
    k = int(np.argmax(with_equal >= after))
    if above[k] >= before[k]:
        return float(before[k])
    gap = above[k] - before[k]
    share = gap / (gap - (with_equal[k] - after[k]))
    return float(above[k] + share * (with_equal[k] - above[k]))


def naive_tar(scores: np.ndarray, same: np.ndarray, far: float) -> float | None:
    """The share of genuine scores above the first impostor that must stay out."""
    highest = np.sort(scores[~same])[::-1]
    allowed = min(math.floor(far * highest.size + 1e-9), highest.size)
    if allowed == 0:
        return None
    return 1.0 if allowed == highest.size else float(np.mean(scores[same] > highest[allowed]))


def _best_gap(scores: np.ndarray, same: np.ndarray) -> float:
    values = np.unique(scores)[::-1]
    middle = (values[:-1] + values[1:]) / 2
    middle = np.where(middle > values[1:], middle, values[:-1])
    candidates = np.concatenate([[np.nextafter(values[0], np.inf)], middle, [values[-1]]])
    right = [int(((scores >= candidate) == same).sum()) for candidate in candidates]
    best = np.flatnonzero(np.array(right) == max(right))
    return float(candidates[best[best.size // 2]])


def naive_accuracies(scores: np.ndarray, same: np.ndarray, fold: np.ndarray, grid: bool) -> list[float]:
    """Each fold at the threshold of the others: the strictest best distance of the grid, or the middle one of the best gaps."""
    found = []
    for number in np.unique(fold):
        test = fold == number
        if grid:
            distances = 2.0 - 2.0 * scores
            right = [int(((distances[~test] < distance) == same[~test]).sum()) for distance in GRID]
            accepted = distances[test] < GRID[int(np.argmax(right))]
        else:
            accepted = scores[test] >= _best_gap(scores[~test], same[~test])
        found.append(float(np.mean(accepted == same[test])))
    return found


def random_list(seed: int) -> tuple[np.ndarray, ...]:
    """Scores of few to many ties, some folds of one kind."""
    rng = np.random.default_rng(seed)
    pairs = int(rng.integers(20, 250))
    same = rng.random(pairs) < rng.uniform(0.2, 0.8)
    same[:2] = True, False
    scores = np.where(same, rng.normal(0.5, 0.2, pairs), rng.normal(0.1, 0.2, pairs)).clip(-1, 1)
    first = rng.integers(30, size=pairs)
    second = np.where(same, first, (first + rng.integers(1, 30, size=pairs)) % 30)
    return scores.round(int(rng.integers(1, 8))), same, rng.integers(0, 5, pairs), first, second


@pytest.mark.parametrize("thresholds", ["grid", "exact"])
def test_weight_one_is_the_definition_to_the_last_bit(thresholds) -> None:
    for seed in range(120):
        scores, same, fold, first, second = random_list(seed)
        found = evaluate_scores(scores, same, fold, thresholds=thresholds, fars=FARS)
        expected = naive_accuracies(scores, same, fold, thresholds == "grid")
        assert found.fold_accuracies == tuple(expected)
        assert (found.accuracy, found.std) == (np.mean(expected), np.std(expected))
        area, error = naive_area(scores, same), naive_error_rate(scores, same)
        assert (found.auc, found.eer) == (area_under_roc(scores, same), equal_error_rate(scores, same)) == (area, error)
        tars = {far: naive_tar(scores, same, far) for far in FARS}
        assert found.tar_at_far == tars
        sample = PairListSample.of(evaluate_scores(scores, same, fold, thresholds=thresholds, fars=FARS), first, second)
        everybody = sample.figures(IdentityDraw(np.ones(sample.identities)))
        stated = {("tar_at_far", f"{far:g}"): tar for far, tar in tars.items() if tar is not None}
        assert everybody == {("accuracy",): found.accuracy, ("auc",): area, ("eer",): error, **stated}
        tail = TailSample.of_list(scores, same, first, second, fars=FARS)
        for path, value in tail.figures(IdentityDraw(np.ones(tail.identities))).items():
            assert value == pytest.approx(everybody[path], abs=1e-15)
