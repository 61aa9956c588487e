"""Weighted figures against copies: a resample in which an identity was drawn w times is a list in which its pairs stand w times."""

import dataclasses
import math

import numpy as np
import pytest

from attfc.errors import UserError
from attfc.evaluation.bootstrap import (
    IdentityDraw,
    PairDraw,
    Resampled,
    identity_draws,
    interval_of_difference,
    linked_identities,
    nested,
    resample,
)
from attfc.evaluation.metrics import area_under_roc, equal_error_rate, evaluate_scores
from attfc.evaluation.protocols.all_pairs_scores import score_all_pairs
from attfc.evaluation.protocols.search import identify, rank_one, search_sample
from attfc.evaluation.rates import tar_at_far
from attfc.evaluation.results import EvaluationResult, compare_results, resample_result
from attfc.evaluation.samples import PairListSample, ShareSample
from attfc.evaluation.tail_sample import TailSample


def made_list(seed: int, pairs: int = 400, people: int = 30) -> tuple[np.ndarray, ...]:
    """Scores with ties, some of them between kinds; an impostor pair of one identity, as wrong lists have."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    first = rng.integers(people, size=pairs)
    second = np.where(same, first, (first + rng.integers(1, people, size=pairs)) % people)
    scores = np.where(same, rng.normal(0.5, 0.2, pairs), rng.normal(0.1, 0.2, pairs)).round(2)
    wrong = int(np.flatnonzero(~same)[0])
    second[wrong] = first[wrong]
    return scores, same, rng.integers(0, 5, pairs), first, second


def copies(weights: np.ndarray, same: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which pairs the resampled list holds, each as often as its people were drawn."""
    found = []
    for pair in range(len(same)):
        times = weights[first[pair]] if first[pair] == second[pair] else weights[first[pair]] * weights[second[pair]]
        found += [pair] * int(times)
    return np.array(found)


@pytest.mark.parametrize("thresholds", ["grid", "exact"])
def test_pair_list_is_that_of_copies(thresholds) -> None:
    for seed in range(4):
        scores, same, fold, first, second = made_list(seed)
        distances = 2 - 2 * scores
        sample = PairListSample.of(
            evaluate_scores(scores, same, fold, thresholds=thresholds, fars=(0.1, 0.02)), first, second
        )
        for draw in identity_draws(sample.identities, 8, seed):
            listed = copies(draw.weights, same, first, second)
            expected = evaluate_scores(
                scores[listed],
                same[listed],
                fold[listed],
                thresholds=thresholds,
                fars=(0.1, 0.02),
                squared_distances=distances[listed],
            )
            figures = sample.figures(draw)
            assert figures["accuracy",] == pytest.approx(expected.accuracy, abs=1e-12)
            assert figures["auc",] == pytest.approx(expected.auc, abs=1e-12)
            assert figures["eer",] == pytest.approx(expected.eer, abs=1e-12)
            for far in (0.1, 0.02):
                assert figures["tar_at_far", f"{far:g}"] == pytest.approx(expected.tar_at_far[far], abs=1e-12)


def test_a_figure_that_the_whole_list_cannot_state_has_no_interval() -> None:
    scores, same, fold, first, second = made_list(0)
    sample = PairListSample.of(evaluate_scores(scores, same, fold, fars=(0.1, 1e-3)), first, second)
    assert [path for path in resample(sample, 20).values if path[0] == "tar_at_far"] == [("tar_at_far", "0.1")]


def test_tail_of_a_list_is_that_of_copies() -> None:
    scores, same, _, first, second = made_list(7, pairs=3000, people=60)
    sample = TailSample.of_list(scores, same, first, second, fars=(0.1, 0.01, 1e-5))
    assert sample.fars == (0.1, 0.01)
    for draw in identity_draws(60, 6, 1):
        listed = copies(draw.weights, same, first, second)
        expected = tar_at_far(scores[listed][same[listed]], scores[listed][~same[listed]], (0.1, 0.01))
        figures = sample.figures(draw)
        for far, tar in expected.items():
            assert figures["tar_at_far", f"{far:g}"] == pytest.approx(tar, abs=1e-12)
        assert figures["auc",] == pytest.approx(area_under_roc(scores[listed], same[listed]), abs=1e-12)
        assert figures["eer",] == pytest.approx(equal_error_rate(scores[listed], same[listed]), abs=1e-12)


