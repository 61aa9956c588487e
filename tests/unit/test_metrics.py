"""Figures of scored pairs against small cases that can be worked out by hand, and the errors."""

import json
import math

import numpy as np
import pytest
import torch

from attfc.errors import UserError
from attfc.evaluation.metrics import (
    area_under_roc,
    equal_error_rate,
    evaluate_pairs,
    evaluate_scores,
    fold_numbers,
    roc,
    tar_at_nearest_far,
)
from attfc.evaluation.protocols.all_pairs_scores import score_all_pairs
from attfc.evaluation.protocols.search import rank_one
from attfc.evaluation.rates import tar_at_far
from attfc.evaluation.unit_rows import unit_rows


def at_degrees(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_cosines_of_pairs_are_those_of_the_angles() -> None:
    rows = at_degrees(0, 10, 0, 80, 20, 50, 0, 100) * [[2.0], [1.0], [5.0], [0.1], [1.0], [1.0], [3.0], [1.0]]
    found = evaluate_pairs(rows, [True, False, True, False], folds=2, thresholds="exact")
    np.testing.assert_allclose(found.scores, np.cos(np.radians([10, 80, 30, 100])), atol=1e-12)
    assert (found.accuracy, found.std, found.auc, found.eer) == (1.0, 0.0, 1.0, 0.0)
    assert found.threshold == pytest.approx((math.cos(math.radians(30)) + math.cos(math.radians(80))) / 2)
    halved = torch.tensor(rows, dtype=torch.bfloat16)
    assert evaluate_pairs(halved, [True, False, True, False], folds=2, thresholds="exact").accuracy == 1.0


def test_threshold_of_a_fold_comes_from_the_other_folds() -> None:
    # Fold 0 separates at 0.5, fold 1 at 0.1: each is judged by the other's threshold.
    scores, same = [0.8, 0.2, 0.2, 0.0], [True, False, True, False]
    found = evaluate_scores(scores, same, folds=2)
    assert found.fold_accuracies == (0.5, 0.5)  # at 0.1 the impostor 0.2 passes, at 0.5 the genuine 0.2 fails
    assert evaluate_scores(scores, same, folds=[0, 1, 0, 1]).fold_accuracies == (0.5, 0.5)


def test_folds_are_contiguous_and_the_first_ones_take_what_is_left_over() -> None:
    assert fold_numbers(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.bincount(fold_numbers(6000, 10)).tolist() == [600] * 10


def best_threshold(scores, same, thresholds: str = "exact") -> float:
    return evaluate_scores(scores, same, np.arange(len(scores)) % 2, thresholds=thresholds).threshold


def test_threshold_lies_midway_and_of_equally_good_ones_the_middle_is_taken() -> None:
    assert best_threshold([0.8, 0.4], [True, False]) == pytest.approx(0.6)
    # Two errors are unavoidable: with the cut above 0.9, between 0.7 and 0.5, or at 0.1.
    assert best_threshold([0.9, 0.7, 0.5, 0.1], [False, True, False, True]) == pytest.approx(0.6)
    low, high = 1.0, np.nextafter(1.0, 2.0)
    assert low < best_threshold([high, low], [True, False]) <= high  # neighbours in floating point


def test_grid_is_that_of_the_published_scripts() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, 200)
    same = rng.random(200) < (scores + 1) / 2
    distances = 2 - 2 * scores
    best, kept = -1.0, 0.0
    for d in np.arange(0, 4, 0.01):
        right = np.mean((distances < d) == same)
        if right > best:
            best, kept = right, d
    threshold = best_threshold(scores, same, "grid")
    assert threshold == pytest.approx(1 - kept / 2)
    assert np.mean((scores >= threshold) == same) == best


def test_a_pair_whose_squared_distance_lies_on_the_grid_is_not_below_it() -> None:
    # Right angles: squared distance 2, exactly a threshold. Every fold's best is the first that accepts 60 degrees (1.0 + 0.01).
    rows = at_degrees(0, 60, 0, 90, 0, 60, 0, 90)
    rows[[3, 7]] = [0.0, 1.0]
    found = evaluate_pairs(rows, [True, False] * 2, folds=2)
    assert found.accuracy == 1.0
    assert 1 - found.threshold in (pytest.approx(0.5), pytest.approx(0.505))
    turned = evaluate_pairs(rows, [False, True] * 2, folds=2)
    assert (
        turned.accuracy == 0.5
    )  # the best is to accept nobody (distance 0), or both from 2.01 on: the strictest is taken
    assert turned.threshold > 1.0 - 1e-12


def test_other_squared_distances_decide_the_grid_alone() -> None:
    scores, same = [0.9, 0.1, 0.9, 0.1], [True, False, True, False]
    assert evaluate_scores(scores, same, 2, thresholds="grid").accuracy == 1.0
    swapped = evaluate_scores(scores, same, 2, thresholds="grid", squared_distances=[1.8, 0.2, 1.8, 0.2])
    assert (swapped.accuracy, swapped.auc) == (0.5, 1.0)
    with pytest.raises(UserError, match=r"\(3,\) squared distances do not match \(4,\) scores"):
        evaluate_scores(scores, same, 2, squared_distances=[0.1, 0.2, 0.3])


def test_roc_puts_equal_scores_into_one_point() -> None:
    curve = roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    assert curve.far.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.tar.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.5, 0.1]


