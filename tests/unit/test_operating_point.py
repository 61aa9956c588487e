"""Thresholds with certainty: bounds against scipy, the variance of FMR against a loop over pairs of pairs, refusals, the file."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from attfc.errors import UserError
from attfc.evaluation.operating_point.bounds import beta_quantile, rate_bounds, student_quantile
from attfc.evaluation.operating_point.calibrating import calibrate_scores, check_people, people_needed
from attfc.evaluation.operating_point.logistic import brier_score, fit_logistic
from attfc.evaluation.operating_point.nonmated import NonmatedTail
from attfc.evaluation.operating_point.scores import scores_of_people


def faces(people: int, seed: int = 0, images_I=None) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of people who look alike by chance, 1 to 6 images each."""
    draw = np.random.default_rng(seed)
    images_I = draw.integers(1, 7, people) if images_I is None else images_I
    label_N = np.repeat(np.arange(people), images_I)
    look = draw.standard_normal((people, 16))
    vectors = look[label_N] + 0.7 * draw.standard_normal((len(label_N), 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), label_N


@pytest.mark.parametrize(("a", "b"), [(1, 20), (1, 1e6), (3.3, 9e4), (0.2, 50), (40, 60), (6, 0.5), (400, 1e8)])
def test_beta_quantile_is_that_of_scipy(a, b) -> None:
    for share in (0.025, 0.05, 0.5, 0.95, 0.975):
        assert beta_quantile(share, a, b) == pytest.approx(stats.beta.ppf(share, a, b), rel=2e-4, abs=1e-12)


def test_student_and_clopper_pearson_are_those_of_scipy() -> None:
    for freedom in (1, 2, 7, 60, 1e6):
        assert student_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=1e-3)
    exact = stats.binomtest(7, 500).proportion_ci(0.9, "exact")
    assert rate_bounds(7 / 500, 500, 1e9) == pytest.approx((exact.low, exact.high), rel=1e-3)
    assert rate_bounds(0, 1000, 1e9)[1] == pytest.approx(3 / 1000, rel=4e-3)  # the rule of three
    assert rate_bounds(1, 50, 1e9)[1] == 1


def tail_of(shares: dict[tuple[int, int], float], people: int) -> NonmatedTail:
    """The tail in which two people's pairs of images pass with the given share, at score 0.5."""
    first, second = np.array(list(shares)).T
    return NonmatedTail(np.full(len(shares), 0.5), first, second, np.array(list(shares.values())), people)


@pytest.mark.parametrize("apart", [False, True])
def test_variance_is_that_of_a_loop_over_pairs_of_pairs(apart) -> None:
    draw, people = np.random.default_rng(1), 9
    group = np.arange(people) % 3
    compared = [
        pair for pair in itertools.combinations(range(people), 2) if not apart or group[pair[0]] != group[pair[1]]
    ]
    h = {pair: float(draw.choice([0, 0, 0.25, 0.5, 1])) for pair in compared}
    rate = np.mean(list(h.values()))
    disjoint = [h[p] * h[q] for p in compared for q in compared if not set(p) & set(q)]
    degree = np.bincount(np.ravel(compared), minlength=people)
    found = tail_of({pair: value for pair, value in h.items() if value}, people).at(0.4, None, degree)
    independent = np.var(list(h.values())) / len(compared)
    assert found.rate == pytest.approx(rate)
    assert found.variance == pytest.approx(max(rate**2 - np.mean(disjoint), independent))
    assert found.design_effect == pytest.approx(found.variance / independent)
    assert found.pairs == len(compared)


def test_one_person_who_matches_everybody_is_one_observation() -> None:
    wolf = tail_of({(0, other): 1.0 for other in range(1, 40)}, 40).at(0.4)
    alone = tail_of({(2 * number, 2 * number + 1): 1.0 for number in range(20)} | {(0, 39): 1.0}, 40).at(0.4)
    assert wolf.design_effect > 15
    assert alone.design_effect < 1.2
    assert wolf.worth < 40 < alone.worth


def rate_of(tail: NonmatedTail, threshold: float, chosen_I: np.ndarray) -> float:
    """The FMR of the pairs of chosen people at a threshold."""
    passed = tail.within(chosen_I) & (tail.scores > threshold)
    people = int(chosen_I.sum())
    return float(tail.weights[passed].sum()) / (people * (people - 1) / 2)


def test_people_weigh_alike_and_the_threshold_is_the_lowest_that_stays_within() -> None:
    vectors, label_N = faces(30, images_I=np.append([20], np.full(29, 2)))
    scores = scores_of_people(vectors, label_N, 0.05)
    everybody = np.ones(30, dtype=bool)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)

    def fmr(threshold: float) -> float:
        shares = [
            np.mean(cosines[np.ix_(label_N == one, label_N == other)] > threshold)
            for one, other in itertools.combinations(range(30), 2)
        ]
        return float(np.mean(shares))

    threshold = scores.tail.threshold(0.05, everybody)
    assert fmr(threshold + 1e-7) <= 0.05 < fmr(threshold - 1e-6)
    assert rate_of(scores.tail, threshold, everybody) == pytest.approx(fmr(threshold), abs=2e-3)
    rejected = scores.rejected(0.6)
    for person in range(3):
        own = cosines[np.ix_(label_N == person, label_N == person)][np.triu_indices((label_N == person).sum(), 1)]
        assert rejected[person] == pytest.approx(np.mean(own <= 0.6), abs=1e-6)