def test_tail_of_all_pairs_is_that_of_copies_of_people() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(25), rng.integers(1, 5, 25))
    rows = rng.normal(size=(25, 6))[labels] + 0.7 * rng.normal(size=(len(labels), 6))
    found = score_all_pairs(rows, labels, fars=(0.1, 0.01), spare=8.0)
    sample = found.sample()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for draw in identity_draws(25, 6, 5):
        genuine, impostor = [], []
        for a in range(len(labels)):
            for b in range(a):
                times = int(draw.weights[labels[a]])
                if labels[a] != labels[b]:
                    impostor += [unit[a] @ unit[b]] * (times * int(draw.weights[labels[b]]))
                else:
                    genuine += [unit[a] @ unit[b]] * times
        expected = tar_at_far(np.array(genuine), np.array(impostor), (0.1, 0.01))
        for far, tar in expected.items():
            assert sample.figures(draw)["tar_at_far", f"{far:g}"] == pytest.approx(tar, abs=1e-12)


def test_person_balanced_tar_of_copied_people_weighs_each_copy_alike() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(12), [30, *[4] * 9, 1, 1])  # one person with 435 of 489 genuine pairs
    rows = rng.normal(size=(12, 6))[labels] + 0.7 * rng.normal(size=(len(labels), 6))
    found = score_all_pairs(rows, labels, fars=(0.1, 0.01), spare=8.0)
    sample = found.sample()
    everybody = sample.figures(IdentityDraw(np.ones(12)))
    for far, tar in found.person_balanced_tar_at_far.items():
        assert everybody["person_balanced_tar_at_far", f"{far:g}"] == pytest.approx(tar, abs=1e-12)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for draw in identity_draws(12, 6, 5):
        own: dict[int, list] = {}
        impostor = []
        for a in range(len(labels)):
            for b in range(a):
                if labels[a] == labels[b]:
                    own.setdefault(int(labels[a]), []).append(unit[a] @ unit[b])
                else:
                    impostor += [unit[a] @ unit[b]] * int(draw.weights[labels[a]] * draw.weights[labels[b]])
        for far in (0.1, 0.01):
            allowed = sorted(impostor, reverse=True)[math.floor(far * len(impostor) + 1e-9)]
            copies = [np.mean(np.array(own[i]) > allowed) for i in own for _ in range(int(draw.weights[i]))]
            assert sample.figures(draw)["person_balanced_tar_at_far", f"{far:g}"] == pytest.approx(np.mean(copies))
    nobody = sample.figures(IdentityDraw(np.append(np.zeros(10), [6, 6])))  # nobody with a genuine pair is drawn
    assert all(math.isnan(value) for value in nobody.values())
    assert len(nobody) == 4


def long_list() -> tuple[np.ndarray, ...]:
    """60,000 impostor pairs of 400 people, some of whom are easily taken for others; a few pairs tie."""
    rng = np.random.default_rng(2)
    people, pairs = 400, 66_000
    ease = rng.normal(0, 0.05, people)
    same = np.arange(pairs) < 6000
    first = rng.integers(people, size=pairs)
    second = np.where(same, first, (first + rng.integers(1, people, size=pairs)) % people)
    scores = np.where(same, 0.4, 0.0) + ease[first] + ease[second] + rng.normal(0, 0.1, pairs)
    return scores.round(5), same, first, second


