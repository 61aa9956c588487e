"""All pairs against a double loop over the exact definition, and against scikit-learn's ROC."""

import math
import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sklearn.metrics import roc_curve

from attfc.errors import UserError
from attfc.evaluation.exact_scores import STEP, pair_scores
from attfc.evaluation.protocols import all_pairs_scores
from attfc.evaluation.protocols import highest_impostors as module
from attfc.evaluation.protocols.all_pairs_scores import bytes_needed, score_all_pairs, score_groups
from attfc.evaluation.unit_rows import unit_rows, unit_tensor

PRECISIONS = ("float32", "bfloat16", "float64")
FARS = (0.2, 0.03, 0.004, 1e-9)


def every_pair(rows: np.ndarray, labels) -> tuple[list, list]:
    """(score, i, j) of genuine and impostor pairs, by the definition."""
    rows = unit_rows(rows).astype(np.float32)
    genuine, impostor = [], []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            score = round(math.fsum((rows[i].astype(np.float64) * rows[j]).tolist()) / STEP) * STEP
            (genuine if labels[i] == labels[j] else impostor).append((score, i, j))
    return genuine, impostor


def tar_by_loop(genuine: list, impostor: list, far: float) -> float:
    """Try every threshold; accept what scores above."""
    genuine, impostor = np.array([pair[0] for pair in genuine]), np.array([pair[0] for pair in impostor])
    tars = [
        float(np.mean(genuine > threshold))
        for threshold in [-2.0, *impostor]
        if np.sum(impostor > threshold) <= math.floor(far * len(impostor) + 1e-9)
    ]
    return max(tars)


def people(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A hundred images, identities of one image among them, in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([rng.integers(0, 20, 85), np.arange(100, 115)]))
    if kind == "ties":  # rows of 16 signs and doubled rows: a handful of distinct cosines
        centers = np.sign(rng.normal(size=(120, 16)))
        rows = centers[labels] * np.where(rng.random((100, 16)) < 0.15, -1, 1)
        rows[1::2] = rows[::2]
    elif kind == "near":  # all cosines within 1e-3: the errors of bfloat16 and of float32 are far from small here
        rows = 1 + 0.02 * rng.normal(size=(100, 24))
    else:
        rows = rng.normal(size=(120, 24))[labels] + rng.normal(size=(100, 24))
    return rows * rng.uniform(0.1, 9, (100, 1)), labels * 7


@pytest.mark.parametrize("kind", ["plain", "ties", "near"])
def test_all_pairs_equal_a_double_loop_in_every_precision(kind) -> None:
    rows, labels = people(1, kind)
    genuine, impostor = every_pair(rows, labels)
    tars = {far: tar_by_loop(genuine, impostor, far) for far in FARS[:3]}
    for precision in PRECISIONS:
        for block in (7, 1000):
            found = score_all_pairs(rows, labels, fars=FARS, precision=precision, block=block, hardest=5)
            assert sorted(found.genuine_scores.tolist()) == sorted(score for score, _, _ in genuine)
            falling = sorted((score for score, _, _ in impostor), reverse=True)
            assert found.top_impostors.tolist() == falling[: len(found.top_impostors)]
            assert (found.impostor_pairs, found.precision) == (len(impostor), precision)
            for far in FARS[:3]:
                assert found.tar_at_far[far] == pytest.approx(tars[far]), (far, precision)
            assert found.tar_at_far[1e-9] is None
            assert "at least 1,000,000,000 needed" in found.notes[0]
            of = {(i, j): score for score, i, j in genuine + impostor}
            for hard, scores in (
                (found.hardest_genuine, sorted(score for score, _, _ in genuine)),
                (found.hardest_impostor, falling),
            ):
                assert hard.scores.tolist() == scores[:5]
                named = zip(hard.first.tolist(), hard.second.tolist(), strict=True)
                assert [of[pair] for pair in named] == scores[:5]


def test_tar_is_that_of_scikit_learns_roc() -> None:
    rows, labels = people(2, "ties")
    genuine, impostor = every_pair(rows, labels)
    scores = np.array([pair[0] for pair in genuine + impostor])
    fpr, tpr, _ = roc_curve(np.arange(len(scores)) < len(genuine), scores, drop_intermediate=False)
    found = score_all_pairs(rows, labels, fars=FARS)
    for far in FARS[:3]:
        assert found.tar_at_far[far] == pytest.approx(tpr[fpr <= far + 1e-12].max())
        accepted = [score for score, _, _ in impostor if score > found.threshold_at_far[far]]
        assert len(accepted) <= far * len(impostor)
    everything = score_all_pairs(rows, labels, fars=(1.0,))
    assert (everything.tar_at_far, everything.threshold_at_far) == ({1.0: 1.0}, {1.0: -1.0})
    far, tar = everything.curve()
    for x, y in zip(far, tar, strict=True):
        assert y == pytest.approx(tpr[fpr <= x + 1e-12].max())


