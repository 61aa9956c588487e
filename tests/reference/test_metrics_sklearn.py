"""Figures of scored pairs against scikit-learn where it has them, against slow loops where it has not."""

import itertools
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sklearn.metrics import roc_auc_score, roc_curve
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import normalize

from attfc.evaluation.metrics import (
    area_under_roc,
    equal_error_rate,
    evaluate_pairs,
    evaluate_scores,
    fold_numbers,
    roc,
    tar_at_nearest_far,
)
from attfc.evaluation.protocols.search import rank_one
from attfc.evaluation.rates import tar_at_far


def some_pairs(seed: int, pairs: int, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping genuine and impostor scores; rounding makes ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.4
    same[:2] = True, False
    scores = np.clip(rng.normal(np.where(same, 0.45, 0.1), 0.2), -1, 1)
    return (scores if decimals is None else scores.round(decimals)), same


CASES = [(0, 1000, None), (1, 1000, 2), (2, 300, 1), (3, 37, 1), (4, 2, None)]


@pytest.mark.parametrize("case", CASES)
def test_roc_and_auc(case) -> None:
    scores, same = some_pairs(*case)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    ours = roc(scores, same)
    np.testing.assert_allclose(ours.far, far, atol=1e-12)
    np.testing.assert_allclose(ours.tar, tar, atol=1e-12)
    np.testing.assert_array_equal(ours.thresholds, thresholds)
    assert area_under_roc(scores, same) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)


@pytest.mark.parametrize("case", CASES[:4])
def test_tar_at_far_is_the_highest_point_of_the_roc_within_the_rate(case) -> None:
    scores, same = some_pairs(*case)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    for rate, ours in tar_at_far(scores[same], scores[~same], (1.0, 0.5, 0.3, 0.1, 0.01)).items():
        assert ours == (pytest.approx(tar[far <= rate + 1e-9].max()) if rate * (~same).sum() >= 1 else None)