def test_below_the_exact_scores_the_figures_are_close() -> None:
    """2,000 of 60,000 impostor scores one by one, the others by their identities: the same intervals but for little."""
    scores, same, first, second = long_list()
    whole = TailSample.of_list(scores, same, first, second, fars=(0.1, 0.01))
    short = TailSample.of_list(scores, same, first, second, fars=(0.1, 0.01), exact=2000)
    assert len(short.impostor_scores) == 2000
    assert len(short.deep_scores) > 100
    assert int((short.genuine_not_below > 2000).sum()) > 100  # genuine pairs among the impostors that were not kept
    both = [resample(sample, 200, seed=4) for sample in (whole, short)]
    for path in both[0].values:
        assert both[1].values[path] == pytest.approx(both[0].values[path], abs=2e-3)
        exact, close = (one.by_identity[path] for one in both)
        assert np.corrcoef(exact, close)[0, 1] > 0.97
        assert np.std(close) == pytest.approx(np.std(exact), rel=0.1)
    for path in (("auc",), ("eer",)):  # the whole interval, in units of its width
        one, other = (resampled.interval(path) for resampled in both)
        assert abs(one.low - other.low) + abs(one.high - other.high) < 0.15 * (one.high - one.low)
    assert both[1].values["auc",] == pytest.approx(area_under_roc(scores, same), abs=1e-12)
    assert both[1].values["eer",] == pytest.approx(equal_error_rate(scores, same), abs=1e-12)


def test_figures_are_those_stated_where_a_sample_is_only_close() -> None:
    scores, same, first, second = long_list()
    exact = tar_at_far(scores[same], scores[~same], (0.1,))[0.1]
    sample = TailSample.of_list(scores, same, first, second, fars=(0.1,), exact=2000)
    path = ("tar_at_far", "0.1")
    close = sample.figures(IdentityDraw(np.ones(400)))[path]
    assert 0 < abs(close - exact) < 0.01
    for stated, expected in ((exact, exact), (exact - 0.2, close), (None, close)):  # the second contradicts the scores
        figures = {"verification": {"tar_at_far": {"0.1": stated}}}
        result = EvaluationResult("a", "ijbc", (), figures, {("verification",): [sample]})
        assert resample_result(result, 20, 0.95, 0)["verification",][0].values[path] == expected
        (found,) = [one for one in compare_results(result, result, 20) if one.path == ("verification", *path)]
        assert (found.one.value, found.difference.value) == (expected, 0)


def test_search_is_that_of_copies_of_probes() -> None:
    rng = np.random.default_rng(6)
    gallery = rng.normal(size=(20, 8))
    labels = rng.integers(0, 30, 150)
    probes = np.concatenate([gallery, rng.normal(size=(10, 8))])[labels] + 0.8 * rng.normal(size=(150, 8))
    found = identify(gallery, np.arange(20), probes, labels, (1, 5, 50), (0.1, 0.5, 1e-3))
    sample = search_sample([found])
    assert (sample.rank_limits, sample.fpirs) == ((1, 5), (0.1, 0.5))
    searched = np.unique(labels)
    for draw in identity_draws(sample.identities, 6, 2):
        listed = np.repeat(np.arange(150), draw.weights[np.searchsorted(searched, labels)].astype(int))
        expected = identify(gallery, np.arange(20), probes[listed], labels[listed], (1, 5), (0.1, 0.5))
        figures = sample.figures(draw)
        for rank, rate in expected.rank.items():
            assert figures["rank", str(rank)] == pytest.approx(rate)
        for fpir, tpir in expected.tpir_at_fpir.items():
            assert figures["tpir_at_fpir", f"{fpir:g}"] == pytest.approx(tpir)
    two = search_sample([found, found])
    assert two.figures(IdentityDraw(np.ones(two.identities))) == sample.figures(
        IdentityDraw(np.ones(sample.identities))
    )


def test_rank_one_is_that_of_copies_of_probes() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(20), 3)
    found = rank_one(rng.normal(size=(20, 4))[labels] + rng.normal(size=(60, 4)), labels)
    sample = found.sample()
    assert sample.figures(IdentityDraw(np.ones(20))) == {("rank_one",): found.rate}
    draw = next(identity_draws(20, 1, 0))
    hits = np.repeat(found.hits, draw.weights[found.labels].astype(int))
    assert sample.figures(draw)["rank_one",] == pytest.approx(hits.mean())