def test_all_equal_scores_are_chance() -> None:
    scores, same = [0.3] * 10, [True, False] * 5
    assert area_under_roc(scores, same) == 0.5
    assert equal_error_rate(scores, same) == 0.5
    assert tar_at_far([0.3] * 5, [0.3] * 5, (0.2, 1.0)) == {0.2: 0.0, 1.0: 1.0}
    assert evaluate_scores(scores, same, folds=5).accuracy == 0.5


def test_equal_error_rate_is_interpolated_between_two_points() -> None:
    # ROC (0, 0) -> (0, 2/3) -> (1/2, 2/3) -> (1/2, 1) -> (1, 1): FAR = FRR = 1/3 on the level piece.
    assert equal_error_rate([0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]) == pytest.approx(1 / 3)


def test_tar_at_far_counts_allowed_impostors() -> None:
    genuine, impostors = [0.95, 0.85, 0.55, 0.15], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert tar_at_far(genuine, impostors, (0.1, 0.2, 0.5, 0.99, 1.0)) == {
        0.1: 0.5,
        0.2: 0.5,
        0.5: 0.75,
        0.99: 1.0,
        1.0: 1.0,
    }
    assert tar_at_far(genuine, [0.9, 0.9, *impostors[2:]], (0.1, 0.2))[0.1] == 0.25  # a tie comes in whole or not
    assert tar_at_far([0.5], np.arange(100) / 1000, (0.29,))[0.29] == 1.0  # 0.29 * 100 is below 29 in floating point
    exactly_29 = np.concatenate([np.full(29, 0.9), np.full(71, 0.1)])
    assert tar_at_far([0.5], exactly_29, (0.29,))[0.29] == 1.0


def test_far_that_cannot_be_stated_is_none_and_says_how_many_pairs_it_takes() -> None:
    found = evaluate_scores(np.linspace(0, 1, 1998), [False, True] * 999)
    assert found.tar_at_far[0.01] is not None
    assert found.tar_at_far[0.001] is None
    assert "TAR at FAR 0.001 is not stated: 999 non-mated pairs, at least 1,000 needed" in found.notes
    written = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert written["tar_at_far"]["0.0001"] is None
    assert list(written["tar_at_far"]) == ["0.1", "0.01", "0.001", "0.0001"]
    assert (written["genuine_pairs"], written["impostor_pairs"], written["pairs"]) == (999, 999, 1998)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.array([[1.0, 0], [0, 0], [1, 1], [1, 1]]), r"embedding 1 has length 0 \(1 of 4"),
        (np.array([[1.0, 0], [1, 1], [np.nan, 1], [np.inf, 1]]), r"embedding 2 has NaN or infinity \(2 of 4"),
        (np.ones((3, 2)), "3 embeddings for 2 pairs"),
        (np.ones(4), r"shape \(4,\)"),
    ],
)
def test_unusable_embeddings_are_named(rows, text) -> None:
    with pytest.raises(UserError, match=text):
        evaluate_pairs(rows, [True, False], folds=2)


