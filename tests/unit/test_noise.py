"""Noise generators: exact amounts, even draws, the same images for the same seed."""

import numpy as np
import pytest

from attfc.data.cleaning.noise import conflict_noise, flip_noise
from attfc.data.index import IdentityIndex
from attfc.data.stores.edits import EditedStore, Edits
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError

IMAGES, PEOPLE = 6000, 50
LABELS = (np.arange(IMAGES) * 7919) % PEOPLE


def same(first: Edits, second: Edits) -> bool:
    return np.array_equal(first.positions, second.positions) and np.array_equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("images", "share", "changed"),
    [(1000, 0.4, 400), (10, 0.25, 3), (10, 0.24, 2), (7, 1.0, 7), (7, 0.0, 0), (3, 0.1, 0)],
)
def test_flip_changes_exactly_its_share(images: int, share: float, changed: int) -> None:
    labels = np.arange(images) % 3
    noise = flip_noise(labels, share, seed=5)
    assert len(noise) == changed
    assert (noise.images, noise.identities) == (images, 3)
    assert int((noise.apply(labels) != labels).sum()) == changed, "every chosen image gets another label than its own"
    assert set(noise.labels.tolist()) <= {0, 1, 2}


def test_flips_are_even_over_images_and_over_the_other_identities() -> None:
    labels = np.arange(40) % 4
    chosen, table, draws = np.zeros(40), np.zeros((4, 4)), 600
    for seed in range(draws):
        noise = flip_noise(labels, 0.5, seed)
        chosen[noise.positions] += 1
        np.add.at(table, (labels[noise.positions], noise.labels), 1)
    assert np.diag(table).tolist() == [0, 0, 0, 0]
    # Binomial spreads: 6 standard deviations of 600 halves; 20 flips a draw over 12 pairs of labels.
    assert np.abs(chosen - draws / 2).max() < 6 * np.sqrt(draws / 4)
    pairs = table[~np.eye(4, dtype=bool)]
    assert np.abs(pairs - draws * 20 / 12).max() < 6 * np.sqrt(draws * 20 / 12)


def test_noise_is_a_function_of_the_seed() -> None:
    for make in (lambda seed: flip_noise(LABELS, 0.3, seed), lambda seed: conflict_noise(LABELS, 0.3, seed, parts=3)):
        assert same(make(7), make(7))
        assert not same(make(7), make(8))
    # Golden: a change here changes every published noise list.
    small = np.arange(12) % 3
    flips, splits = flip_noise(small, 0.4, 1), conflict_noise(small, 0.7, 1)
    assert (flips.positions.tolist(), flips.labels.tolist()) == ([0, 2, 4, 6, 11], [1, 0, 0, 1, 0])
    assert (splits.positions.tolist(), splits.labels.tolist()) == ([4, 5, 7, 11], [3, 4, 3, 4])


def test_a_larger_share_changes_the_same_images_and_more() -> None:
    few, many = flip_noise(LABELS, 0.1, 3), flip_noise(LABELS, 0.2, 3)
    shared = np.isin(many.positions, few.positions)
    assert int(shared.sum()) == len(few)
    assert np.array_equal(many.labels[shared], few.labels)


def test_stores_indices_and_labels_are_alike() -> None:
    store = SyntheticFaces(20, (2, 30), seed=4)
    labels = store.identities.labels()
    for source in (store, store.identities, labels.tolist()):
        assert same(flip_noise(source, 0.2, 1), flip_noise(labels, 0.2, 1))
        assert same(conflict_noise(source, 0.2, 1), conflict_noise(labels, 0.2, 1))
    view = EditedStore(store, conflict_noise(store, 0.5, 1))
    assert len(view.identities) == 30
    assert view.identity_name(29) == "new-29"


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_conflict_splits_exactly_its_share_into_even_parts(parts: int) -> None:
    noise = conflict_noise(LABELS, 0.4, seed=2, parts=parts)
    after = noise.apply(LABELS)
    assert (noise.images, noise.identities) == (IMAGES, PEOPLE)
    assert sorted(set(after.tolist())) == list(range(PEOPLE + 20 * (parts - 1)))
    split = 0
    for person in range(PEOPLE):
        labels, sizes = np.unique(after[person == LABELS], return_counts=True)
        assert labels[0] == person, "the first part keeps the label"
        if len(labels) > 1:
            split += 1
            assert len(labels) == parts
            assert bool((labels[1:] >= PEOPLE).all())
            assert int(sizes.max() - sizes.min()) <= 1
    assert split == 20
    for label in range(PEOPLE, PEOPLE + 20 * (parts - 1)):
        assert len(set(LABELS[after == label].tolist())) == 1, "a new label belongs to one person"


def test_only_identities_with_enough_images_are_split() -> None:
    labels = np.repeat(np.arange(10), [1, 2, 3, 4, 1, 2, 3, 4, 1, 1])
    noise = conflict_noise(labels, 0.4, seed=9, parts=3)
    after = noise.apply(labels)
    people = sorted({int(person) for person in labels[noise.positions]})
    assert people == [2, 3, 6, 7]
    assert all(len(set(after[labels == person].tolist())) == 3 for person in people)
    with pytest.raises(
        UserError, match=r"to split 5 of 10 identities and only 4 have 3 images or more: lower share to 0\.4"
    ):
        conflict_noise(labels, 0.5, seed=9, parts=3)


def test_the_parts_are_random_not_the_order_of_the_files() -> None:
    labels = np.zeros(1000, np.int64)
    moved = conflict_noise(labels, 1.0, seed=0).positions
    assert len(moved) == 500
    assert 200 < int((moved < 500).sum()) < 300


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_checked(share: float) -> None:
    for make in (flip_noise, conflict_noise):
        with pytest.raises(UserError, match=r"share = .*from 0 to 1"):
            make(LABELS, share, 0)


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(UserError, match="another identity to flip to: the data hold 1"):
        flip_noise([0, 0, 0], 0.5, 0)
    with pytest.raises(UserError, match="parts = 1"):
        conflict_noise(LABELS, 0.5, 0, parts=1)
    assert len(flip_noise(IdentityIndex.from_labels([]), 0.5, 0)) == 0