def test_logistic_curve_is_the_best_and_the_brier_score_is_that_of_others() -> None:
    draw = np.random.default_rng(3)
    scores = np.append(draw.normal(0.5, 0.15, 300), draw.normal(0.1, 0.1, 900))
    same, weights = np.arange(1200) < 300, draw.uniform(0.5, 2, 1200)
    found = fit_logistic(scores, same, weights, 10**9)
    even = np.where(same, weights / weights[same].sum(), weights / weights[~same].sum()) / 2

    def loss(curve: np.ndarray) -> float:
        logit = curve[0] * scores + curve[1]
        return float(even @ (np.logaddexp(0, logit) - same * logit))

    best = optimize.minimize(loss, np.array([1.0, 0.0]), method="BFGS", options={"gtol": 1e-10}).x
    assert found == pytest.approx(best, rel=1e-3)
    assert brier_score((0.0, 0.0), scores, same, weights) == pytest.approx(0.25)
    assert brier_score(found, scores, same, weights) < 0.08


def test_apart_kinds_give_a_finite_curve() -> None:
    slope, offset = fit_logistic(np.array([0.9, 0.8, 0.1, 0.0]), np.array([1, 1, 0, 0], dtype=bool), np.ones(4), 4)
    assert np.isfinite([slope, offset]).all()
    assert slope > 0


def test_measured_on_other_people_and_the_same_for_the_same_seed() -> None:
    vectors, label_N = faces(120, seed=5)
    scores = scores_of_people(vectors, label_N, 0.02)
    one, again, other = (calibrate_scores(scores, 0.02, where="faces", splits=20, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one["threshold"] != other["threshold"]
    assert one["fmr"] < one["fmr_upper"] < 4 * one["fmr"]
    assert one["fnmr"].low < one["fnmr"].value < one["fnmr"].high
    low, high = one["threshold_interval"]
    assert low < one["threshold"] < high
    assert 0 < one["probability"].brier < 0.25


def test_a_threshold_that_its_own_half_judges_is_noticed(monkeypatch) -> None:
    """Chosen and measured on the same half, the mean rate cannot exceed what was asked; of other people it does in some."""
    vectors, label_N = faces(60, seed=2)
    scores = scores_of_people(vectors, label_N, 0.03)
    seen = []
    monkeypatch.setattr(
        NonmatedTail,
        "threshold",
        lambda tail, fmr, chosen, real=NonmatedTail.threshold: seen.append(chosen) or real(tail, fmr, chosen),
    )
    found = calibrate_scores(scores, 0.03, where="faces", splits=10)
    halves = [chosen for chosen in seen if chosen.sum() == 30][:10]
    thresholds = [scores.tail.threshold(0.03, chosen) for chosen in halves]
    of_others = [rate_of(scores.tail, threshold, ~chosen) for threshold, chosen in zip(thresholds, halves, strict=True)]
    of_choosers = [
        rate_of(scores.tail, threshold, chosen) for threshold, chosen in zip(thresholds, halves, strict=True)
    ]
    missed = [scores.rejected(threshold)[~chosen] for threshold, chosen in zip(thresholds, halves, strict=True)]
    assert found["fmr"] == pytest.approx(np.mean(of_others))
    assert found["fnmr"].value == pytest.approx(np.nanmean(np.concatenate(missed)))
    assert max(of_choosers) <= 0.03 < max(of_others)


def test_too_few_people_are_refused_with_what_is_needed() -> None:
    assert people_needed(1e-4) == 492
    assert 246 * 245 / 2 >= 3e4 > 245 * 244 / 2
    with pytest.raises(UserError, match=r"val has 40 people, too few for FMR 0\.0001: that needs about 492"):
        check_people(40, 1e-4, "val")
    check_people(492, 1e-4, "val")
    with pytest.raises(UserError, match="some of them match many others"):
        check_people(492, 1e-4, "val", dependence=0.01)


def test_groups_within_and_across() -> None:
    vectors, label_N = faces(80, seed=7)
    group_I = np.array(["east", "west"])[np.arange(80) % 2]
    scores = scores_of_people(vectors, label_N, 0.02)
    found = calibrate_scores(scores, 0.02, where="faces", group_I=group_I, splits=20)
    east, west = found["groups"]
    across = found["across"]
    assert (east.name, west.name, east.people, across.people) == ("east", "west", 40, 80)
    assert east.comparisons == 40 * 39 // 2
    assert across.comparisons == 40 * 40
    assert east.comparisons + west.comparisons + across.comparisons == found["comparisons"]
    assert east.false_matches + west.false_matches + across.false_matches == found["false_matches"]
    rates = [east.fmr, west.fmr]
    assert found["worst_over_geometric_mean"] == pytest.approx(max(rates) / np.sqrt(np.prod(rates)))
    assert across.fnmr is None
    with pytest.raises(UserError, match="group south has one person in faces"):
        calibrate_scores(scores, 0.02, where="faces", group_I=np.append(group_I[:-1], "south"), splits=2)


def test_failures_count_as_non_matches_where_asked() -> None:
    vectors, label_N = faces(60, seed=4, images_I=np.full(60, 3))
    images_of = dict.fromkeys(range(60), 3) | {0: 4}  # one more of person 0 gave no embedding
    left_out, counted = (scores_of_people(vectors, label_N, 0.03, images) for images in (None, images_of))
    assert counted.rejected(-1.0)[0] == pytest.approx(0.5)  # three of its six pairs
    assert left_out.rejected(-1.0)[0] == 0
    assert counted.tail.weights.min() == pytest.approx(1 / 12)
