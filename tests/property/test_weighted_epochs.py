"""Weighted sources: exact visits in every epoch, whole permutations of every source, a pure function of the number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.sampling.weighted_epochs import WeightedEpochs, checked_weights
from attfc.errors import UserError
from attfc.random_streams import hash_words

sources = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7])), min_size=1, max_size=4
).filter(lambda made: any(weight > 0 for _, weight in made))


def visits_of(slots: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """How often each image of each source comes among the slots."""
    return np.split(np.bincount(slots, minlength=sum(counts)), np.cumsum(counts)[:-1])


@settings(deadline=None, max_examples=80)
@given(sources, st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_every_epoch_visits_each_source_as_often_as_its_weight_says(made, seed: int, epoch: int) -> None:
    counts, weights = [count for count, _ in made], [weight for _, weight in made]
    epochs = WeightedEpochs(counts, weights, seed)
    wanted = [0 if weight == 0 else max(1, round(weight * count)) for count, weight in made]
    assert epochs.length == sum(wanted)
    slots = epochs.query_slots(np.arange(epochs.length) + epoch * epochs.length)
    assert [int(visits.sum()) for visits in visits_of(slots, counts)] == wanted


@settings(deadline=None, max_examples=80)
@given(sources, st.integers(0, 2**63 - 1), st.integers(1, 7))
def test_no_image_comes_twice_more_than_another_of_its_source(made, seed: int, epochs: int) -> None:
    """After any number of whole epochs the visits within a source differ by at most one."""
    counts, weights = [count for count, _ in made], [weight for _, weight in made]
    stream = WeightedEpochs(counts, weights, seed)
    for visits in visits_of(stream.query_slots(np.arange(epochs * stream.length)), counts):
        assert int(visits.max() - visits.min()) <= 1


@settings(deadline=None, max_examples=60)
@given(sources, st.integers(0, 2**63 - 1), st.data())
def test_numbers_may_be_asked_in_any_order_and_batch(made, seed: int, data) -> None:
    counts, weights = [count for count, _ in made], [weight for _, weight in made]
    stream = WeightedEpochs(counts, weights, seed)
    numbers = np.array(data.draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=20)))
    together = stream.query_slots(numbers)
    again = WeightedEpochs(counts, weights, seed)
    assert together.tolist() == [int(again.query_slots(np.array([number]))[0]) for number in numbers.tolist()]
    assert stream.query_slots(numbers.reshape(-1, 1)).tolist() == together.reshape(-1, 1).tolist()
    images = np.arange(sum(counts))[::-1] * 3
    mapped = WeightedEpochs(counts, weights, seed, slots=images)
    assert mapped.query_slots(numbers).tolist() == images[together].tolist()


def test_half_and_double_weights() -> None:
    counts = [100, 40, 10]
    stream = WeightedEpochs(counts, [0.5, 1, 2], seed=3)
    assert stream.length == 50 + 40 + 20
    first, second = (visits_of(stream.query_slots(np.arange(110) + epoch * 110), counts) for epoch in (0, 1))
    assert (first[0] + second[0]).tolist() == [1] * 100
    assert first[0].max() == 1
    assert first[1].tolist() == second[1].tolist() == [1] * 40
    assert first[2].tolist() == second[2].tolist() == [2] * 10


def test_epochs_are_mixed_and_unlike_each_other() -> None:
    stream = WeightedEpochs([2000, 2000], [1, 1], seed=1)
    first, second = (stream.query_slots(np.arange(4000) + epoch * 4000) for epoch in (0, 1))
    for order in (first, second):
        assert sorted(order.tolist()) == list(range(4000))
        assert abs(np.corrcoef(np.arange(4000), order)[0, 1]) < 0.08
        assert 850 < int((order[:2000] < 2000).sum()) < 1150, "sources are mixed"
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08
    assert WeightedEpochs([2000, 2000], [1, 1], seed=2).query_slots(np.arange(9)).tolist() != first[:9].tolist()


def test_draws_with_replacement_follow_the_weights() -> None:
    stream = WeightedEpochs([10, 10, 5], [1, 3, 0], seed=0)
    slots = stream.drawn_slots(hash_words(4, np.arange(40_000)), np.arange(40_000))
    counts = np.bincount(slots, minlength=25)
    assert counts[20:].tolist() == [0] * 5
    assert np.abs(counts[:10] - 1000).max() < 6 * np.sqrt(1000)
    assert np.abs(counts[10:20] - 3000).max() < 6 * np.sqrt(3000)
    # Source and image from the same bits would never draw half of the first source here: both are taken modulo 20.
    numbers = np.arange(40_000)
    halves = np.bincount(WeightedEpochs([20, 10], [0.5, 1], seed=0).drawn_slots(hash_words(4, numbers), numbers))
    assert np.abs(halves - np.repeat([1000, 2000], [20, 10])).max() < 6 * np.sqrt(2000)


def test_a_billion_images_cost_what_the_batch_costs() -> None:
    stream = WeightedEpochs([10**9, 10**6], [1, 20], seed=0)
    slots = stream.query_slots(np.arange(10**12, 10**12 + 1000))
    assert len(np.unique(slots)) == 1000
    assert 0 <= int(slots.min()) < int(slots.max()) < 10**9 + 10**6


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ([1, 2], [1.0], "1 sampling weights for 2 sources"),
        ([1, 2], [1.0, -0.5], "sampling weight -0.5 of source 2"),
        ([1], [float("nan")], "sampling weight nan of source 1"),
        ([1], [float("inf")], "sampling weight inf"),
        ([1, 1], [0, 0], "all sampling weights are 0"),
        ([1 << 60], [1e9], "lower them"),
    ],
)
def test_bad_weights_are_named(counts: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_weights(counts, weights)