def test_unit_rows_bears_tiny_and_huge_rows() -> None:
    np.testing.assert_allclose(unit_rows(np.array([[3e-200, 4e-200], [3e200, 4e200]])), [[0.6, 0.8]] * 2)


@pytest.mark.parametrize(
    ("scores", "same", "folds", "text"),
    [
        (
            [0.1, 0.2],
            [True, True],
            2,
            "all 2 pairs are mated pairs: verification metrics need at least one non-mated pair",
        ),
        ([0.1, 0.2], [False, False], 2, "all 2 pairs are non-mated pairs"),
        ([0.1, math.nan], [True, False], 2, "score 1 is nan"),
        ([0.1, 0.2], [True, False], 10, "2 pairs cannot be split into 10 folds"),
        ([0.1, 0.2], [True, False], [0, 0], "in one fold"),
        ([0.1, 0.2], [True, False], [0, 1, 1], "do not match"),
        ([0.1, 0.2, 0.3], [True, False], 2, "do not match"),
    ],
)
def test_unusable_pairs_are_refused(scores, same, folds, text) -> None:
    with pytest.raises(UserError, match=text):
        evaluate_scores(scores, same, folds)


OF_PAIRS = [
    pytest.param(function, id=function.__name__)
    for function in (
        roc,
        area_under_roc,
        equal_error_rate,
        tar_at_far,
        tar_at_nearest_far,
        evaluate_scores,
    )
]


@pytest.mark.parametrize("metric", OF_PAIRS)
@pytest.mark.parametrize(
    ("scores", "same", "text"),
    [
        (
            [True, False],
            [True, False],
            "score 0 is True: scores are similarities, numbers such as cosines; which pairs are mated",
        ),
        ([0.5, math.nan, math.inf], [True, False, True], r"score 1 is nan \(2 of 3 scores are not finite\)"),
        ([-math.inf, 0.1], [True, False], "score 0 is -inf"),
        ([0.1, 0.2, 0.3], [True, False], r"\(3,\) scores do not match \(2,\) labels"),
        ([[0.1, 0.2]], [[True, False]], r"scores of shape \(1, 2\): pass a row of numbers"),
        (["high", "low"], [True, False], "scores of type <U4 are not numbers"),
    ],
)
def test_every_metric_takes_scores_and_same_and_refuses_the_same(metric, scores, same, text) -> None:
    with pytest.raises(UserError, match=text) as caught:
        metric(scores, same)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", [one for one in OF_PAIRS if one.values[0] is not tar_at_far])
def test_scores_in_the_place_of_same_are_refused(metric) -> None:
    with pytest.raises(
        UserError, match=r"same 0 is 0.3: pass true where both images of a pair show one person, else false"
    ):
        metric([0.9, 0.8], [0.3, 1.0])
    with pytest.raises(UserError, match="same 1 is -1"):
        metric([0.9, 0.8], [1, -1])


