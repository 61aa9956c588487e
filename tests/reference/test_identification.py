"""Identification against loops that look at one probe at a time."""

import math

import numpy as np
import pytest
import torch

from attfc.errors import UserError
from attfc.evaluation.exact_scores import STEP, block_scores, pair_scores
from attfc.evaluation.protocols.search import identify
from attfc.evaluation.unit_rows import unit_rows, unit_tensor, unusable_rows


def exact_score(one: np.ndarray, other: np.ndarray) -> float:
    """The definition, spelled out."""
    return round(math.fsum(float(a) * float(b) for a, b in zip(one, other, strict=True)) / STEP) * STEP


def search_by_hand(gallery, gallery_labels, probes, probe_labels, mate_removed: bool):
    """(rank, mate score) of mated probes, best scores of strangers."""
    gallery, probes = unit_rows(gallery).astype(np.float32), unit_rows(probes).astype(np.float32)
    mated, strangers = [], []
    for probe, label in zip(probes, probe_labels, strict=True):
        best: dict = {}
        for row, name in zip(gallery, gallery_labels, strict=True):
            best[name] = max(best.get(name, -2.0), exact_score(probe, row))
        others = [score for name, score in best.items() if name != label]
        if label in best:
            mated.append((1 + sum(score >= best[label] for score in others), best[label]))
        if label not in best or mate_removed:
            strangers.append(max(others))
    return mated, strangers


def some_people(seed: int, lattice: bool):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(14, 6))
    gallery_labels = np.array([0, 1, 2, 3, 4, 5, 5, 6, 7, 7, 7, 8])
    probe_labels = rng.integers(0, 14, 60)
    gallery = centers[gallery_labels] + rng.normal(size=(12, 6)) * 0.8
    probes = centers[probe_labels] + rng.normal(size=(60, 6)) * 0.8
    if lattice:  # rows of 4 and of 16 signs: many equal scores
        gallery, probes = np.sign(gallery[:, :4]), np.sign(probes[:, :4])
    return gallery, gallery_labels * 10, probes, probe_labels * 10


@pytest.mark.parametrize("strangers", ["absent", "mate_removed"])
@pytest.mark.parametrize(("seed", "lattice"), [(0, False), (1, True), (2, False)])
def test_identification_equals_a_loop(seed, lattice, strangers) -> None:
    gallery, gallery_labels, probes, probe_labels = some_people(seed, lattice)
    mated, others = search_by_hand(gallery, gallery_labels, probes, probe_labels, strangers == "mate_removed")
    for within in (1, 3, None):
        found = identify(
            gallery,
            gallery_labels,
            probes,
            probe_labels,
            (1, 2, 5, 20),
            (0.001, 0.1, 0.3, 1.0),
            strangers=strangers,
            within_rank=within,
        )
        assert found.probe_ranks.tolist() == [rank for rank, _ in mated]
        assert found.mate_scores.tolist() == [score for _, score in mated]
        assert found.stranger_scores.tolist() == others
        for rank in (1, 2, 5):
            assert found.rank[rank] == pytest.approx(sum(r <= rank for r, _ in mated) / len(mated))
        assert found.rank[20] is None
        assert "rank 20 is not stated: the gallery has only 9 identities" in found.notes[0]
        assert found.tpir_at_fpir[0.001] is None
        assert "at least 1,000 needed" in found.notes[1]
        for fpir in (0.1, 0.3, 1.0):
            best = 0.0
            for threshold in [-3.0, *others]:  # accept what scores above
                if sum(score > threshold for score in others) <= fpir * len(others) + 1e-9:
                    hits = sum(score > threshold and rank <= (within or 99) for rank, score in mated)
                    best = max(best, hits / len(mated))
            assert found.tpir_at_fpir[fpir] == pytest.approx(best), (fpir, within)


def test_small_budget_gives_the_same_and_a_smaller_one_is_refused() -> None:
    gallery, gallery_labels, probes, probe_labels = some_people(3, lattice=False)
    whole = identify(gallery, gallery_labels, probes, probe_labels)
    blocks = identify(gallery, gallery_labels, probes, probe_labels, budget=5_000)
    assert blocks.probe_ranks.tolist() == whole.probe_ranks.tolist()
    assert blocks.stranger_scores.tolist() == whole.stranger_scores.tolist()
    with pytest.raises(
        UserError, match=r"budget=1,000 bytes is too small for a gallery of 12 rows: at least [\d,]+ are needed"
    ):
        identify(gallery, gallery_labels, probes, probe_labels, budget=1_000)


