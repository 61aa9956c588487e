"""Queries in pairs: two of one identity side by side, every image once per epoch, a pure function of the number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_identity_mix import COUNTS, SEEDS, index_of  # this folder is on the path
from test_loader_resume import PositionStore, samples

from attfc.data import CombinedStore
from attfc.data.loader import AttentionLoader
from attfc.data.sampling.paired_queries import PairedQueries
from attfc.data.sampling.query_stream import QueryStream
from attfc.data.transforms import FLIP_LANE
from attfc.errors import UserError


@settings(deadline=None, max_examples=100)
@given(COUNTS, SEEDS, st.integers(0, 3), st.integers(2, 5))
def test_an_epoch_shows_every_image_once_in_groups_of_an_identity(counts, seed, epoch, group) -> None:
    index, groups = index_of(counts), PairedQueries(index_of(counts), seed, group)
    slots = groups.query_slots(np.arange(epoch * groups.length, (epoch + 1) * groups.length))
    labels = index.labels_of_slots(slots).reshape(-1, group)
    assert (labels == labels[:, :1]).all()
    visits = np.bincount(slots, minlength=sum(counts))
    assert visits.min() >= 1
    for label, count in enumerate(counts):
        of_label = visits[index.offsets[label] : index.offsets[label + 1]]
        assert of_label.sum() == -(-count // group) * group
    for label, members in zip(labels[:, 0], slots.reshape(-1, group), strict=True):
        assert len(set(members.tolist())) == min(group, counts[label])


def test_partners_and_their_order_change_from_epoch_to_epoch() -> None:
    pairs = PairedQueries(index_of([20] * 20), seed=1)
    first, second = pairs.query_slots(np.arange(2 * pairs.length)).reshape(2, -1, 2)
    assert (first != second).mean() > 0.9
    partners = [{frozenset(pair) for pair in epoch.tolist()} for epoch in (first, second)]
    assert len(partners[0] & partners[1]) < 40  # of 200: by chance one in 19
    visited = np.concatenate([first[:, 0], second[:, 0]])
    assert len(np.unique(pairs.identities.labels_of_slots(visited[:20]))) > 8, (
        "an identity's pairs do not come together"
    )


@settings(deadline=None, max_examples=60)
@given(COUNTS, SEEDS, st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_numbers_may_be_asked_in_any_order_and_batch(counts, seed, asked) -> None:
    together = PairedQueries(index_of(counts), seed).query_slots(np.array(asked))
    again = PairedQueries(index_of(counts), seed)
    assert together.tolist() == [int(again.query_slots(np.array([number]))[0]) for number in asked]


def test_an_identity_with_one_image_is_its_own_mirrored_partner() -> None:
    index = index_of([1] * 30)
    drawn = QueryStream(index, 0, 5, queries=PairedQueries(index, 5)).samples(np.arange(60))
    first, second = drawn.seeds[:, 0].reshape(30, 2).T
    assert np.array_equal(drawn.positions[0::2], drawn.positions[1::2])
    assert (first >= 0).all()
    assert (second < 0).all()
    assert np.array_equal(first & FLIP_LANE, second & FLIP_LANE)
    several = index_of([4] * 10)
    assert (QueryStream(several, 0, 5, queries=PairedQueries(several, 5)).samples(np.arange(40)).seeds >= 0).all()


@pytest.mark.parametrize("ranks", [(1, 12, 2, 6), (3, 4, 1, 12)])
def test_a_cut_run_continues_with_any_number_of_ranks(ranks: tuple[int, int, int, int]) -> None:
    store = PositionStore([1, 2, 3, 4, 9, 5], broken=True)

    def loaders(ranks: int, batch_size: int) -> list[AttentionLoader]:
        return [
            AttentionLoader(
                store, batch_size, 0, 7, image_size=1, rank=rank, ranks=ranks, broken_limit=1.0, paired=True
            )
            for rank in range(ranks)
        ]

    before, after = loaders(*ranks[:2]), loaders(*ranks[2:])
    found = samples(before, 3)
    for loader in after:
        loader.load_state_dict(before[0].state_dict())
    assert found + samples(after, 4) == samples(loaders(1, 12), 7)


def test_a_run_in_pairs_does_not_resume_one_without() -> None:
    store = PositionStore([1, 2, 3], broken=False)
    alone = AttentionLoader(store, 4, 0, 7, image_size=1).state_dict()
    with pytest.raises(UserError, match="epoch_length"):
        AttentionLoader(store, 4, 0, 7, image_size=1, paired=True).load_state_dict(alone)


def test_what_pairs_do_not_go_with() -> None:
    store = PositionStore([2, 2], broken=False)
    with pytest.raises(UserError, match="need an even batch_size, and it is 5 a rank: take 6"):
        AttentionLoader(store, 5, 0, image_size=1, paired=True)
    with pytest.raises(UserError, match="groups need a batch_size that is a multiple of 4, and it is 6 a rank: take 8"):
        AttentionLoader(store, 6, 0, image_size=1, paired=True, group=4)
    with pytest.raises(UserError, match=r"do not go with identity_share = 0\.5: each says"):
        AttentionLoader(store, 4, 0, image_size=1, paired=True, identity_share=0.5)
    with pytest.raises(UserError, match="do not go with sampling = 'with_replacement'"):
        AttentionLoader(store, 4, 0, image_size=1, paired=True, sampling="with_replacement")
    both = CombinedStore([store, store], weights=[1, 2])  # type: ignore[list-item]
    with pytest.raises(UserError, match="do not go with weights of sources"):
        AttentionLoader(both, 4, 0, image_size=1, paired=True)
