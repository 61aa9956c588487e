"""The mix of F2C's loader: which part of a batch, how evenly, and a pure function of the number, whoever asks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader_resume import PositionStore, samples  # this folder is on the path

from attfc.data import CombinedStore
from attfc.data.index import IdentityIndex
from attfc.data.loader import AttentionLoader
from attfc.data.sampling.identity_mix import IdentityMix
from attfc.data.sampling.query_stream import QueryStream
from attfc.data.sampling.weighted_epochs import WeightedEpochs
from attfc.errors import UserError
from attfc.random_streams import hash_words

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=10).filter(any)
SHARES = st.sampled_from([0.0, 0.2, 0.5, 2 / 3, 0.9, 1.0])
SEEDS = st.integers(0, 2**63 - 1)


def index_of(counts: list[int]) -> IdentityIndex:
    """Images in an order of their own, so that a slot is no position."""
    return IdentityIndex.from_labels(np.repeat(np.arange(len(counts)), counts)[::-1].copy(), len(counts))


def parts(mix: IdentityMix, batches: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Slots of some batches, the part by identity and the part by image, each in order."""
    numbers = np.arange(first * mix.batch, (first + batches) * mix.batch)
    slots = mix.query_slots(numbers).reshape(batches, mix.batch)
    head = mix.by_identity
    return slots[:, :head].ravel(), slots[:, head:].ravel()


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.sampled_from([0.2, 0.5, 2 / 3, 1.0]), st.integers(6, 12), SEEDS, st.integers(0, 3))
def test_identities_come_in_turn_whatever_their_images_and_so_do_those(counts, share, batch, seed, cycle) -> None:
    index, mix = index_of(counts), IdentityMix(index_of(counts), share, batch, seed)
    assert mix.by_identity == math.ceil(share * batch)
    people = [label for label, count in enumerate(counts) if count]
    draws, _ = parts(mix, -(-(12 + cycle) * len(people) // mix.by_identity))
    labels = index.labels_of_slots(draws)
    turn = labels[cycle * len(people) : (cycle + 1) * len(people)]
    assert sorted(turn.tolist()) == people
    whole = draws[: 12 * len(people)]
    for label in people:
        visits = np.bincount(whole[labels[: len(whole)] == label] - index.offsets[label], minlength=counts[label])
        assert visits.sum() == 12
        assert visits.max() - visits.min() <= 1


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.sampled_from([0.0, 0.2, 0.5, 2 / 3, 0.8]), st.integers(6, 12), SEEDS)
def test_an_epoch_is_a_pass_of_the_part_by_image(counts, share, batch, seed) -> None:
    images, mix = sum(counts), IdentityMix(index_of(counts), share, batch, seed)
    _, draws = parts(mix, -(-3 * images // (batch - mix.by_identity)))
    for start in range(0, 3 * images, images):
        assert sorted(draws[start : start + images].tolist()) == list(range(images))
    assert mix.length == -(-images * batch // (batch - mix.by_identity))


@settings(deadline=None, max_examples=60)
@given(COUNTS, SHARES, st.integers(10, 20), SEEDS, st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_numbers_may_be_asked_in_any_order_and_batch(counts, share, batch, seed, asked) -> None:
    mix, numbers = IdentityMix(index_of(counts), share, batch, seed), np.array(asked)
    together = mix.query_slots(numbers)
    again = IdentityMix(index_of(counts), share, batch, seed)
    assert together.tolist() == [int(again.query_slots(np.array([number]))[0]) for number in asked]
    assert mix.query_slots(numbers.reshape(-1, 1)).tolist() == together.reshape(-1, 1).tolist()
    assert 0 <= together.min() <= together.max() < sum(counts)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 2),
    SEEDS,
    st.sampled_from(["each_once", "with_replacement"]),
    st.booleans(),
    st.sampled_from([(1, 6, 2, 3), (2, 3, 1, 6), (3, 2, 2, 3), (6, 1, 3, 2)]),
    st.integers(0, 9),
)
def test_a_cut_run_continues_with_any_number_of_ranks(counts, keys, seed, sampling, broken, ranks, cut) -> None:
    store = PositionStore(counts, broken)

    def loaders(ranks: int, batch_size: int) -> list[AttentionLoader]:
        return [
            AttentionLoader(
                store, batch_size, keys, seed, image_size=1, rank=rank, ranks=ranks, sampling=sampling, broken_limit=1.0,
                identity_share=0.5,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    before, after = loaders(*ranks[:2]), loaders(*ranks[2:])
    found = samples(before, cut)
    for loader in after:
        loader.load_state_dict(before[0].state_dict())
    found += samples(after, 4)
    assert found == samples(loaders(1, 6), cut + 4)


def test_workers_change_nothing() -> None:
    store = PositionStore([1, 2, 3, 4, 9], broken=True)
    alone = AttentionLoader(store, 6, 1, 3, image_size=1, broken_limit=1.0, identity_share=2 / 3)
    with AttentionLoader(store, 6, 1, 3, image_size=1, broken_limit=1.0, identity_share=2 / 3, workers=2) as loader:
        assert samples([loader], 5) == samples([alone], 5)


def test_keys_of_the_part_by_identity_are_other_images_of_it() -> None:
    index = index_of([4] * 30)
    drawn = QueryStream(index, 1, 5, queries=IdentityMix(index, 2 / 3, 9, 5)).samples(np.arange(9))
    labels = index.labels()
    assert np.array_equal(labels[drawn.positions], labels[drawn.key_positions[:, 0]])
    assert not np.any(drawn.positions == drawn.key_positions[:, 0])
    assert len(set(drawn.labels[:6].tolist())) == 6, "a pass over the identities repeats nobody"


def test_draws_with_replacement_are_even_over_identities_and_over_images() -> None:
    """Substitutes of broken images, and `sampling="with_replacement"`: 1 and 99 images, half and half by identity and by image."""
    index = index_of([1, 99])
    mix = IdentityMix(index, 0.5, 10, seed=0)
    numbers = np.arange(40_000)
    slots = mix.drawn_slots(hash_words(4, numbers), numbers)
    head = numbers % 10 < 5
    assert abs(int((slots[head] == 0).sum()) - 10_000) < 6 * math.sqrt(5_000)
    assert abs(int((slots[~head] == 0).sum()) - 200) < 6 * math.sqrt(200)
    others = np.bincount(slots[head], minlength=100)[1:]
    assert np.abs(others - 10_000 / 99).max() < 6 * math.sqrt(101)


def test_weights_of_sources_are_those_of_the_part_by_image() -> None:
    index = index_of([10, 10])
    mix = IdentityMix(index, 0.5, 8, 1, images=WeightedEpochs([10, 10], [1, 3], 1))
    assert mix.length == 80
    by_identity, by_image = parts(mix, 10)
    assert np.bincount(by_image, minlength=20).tolist() == [1] * 10 + [3] * 10
    assert np.bincount(index.labels_of_slots(by_identity)).tolist() == [20, 20]


def test_passes_are_mixed_and_unlike_each_other() -> None:
    mix = IdentityMix(index_of([1] * 2000), 0.5, 2000, seed=1)
    by_identity, by_image = parts(mix, 4)
    passes = [*by_identity.reshape(2, 2000), *by_image.reshape(2, 2000)]
    other = parts(IdentityMix(index_of([1] * 2000), 0.5, 2000, seed=2), 2)
    orders = [np.arange(2000), *passes, *other]
    for number, order in enumerate(orders):
        for another in orders[:number]:
            assert abs(np.corrcoef(order, another)[0, 1]) < 0.11


def test_a_billion_images_cost_what_the_batch_costs() -> None:
    index = IdentityIndex(np.arange(0, 10**9 + 1, 10**5))
    mix = IdentityMix(index, 2 / 3, 3000, seed=0)
    by_identity, by_image = parts(mix, 1, first=10**9)
    assert len(np.unique(index.labels_of_slots(by_identity))) == 2000
    assert len(np.unique(by_image)) == 1000


def test_what_cannot_be_is_named() -> None:
    index = index_of([3, 3])
    with pytest.raises(UserError, match=r"share of a batch drawn by identity is 1.5: set it to 0 ... 1"):
        IdentityMix(index, 1.5, 4, 0)
    with pytest.raises(UserError, match=r"share of 0.9 by identity leaves no image of a batch of 4"):
        IdentityMix(index, 0.9, 4, 0)
    store = PositionStore([3, 3, 3], broken=False)

    def loader(batch: int, share: float) -> AttentionLoader:
        return AttentionLoader(store, batch, 1, image_size=1, identity_share=share)

    state = loader(6, 0.5).state_dict()
    with pytest.raises(UserError, match="mixed_batch = 6 but positions has 8: resume with the batch size"):
        loader(8, 0.5).load_state_dict(state)
    with pytest.raises(UserError, match="by_identity = 3 but positions has 5: resume with the share"):
        loader(6, 0.8).load_state_dict(state)
    with pytest.raises(UserError, match="mixed_batch = 6 but positions has 0"):
        loader(6, 0.0).load_state_dict(state)
    sources = CombinedStore([store, store], weights=[1, 0])
    with pytest.raises(UserError, match=r"a source has weight 0 and identity_share = 0.5"):
        AttentionLoader(sources, 6, 1, image_size=1, identity_share=0.5)