def balanced_by_loop(genuine: list, labels, threshold: float) -> float:
    """Every person's own TAR, then the mean of these."""
    people = sorted({int(labels[i]) for _, i, _ in genuine})
    shares = []
    for person in people:
        own = [score for score, i, _ in genuine if labels[i] == person]
        shares.append(sum(score > threshold for score in own) / len(own))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("kind", ["plain", "ties", "near"])
def test_person_balanced_tar_is_the_mean_of_each_persons_own(kind) -> None:
    rows, labels = people(5, kind)
    genuine, _ = every_pair(rows, labels)
    for block, budget in ((7, 4 * 2**30), (1000, bytes_needed(100, rows.shape[1], len(genuine), 1100))):
        found = score_all_pairs(rows, labels, fars=(*FARS, 1.0), block=block, budget=budget)
        balanced = found.person_balanced_tar_at_far
        for far in FARS[:3]:
            expected = balanced_by_loop(genuine, labels, found.threshold_at_far[far])
            assert balanced[far] == pytest.approx(expected, abs=1e-12)
        assert balanced[1e-9] is None
    found = score_all_pairs(rows, labels, fars=(1.0,))
    assert found.person_balanced_tar_at_far == {1.0: 1.0}
    assert found.carriers == len({int(labels[i]) for _, i, _ in genuine})


def test_one_person_who_holds_most_pairs_is_said_and_weighs_as_much_as_the_others() -> None:
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(21), [41, *[5] * 20])  # 820 of 1,020 genuine pairs: 80.4 %
    spread = np.where(labels == 0, 0.1, 1.2)[:, None]  # the one whom the model knows
    rows = rng.normal(size=(21, 16))[labels] + spread * rng.normal(size=(141, 16))
    found = score_all_pairs(rows, labels, fars=(0.01,))
    assert found.notes == (
        "all pairs: one person holds 80.4 % of the mated pairs, so TAR is largely theirs: "
        "see the TAR with each person alike",
    )
    tar, balanced = found.tar_at_far[0.01], found.person_balanced_tar_at_far[0.01]
    assert tar > 0.85 > 0.6 > balanced
    genuine, _ = every_pair(rows, labels)
    assert balanced == pytest.approx(balanced_by_loop(genuine, labels, found.threshold_at_far[0.01]), abs=1e-12)
    assert found.figures()["person_balanced_tar_at_far"] == {"0.01": balanced}
    assert score_all_pairs(rows[:6], [0, 0, 0, 1, 1, 1], fars=(1.0,)).notes == ()  # two people alike: nothing to say


def test_scores_know_their_identities() -> None:
    rows, labels = people(3, "plain")
    found = score_all_pairs(rows, labels, fars=(0.1,))
    names = np.unique(labels)
    genuine, impostor = every_pair(rows, labels)
    assert sorted(zip(found.genuine_scores.tolist(), names[found.genuine_labels].tolist(), strict=True)) == sorted(
        (score, labels[i]) for score, i, _ in genuine
    )
    named = {(score, *sorted((int(labels[i]), int(labels[j])))) for score, i, j in impostor}
    for score, pair in zip(found.top_impostors.tolist(), names[found.top_labels].tolist(), strict=True):
        assert (score, *sorted(pair)) in named
    assert found.identities == len(names)