def test_tar_at_far_takes_what_its_neighbours_take_or_the_two_kinds_apart() -> None:
    rng = np.random.default_rng(0)
    scores, same = rng.normal(size=500), rng.random(500) < 0.4
    expected = tar_at_far(scores[same], scores[~same])
    assert tar_at_far(scores, same) == tar_at_far(scores.tolist(), same.tolist()) == expected
    assert evaluate_scores(scores, same).tar_at_far == expected
    for genuine, impostors, text in (
        ([True], [0.5, 0.1], "mated score 0 is True"),
        ([0.5], [0.1, math.nan], "non-mated score 1 is nan"),
        ([0.5, math.inf], [0.1, 0.2], "mated score 1 is inf"),
        ([0.5, 0.9], [1, 0], "same 0 is 1, of type int64: pass booleans"),
        ([0.5, 0.9], [True, True], "2 mated and 0 non-mated scores"),
    ):
        with pytest.raises(UserError, match=text):
            tar_at_far(genuine, impostors)
    with pytest.raises(UserError, match="squared distance 1 is nan"):
        evaluate_scores([0.1, 0.2], [True, False], 2, squared_distances=[0.1, math.nan])


def test_unknown_thresholds_and_rates_are_refused() -> None:
    with pytest.raises(UserError, match="thresholds='fine' is unknown"):
        evaluate_scores([0.1, 0.2], [False, True], 2, thresholds="fine")
    with pytest.raises(UserError, match="FAR 0 is not a rate"):
        tar_at_far([1.0], [0.0], (0,))


def test_rank_one_by_geometry() -> None:
    rows = at_degrees(0, 5, 40, 43, 90, 46)
    labels = [0, 0, 1, 1, 1, 7]  # 43 is as near to 40 (its own) as to 46 (somebody else): a tie is a miss
    found = rank_one(rows, labels)
    assert (found.probes, found.gallery) == (5, 5)
    assert found.rate == pytest.approx(3 / 5)  # 0, 5 and 40; not 43 (tie) and not 90 (46 is nearer than 43)
    assert rank_one(rows, labels, block=2) == found
    assert rank_one(np.ones((6, 4)), labels).rate == 0.0  # a collapsed model finds nobody
    with pytest.raises(UserError, match="an identity with two images"):
        rank_one(rows, range(6))


def all_pairs_by_hand(rows: np.ndarray, labels: np.ndarray) -> tuple[list, list]:
    genuine, impostor = [], []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            (genuine if labels[i] == labels[j] else impostor).append((float(rows[i] @ rows[j]), i, j))
    return sorted(genuine), sorted(impostor, reverse=True)


@pytest.mark.parametrize("block", [3, 16, 1000])
def test_all_pairs_equal_a_double_loop(block) -> None:
    rng = np.random.default_rng(1)
    rows, labels = unit_rows(rng.normal(size=(60, 5))), rng.integers(0, 12, 60) * 1000
    genuine, impostor = all_pairs_by_hand(rows, labels)
    found = score_all_pairs(rows, labels, fars=(0.1, 0.01, 1e-3, 1e-5), hardest=4, block=block)
    assert (len(found.genuine_scores), found.impostor_pairs) == (len(genuine), len(impostor))
    np.testing.assert_allclose(np.sort(found.genuine_scores), [s for s, _, _ in genuine], atol=1e-6)
    np.testing.assert_allclose(found.top_impostors, [s for s, _, _ in impostor][: len(found.top_impostors)], atol=1e-6)
    assert len(found.top_impostors) < len(impostor) / 8
    expected = tar_at_far([s for s, _, _ in genuine], [s for s, _, _ in impostor], (0.1, 0.01, 1e-3, 1e-5))
    assert found.tar_at_far == expected
    assert expected[1e-5] is None
    assert "all pairs: TAR at FAR 1e-05 is not stated" in found.notes[0]
    for worst, hand in ((found.hardest_genuine, genuine), (found.hardest_impostor, impostor)):
        assert list(zip(worst.first.tolist(), worst.second.tolist(), strict=True)) == [(i, j) for _, i, j in hand[:4]]
        np.testing.assert_allclose(worst.scores, [s for s, _, _ in hand[:4]], atol=1e-6)
    far, tar = found.curve()
    for x, y in zip(far, tar, strict=True):
        assert y == tar_at_far([s for s, _, _ in genuine], [s for s, _, _ in impostor], (x,))[x]
    assert far[0] == pytest.approx(1 / len(impostor))