def test_collapsed_model_finds_nobody() -> None:
    found = identify(np.ones((3, 4)), [0, 1, 2], np.ones((5, 4)), [0, 1, 2, 3, 4], fpirs=(0.5,))
    assert found.probe_ranks.tolist() == [3, 3, 3]
    assert (found.rank[1], found.tpir_at_fpir[0.5]) == (0.0, 0.0)


def test_without_strangers_the_open_set_is_not_stated() -> None:
    found = identify(np.eye(3), ["a", "b", "c"], np.eye(3), ["a", "b", "c"])
    assert found.tpir_at_fpir == {0.01: None, 0.1: None}
    assert "0 searches of people who are not enrolled, at least 100 needed" in found.notes[2]
    assert found.figures()["rank"] == {"1": 1.0, "5": None, "10": None}
    assert found.probe_labels.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("gallery", "gallery_labels", "probes", "probe_labels", "text"),
    [
        (np.eye(3), [0, 1, 2], np.eye(4), [0, 1, 2, 3], "3 numbers per embedding, the probes 4"),
        (np.eye(3), [0, 1], np.eye(3), [0, 1, 2], r"\(2,\) gallery labels for 3 embeddings"),
        (np.eye(3), [0, 1, 2], np.eye(3), [3, 4, 5], "none of 3 probes shows one of the 3 enrolled identities"),
        (np.eye(3) * [[1], [0], [1]], [0, 1, 2], np.eye(3), [0, 1, 2], "embedding 1 has length 0"),
        (np.eye(3), [0, 1, 2], np.eye(3) * [[1], [np.nan], [1]], [0, 1, 2], "embedding 1 has NaN"),
    ],
)
def test_unusable_input_is_named(gallery, gallery_labels, probes, probe_labels, text) -> None:
    with pytest.raises(UserError, match=text):
        identify(gallery, gallery_labels, probes, probe_labels)
    with pytest.raises(UserError, match="rank"):
        identify(np.eye(3), range(3), np.eye(3), range(3), ranks=(0,))


def test_scores_are_the_exact_ones_however_computed() -> None:
    rng = np.random.default_rng(5)
    rows = unit_tensor(rng.normal(size=(40, 512)))
    first, second = (torch.from_numpy(side) for side in np.triu_indices(40, 1))
    expected = [
        exact_score(rows[i].numpy(), rows[j].numpy()) for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert pair_scores(rows, first, second).tolist() == expected
    assert pair_scores(rows, second, first).tolist() == expected
    assert block_scores(rows.double(), rows.double())[first, second].tolist() == expected


def test_scores_in_the_middle_of_two_multiples_are_summed_exactly() -> None:
    """Products that end on half a step, disturbed below float64's last bit in a sum that cancels."""
    tiny, half = 2.0**-70, STEP / 2
    left = torch.tensor([[1.0, half, tiny, 1.0]] * 3)
    right = torch.tensor([[0.5, 1.0, 1.0, -0.25], [0.5, 1.0, -1.0, -0.25], [0.5, 1.0, 0.0, -0.25]])
    # fsum rounds the disturbance away, as a float64 must: a middle, to the even multiple of the two.
    expected = [exact_score(a, b) for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    assert expected == [0.25] * 3
    assert torch.diagonal(block_scores(left.double(), right.double())).tolist() == expected
    assert pair_scores(torch.cat([left, right]), torch.arange(3), torch.arange(3, 6)).tolist() == expected


def test_many_rows_are_normalized_in_parts_and_bad_ones_counted() -> None:
    rows = np.random.default_rng(6).normal(size=(40_000, 3)).astype(np.float32)
    np.testing.assert_array_equal(unit_tensor(rows).numpy(), unit_rows(rows).astype(np.float32))
    rows[17_000], rows[39_999] = np.nan, 0.0
    assert unusable_rows(rows).tolist() == [17_000, 39_999]
    with pytest.raises(UserError, match=r"embedding 17000 has length 0, NaN or infinity \(2 of 40000 embeddings"):
        unit_tensor(rows)