def test_single_pairs_are_drawn_by_what_they_are_and_not_by_where_they_stand() -> None:
    codes = np.arange(200_000)
    draw = PairDraw(1, 3, seed=1)
    weights = draw.of_pairs(codes, codes, codes)
    np.testing.assert_array_equal(draw.of_pairs(codes, codes, codes[::-1])[::-1], weights)
    assert np.all(weights == PairDraw(1, 3, seed=1).of_pairs(codes, codes, codes))
    assert not np.all(weights == PairDraw(1, 4, seed=1).of_pairs(codes, codes, codes))
    for times in range(5):  # Poisson of mean 1
        assert np.mean(weights == times) == pytest.approx(math.exp(-1) / math.factorial(times), abs=0.005)


def test_an_interval_draws_in_the_excess_of_single_pairs() -> None:
    """Percentiles -2 and 2 about 0.5 of a figure whose single pairs are two ninths of its variance: sqrt(1 - 4/9)."""
    rng = np.random.default_rng(0)
    by_identity = 0.5 + 0.03 * rng.normal(size=4000)
    by_pair = 0.5 + 0.03 * math.sqrt(2 / 9) * rng.normal(size=4000)
    path = ("auc",)
    wide = Resampled({path: 0.5}, {path: by_identity}, {path: np.full(10, 0.5)}, 50, 0.95).interval(path)
    drawn_in = Resampled({path: 0.5}, {path: by_identity}, {path: by_pair}, 50, 0.95).interval(path)
    assert (0.5 - drawn_in.low) / (0.5 - wide.low) == pytest.approx(math.sqrt(5 / 9), rel=0.03)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.03, rel=0.05)


def test_without_an_error_the_bound_is_that_of_so_many_people() -> None:
    sample = ShareSample("rank_one", np.ones(90, np.bool_), np.arange(90) // 3)
    interval = resample(sample, 50).interval(("rank_one",))
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 30))
    alone = resample(ShareSample("rank_one", np.array([True, False]), np.zeros(2, np.int64)), 50)
    assert alone.interval(("rank_one",)).plain() is None
    assert "the intervals of rank-1 rest on 1 identity: with fewer than 30" in alone.notes()[0]
    assert resample(sample, 50).notes() == ()  # 30 people


def test_a_difference_is_that_of_the_same_people() -> None:
    """A model that is better by a fixed step for everybody: the difference has no width, either figure has."""
    scores, same, fold, first, second = made_list(1)
    one = ShareSample("rank_one", same, first)
    other = dataclasses.replace(one, hits=same & (np.arange(400) % 7 != 0))
    both = [resample(sample, 200, seed=3) for sample in (one, other)]
    difference = interval_of_difference(both[0], both[1], ("rank_one",))
    apart = both[0].interval(("rank_one",)).high - both[1].interval(("rank_one",)).low
    assert difference.value == pytest.approx(np.mean(same) - np.mean(other.hits))
    assert 0 < difference.low < difference.value < difference.high < apart
    equal = interval_of_difference(both[0], both[0], ("rank_one",))
    assert (equal.low, equal.value, equal.high) == (0, 0, 0)
    del scores, fold, second


def test_seeded_and_laid_out_as_the_figures() -> None:
    scores, same, fold, first, second = made_list(2)
    sample = PairListSample.of(evaluate_scores(scores, same, fold, fars=(0.1,)), first, second)
    one, again, other = (resample(sample, 30, seed=seed).intervals() for seed in (1, 1, 2))
    assert one == again
    assert one != other
    laid = nested(one)
    assert set(laid) == {"accuracy", "auc", "eer", "tar_at_far"}
    assert laid["tar_at_far"]["0.1"] == [one["tar_at_far", "0.1"].low, one["tar_at_far", "0.1"].high]
    for bad, text in (({"resamples": 3}, "at least 20"), ({"confidence": 95}, "confidence=95 is not a confidence")):
        with pytest.raises(UserError, match=text):
            resample(sample, **bad)