def test_few_pairs_are_scored_again_unless_all_are_near(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 150, 600)
    rows = rng.normal(size=(150, 32))[labels] + rng.normal(size=(600, 32))
    monkeypatch.setitem(module.COLUMNS, "cpu", 64)
    results = {
        precision: score_all_pairs(rows, labels, fars=(1e-3,), precision=precision, block=50)
        for precision in PRECISIONS
    }
    wanted = 1e-3 * results["float64"].impostor_pairs
    assert results["float64"].verified == 0
    assert 0 < results["float32"].verified < 10 * wanted
    assert 0 < results["bfloat16"].verified < 20 * wanted
    for precision in PRECISIONS:
        np.testing.assert_array_equal(results[precision].top_impostors, results["float64"].top_impostors)
        assert results[precision].tar_at_far == results["float64"].tar_at_far


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_collapsed_model_accepts_nobody_within_the_budget(precision) -> None:
    rows, labels = np.ones((300, 8)), np.repeat(np.arange(100), 3)
    found = score_all_pairs(rows, labels, fars=(0.1, 0.001), precision=precision, block=32)
    assert found.tar_at_far == {0.1: 0.0, 0.001: 0.0}
    assert len(found.top_impostors) == math.floor(0.1 * found.impostor_pairs) + 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bound_holds_and_a_product_beyond_it_is_noticed(precision, monkeypatch) -> None:
    rows, labels = people(5, "plain")
    seen = []
    honest = module._Highest.add

    def watched(self, products, codes, exact=True):
        if not exact:
            seen.append(len(products))
            products = products + wrong
        honest(self, products, codes, exact)

    monkeypatch.setattr(module._Highest, "add", watched)
    monkeypatch.setitem(module.COLUMNS, "cpu", 16)
    wrong = 0.0
    score_all_pairs(rows, labels, fars=(0.01,), precision=precision, block=8)
    assert sum(seen) > 10
    wrong = 0.02
    with pytest.raises(RuntimeError, match="more than the proven"):
        score_all_pairs(rows, labels, fars=(0.01,), precision=precision, block=8)


@pytest.mark.filterwarnings("ignore:Please use the new API settings")  # torch 2.9
def test_float32_products_are_not_left_to_the_processes_settings() -> None:
    rows, labels = people(6, "near")
    plain = score_all_pairs(rows, labels, fars=(0.01,), precision="float32", block=8)
    try:
        torch.set_float32_matmul_precision("medium")
        found = score_all_pairs(rows, labels, fars=(0.01,), precision="float32", block=8)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(found.top_impostors, plain.top_impostors)


def test_precision_is_chosen_by_the_processor_and_by_how_many_are_kept(monkeypatch) -> None:
    rows, labels = people(7, "plain")
    assert score_all_pairs(rows, labels, fars=(0.1,)).precision == "float64"
    for fast, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(all_pairs_scores, "fast_bfloat16", lambda device, fast=fast: fast)
        assert score_all_pairs(rows, labels, fars=(1e-3,), hardest=0).precision == chosen


def test_a_budget_too_small_for_a_rate_says_what_it_would_take() -> None:
    rows, labels = np.random.default_rng(2).normal(size=(80, 4)), np.repeat(np.arange(40), 2)
    whole = score_all_pairs(rows, labels, fars=(0.1, 0.001), block=10)
    small = score_all_pairs(rows, labels, fars=(0.1, 0.001), block=10, budget=bytes_needed(80, 4, 40, 40))
    assert small.tar_at_far == {0.1: None, 0.001: whole.tar_at_far[0.001]}
    assert f"it takes a budget of {bytes_needed(80, 4, 40, 314):,} bytes" in small.notes[0]
    assert (
        whole.tar_at_far
        == score_all_pairs(rows, labels, fars=(0.1, 0.001), budget=bytes_needed(80, 4, 40, 314)).tar_at_far
    )
    with pytest.raises(
        UserError,
        match=r"budget=1,000 bytes is too small for 80 embeddings of 4 numbers and 40 mated pairs: at least",
    ):
        score_all_pairs(rows, labels, budget=1000)


def test_spare_impostors_are_kept_below_the_threshold() -> None:
    rows, labels = people(8, "plain")
    one, two = (score_all_pairs(rows, labels, fars=(0.01,), spare=spare) for spare in (1.0, 2.0))
    assert len(two.top_impostors) == 2 * len(one.top_impostors)
    assert two.tar_at_far == one.tar_at_far
    np.testing.assert_array_equal(two.top_impostors[: len(one.top_impostors)], one.top_impostors)


def test_groups_are_scored_within_themselves() -> None:
    rows, labels = people(9, "plain")
    groups = np.array(["child", "adult", "", "lone"], dtype=np.str_)[np.r_[np.arange(97) % 2, 2, 2, 3]]
    found, notes = score_groups(rows, labels, groups, fars=(0.05, 1e-6))
    assert sorted(found) == ["adult", "child"]
    for name in found:
        chosen = groups == name
        genuine, impostor = every_pair(rows[chosen], labels[chosen])
        assert found[name].tar_at_far[0.05] == pytest.approx(tar_by_loop(genuine, impostor, 0.05))
        assert found[name].impostor_pairs == len(impostor)
    text = "\n".join(notes)
    assert "group lone is left out: 1 images of 1 identities make 0 mated and 0 non-mated pairs" in text
    assert "2 of 100 images are in no group" in text
    assert "identities have images in several groups" in text
    assert "group adult: all pairs: TAR at FAR 1e-06 is not stated" in text
    with pytest.raises(UserError, match="99 groups for 100 embeddings"):
        score_groups(rows, labels, groups[:99])