def eer_by_loop(scores: np.ndarray, same: np.ndarray) -> float:
    """Walk down the thresholds; where false accepts overtake false rejects, meet on the line between the two points."""
    before = (0.0, 1.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        false_accept = sum(1 for s, g in zip(scores, same, strict=True) if not g and s >= threshold) / (~same).sum()
        false_reject = sum(1 for s, g in zip(scores, same, strict=True) if g and s < threshold) / same.sum()
        if false_accept >= false_reject:
            (a0, r0), (a1, r1) = before, (false_accept, false_reject)
            share = (r0 - a0) / ((r0 - a0) + (a1 - r1))
            return a0 + share * (a1 - a0)
        before = (false_accept, false_reject)
    raise AssertionError("never reached: accepting everything has FAR 1 and FRR 0")


@pytest.mark.parametrize("case", CASES[1:])
def test_equal_error_rate(case) -> None:
    scores, same = some_pairs(*case)
    assert equal_error_rate(scores, same) == pytest.approx(eer_by_loop(scores, same), abs=1e-12)


def accuracies_by_loop(scores: np.ndarray, same: np.ndarray, folds: int, grid: bool) -> list[float]:
    """The protocol, one threshold at a time."""
    found = []
    for train, test in KFold(folds, shuffle=False).split(scores):
        if grid:
            cuts = [1 - d / 2 + 1e-15 for d in np.arange(0, 4, 0.01)]
        else:
            values = sorted(set(scores[train].tolist()), reverse=True)
            cuts = [values[0] + 1.0, *((a + b) / 2 for a, b in itertools.pairwise(values)), values[-1]]
        right = [sum((s >= cut) == g for s, g in zip(scores[train], same[train], strict=True)) for cut in cuts]
        best = [cut for cut, number in zip(cuts, right, strict=True) if number == max(right)]
        cut = best[0] if grid else best[len(best) // 2]
        found.append(float(np.mean([(s >= cut) == g for s, g in zip(scores[test], same[test], strict=True)])))
    return found


@pytest.mark.parametrize("thresholds", ["exact", "grid"])
@pytest.mark.parametrize(
    ("case", "folds"), [((0, 200, None), 10), ((1, 203, 2), 10), ((3, 37, 1), 3), ((5, 24, None), 2)]
)
def test_k_fold_accuracy(case, folds, thresholds) -> None:
    scores, same = some_pairs(*case)
    ours = evaluate_scores(scores, same, folds, thresholds=thresholds)
    expected = accuracies_by_loop(scores, same, folds, thresholds == "grid")
    assert list(ours.fold_accuracies) == pytest.approx(expected)
    assert ours.accuracy == pytest.approx(np.mean(expected))
    assert ours.std == pytest.approx(np.std(expected))


@pytest.mark.parametrize(("seed", "pairs", "lattice"), [(0, 600, False), (1, 203, False), (2, 400, True)])
def test_accuracy_of_embeddings_is_that_of_the_verification_protocol(seed, pairs, lattice) -> None:
    """Unit vectors in float64, squared distances from differences, 400 thresholds, same when below; on a lattice many lie on one."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    first = rng.normal(size=(pairs, 16))
    second = np.where(same[:, None], first + rng.normal(size=(pairs, 16)) * 0.9, rng.normal(size=(pairs, 16)))
    if lattice:  # cosines are eighths, squared distances quarters: exactly on the grid, as near as it has them
        first, second = np.where(first > 0, 1.0, -1.0), np.where(second > 0, 1.0, -1.0)
    rows = np.stack([first, second], axis=1).reshape(-1, 16) * (
        1.0 if lattice else rng.uniform(0.1, 30, (2 * pairs, 1))
    )
    unit = normalize(rows)
    distances = ((unit[0::2] - unit[1::2]) ** 2).sum(axis=1)
    expected = []
    for train, test in KFold(10, shuffle=False).split(distances):
        right = [np.mean((distances[train] < d) == same[train]) for d in np.arange(0, 4, 0.01)]
        expected.append(np.mean((distances[test] < np.arange(0, 4, 0.01)[np.argmax(right)]) == same[test]))
    found = evaluate_pairs(rows, same)
    assert list(found.fold_accuracies) == expected
    assert 0.6 < found.accuracy < 0.99
    assert (found.accuracy, found.std) == (np.mean(expected), np.std(expected))


@pytest.mark.parametrize("case", CASES[:4])
def test_nearest_far_is_that_of_the_published_ijb_scripts(case) -> None:
    scores, same = some_pairs(*case)
    far, tar, _ = roc_curve(same, scores)  # corners only
    far, tar = far[::-1], tar[::-1]
    rates = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.37)
    expected = {rate: tar[min(range(len(far)), key=lambda k, rate=rate: (abs(far[k] - rate), k))] for rate in rates}
    assert tar_at_nearest_far(scores, same, rates) == expected


def test_folds_are_those_of_kfold() -> None:
    for pairs, folds in ((6000, 10), (23, 5), (10, 10)):
        expected = np.empty(pairs)
        for number, (_, test) in enumerate(KFold(folds).split(np.zeros(pairs))):
            expected[test] = number
        np.testing.assert_array_equal(fold_numbers(pairs, folds), expected)


def test_rank_one_against_a_loop() -> None:
    rng = np.random.default_rng(6)
    centers = rng.normal(size=(40, 8))
    labels = rng.integers(0, 40, 150)
    rows = centers[labels] + rng.normal(size=(150, 8)) * 0.8
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    hits, probes = 0, 0
    for i in range(150):
        if (labels == labels[i]).sum() < 2:
            continue
        probes += 1
        others = [j for j in range(150) if j != i]
        hits += labels[max(others, key=lambda j: unit[i] @ unit[j])] == labels[i]
    found = rank_one(rows, labels, block=32)
    assert 0.2 < found.rate < 0.99
    assert (found.rate, found.probes) == (hits / probes, probes)