def test_links_of_links_are_one_identity() -> None:
    rng = np.random.default_rng(0)
    chain = rng.permutation(500)
    found = linked_identities(510, chain[:-1], chain[1:])
    assert len(np.unique(found[chain])) == 1
    assert len(np.unique(found)) == 11


NORMAL_TRUTH = {"genuine person": 0.08, "impostor person": 0.05, "pair": 0.1, "mean": 0.5}


@pytest.mark.slow  # 100 lists and 100 sets of all pairs, 300 resamples of each: about 3 minutes
@pytest.mark.parametrize("kind", ["list", "all pairs"])
def test_intervals_cover_what_is_true(kind) -> None:
    """Scores with known distributions: the person's share, two for impostors, and the pair's own. Intervals hold the truth."""
    from statistics import NormalDist

    of_person, of_impostor, of_pair, mean = NORMAL_TRUTH.values()
    genuine, impostor = math.hypot(of_person, of_pair), math.sqrt(2 * of_impostor**2 + of_pair**2)
    normal = NormalDist()
    truth = {
        ("tar_at_far", f"{far:g}"): 1 - normal.cdf((impostor * normal.inv_cdf(1 - far) - mean) / genuine)
        for far in (0.1, 0.02)
    }
    truth["auc",] = normal.cdf(mean / math.hypot(genuine, impostor))
    cuts = np.linspace(0, 0.5, 5001).tolist()
    rejects = np.array([normal.cdf((cut - mean) / genuine) for cut in cuts])
    accepts = np.array([1 - normal.cdf(cut / impostor) for cut in cuts])
    truth["eer",] = float(rejects[np.argmin(np.abs(rejects - accepts))])
    truth["accuracy",] = float(1 - ((rejects + accepts) / 2).min())
    held: dict = {}
    for trial in range(100):
        rng = np.random.default_rng([11, trial])
        if kind == "list":
            people, count = 1000, 1500
            genuine_of, one = rng.integers(people, size=(2, count))
            other = (one + rng.integers(1, people, size=count)) % people
        else:
            people = 150
            genuine_of = np.repeat(np.arange(people), 4)
            one, other = np.triu_indices(people, 1)
        ease, likeness = rng.normal(0, of_person, people), rng.normal(0, of_impostor, people)
        scores = np.concatenate([mean + ease[genuine_of], likeness[one] + likeness[other]])
        scores += rng.normal(0, of_pair, len(scores))
        same = np.arange(len(scores)) < len(genuine_of)
        first, second = np.concatenate([genuine_of, one]), np.concatenate([genuine_of, other])
        sample: PairListSample | TailSample
        if kind == "list":
            fold = np.arange(len(scores)) % 10
            sample = PairListSample.of(
                evaluate_scores(scores, same, fold, thresholds="grid", fars=(0.1, 0.02)), first, second
            )
        else:
            sample = TailSample.of_list(scores, same, first, second, fars=(0.1, 0.02))
        for path, interval in resample(sample, 300, seed=trial).intervals().items():
            held.setdefault(path, []).append(interval.low <= truth[path] <= interval.high)
    assert len(held) == (5 if kind == "list" else 4)
    for path, hits in held.items():
        assert np.mean(hits) >= 0.85, (path, np.mean(hits))
    assert np.mean([np.mean(hits) for hits in held.values()]) < 0.995


def test_a_list_in_which_one_person_has_most_genuine_pairs_says_so() -> None:
    scores, same = np.linspace(0, 1, 20), np.arange(20) < 10
    second = np.where(same, 0, 1 + np.arange(20) % 5)
    one = PairListSample.of(evaluate_scores(scores, same, np.arange(20) % 2), np.where(same, 0, 0), second)
    assert one.notes("the pairs") == []  # the only one: few people, which is said elsewhere
    first = np.where(same, np.where(np.arange(20) < 8, 0, 6), 0)
    most = PairListSample.of(evaluate_scores(scores, same, np.arange(20) % 2), first, np.where(same, first, second))
    assert most.notes("the 20 pairs") == [
        "the 20 pairs: one person holds 80.0 % of the mated pairs, so TAR is largely theirs"
    ]
