"""What a cell keeps of each person: counts from which its figures follow."""

import json

import numpy as np

from attfc.evaluation.protocols.all_pairs_scores import score_all_pairs
from attfc.evaluation.protocols.search import rank_one
from attfc.lab.study_people import figures_of, people_of, unpacked


def test_counts_of_people_give_the_figures_and_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([7, 3, 9, 4, 1, 8], [4, 1, 2, 3, 1, 9])
    rows = rng.standard_normal((10, 8))[labels] + rng.standard_normal((len(labels), 8))
    pairs, search = score_all_pairs(rows, labels, fars=(0.1, 0.02)), rank_one(rows, labels)
    figures, people = figures_of(pairs, search), people_of(pairs, search)
    images, found = unpacked(people["images"]), unpacked(people["rank_one"])
    assert images.tolist() == [3, 4, 9, 2]  # people 3 and 1 have one image; the others by their number: 4, 7, 8, 9
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = unit @ unit.T
    for far in (0.1, 0.02):
        accepted = unpacked(people["accepted"][f"{far:g}"])
        threshold = pairs.threshold_at_far[far]
        slow = [
            sum(scores[i, j] > threshold for i in own for j in own if i < j)
            for own in (np.flatnonzero(labels == person) for person in (4, 7, 8, 9))
        ]
        assert accepted.tolist() == slow
        made = images * (images - 1) / 2
        assert figures[f"tar_at_far/{far:g}"] == accepted.sum() / made.sum()
        assert figures[f"person_balanced_tar_at_far/{far:g}"] == np.mean(accepted / made)
    assert figures["rank_one"] == found.sum() / images.sum()
    np.fill_diagonal(scores, -2.0)
    hits = labels[scores.argmax(axis=1)] == labels
    assert found.tolist() == [hits[labels == person].sum() for person in (4, 7, 8, 9)]


def test_two_thousand_people_take_less_than_ten_thousand_characters() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2000), 4)
    rows = rng.standard_normal((2000, 16), dtype=np.float32)[labels]
    rows += 0.9 * rng.standard_normal(rows.shape, dtype=np.float32)
    people = people_of(score_all_pairs(rows, labels, fars=(1e-3, 1e-4, 1e-5), hardest=0), rank_one(rows, labels))
    assert len(json.dumps(people)) < 10_000