def test_figures_state_both_ways_of_counting() -> None:
    figures = score_all_pairs(*people(10, "plain"), fars=(0.1,)).figures()
    assert figures["ordered_impostor_pairs"] == 2 * figures["impostor_pairs"]
    assert figures["genuine_pairs"] + figures["impostor_pairs"] == 100 * 99 / 2
    assert set(figures["tar_at_far"]) == {"0.1"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fars": (0.0,)}, "FAR 0.0 is not a rate"),
        ({"spare": 0.5}, "spare=0.5"),
        ({"precision": "float16"}, "precision='float16' is unknown"),
        ({"labels": np.zeros(100)}, "1 identities make 4950 mated and 0 non-mated pairs"),
        ({"labels": np.arange(100)}, "0 mated and 4950 non-mated pairs"),
        ({"labels": np.arange(99)}, "99 labels for 100 embeddings"),
        ({"row": np.nan}, r"embedding 41 has length 0, NaN or infinity \(1 of 100"),
        ({"row": 0.0}, r"embedding 41 has length 0"),
    ],
)
def test_unusable_input_is_named(change, text) -> None:
    rows, labels = people(11, "plain")
    if "row" in change:
        rows[41] = change.pop("row")
    labels = change.pop("labels", labels)
    with pytest.raises(UserError, match=text):
        score_all_pairs(rows, labels, **change)


@pytest.mark.parametrize("seed", range(8))
def test_the_highest_are_found_however_the_products_are_off_within_the_error(seed) -> None:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(60, 4))
    directions[1::3] = directions[::3]  # ties
    rows = unit_tensor(directions)
    first, second = (torch.from_numpy(side) for side in np.triu_indices(60, 1))
    codes, scores = first * 60 + second, pair_scores(rows, first, second)
    error, k = 0.05, 120
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], len(codes)))
    products = (scores.double() + 0.999 * error * sign).float()
    falling = torch.sort(scores, descending=True).values[:k]
    highest = module._Highest(k, rows, error)
    for part in torch.split(torch.from_numpy(rng.permutation(len(codes))), 40):
        if rng.random() < 0.3:
            part = part[scores[part] > highest.lowest]
            highest.add(scores[part], codes[part])
        else:
            part = part[products[part] > highest.floor()]
            highest.add(products[part], codes[part], exact=False)
        assert highest.lowest <= falling[-1]
        assert highest.held <= 2 * k
    top, numbers = highest.falling()
    assert top.tolist() == falling.tolist()
    assert len(torch.unique(numbers)) == k
    assert pair_scores(rows, numbers // 60, numbers % 60).tolist() == top.tolist()


def test_the_floor_is_rounded_down() -> None:
    highest = module._Highest(3, torch.zeros(2, 2), 0.0)
    rng = np.random.default_rng(0)
    for lowest, error in rng.uniform(0, 1, (200, 2)) * (1, 1e-3):
        highest.lowest, highest.error = lowest, error
        assert lowest - error - 1e-6 < highest.floor() < lowest - error
        assert highest.floor() == np.float32(highest.floor())


def test_the_bound_is_the_one_stated() -> None:
    rows = unit_tensor(people(3, "plain")[0])
    u = 24 * 2.0**-24
    accumulated = 1.00001 * u / (1 - u)
    found = module._Product(rows, "float32", 8, 8).error
    assert found == pytest.approx(accumulated + 2.0**-25, rel=1e-9)
    d = np.linalg.norm((rows.double() - rows.bfloat16().double()).numpy(), axis=1).max()
    wide = (1 + d) ** 2
    found = module._Product(rows, "bfloat16", 8, 8).error
    assert found == pytest.approx(d * (2 + d) + wide * (4 * accumulated + 2.0**-8) + 2.0**-25, rel=1e-9)


def test_a_bfloat16_product_is_compared_with_the_floor_as_it_is() -> None:
    rows = unit_tensor(np.array([[1.0, 0.0], [1.0, 3**0.5]] + [[-1.0, 0.0]] * 62))
    barred = torch.arange(64)[None] == 0
    given = []

    class Kept:
        floor = staticmethod(lambda: 0.4999)  # 0.5 in bfloat16

        def add(self, products, codes, exact):
            assert not exact
            given.extend(zip(products.tolist(), codes.tolist(), strict=True))

    module._Product(rows, "bfloat16", 1, 64).tile(0, 1, 0, 64, barred, Kept())
    assert given == [(0.5, 1)]
