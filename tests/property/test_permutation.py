"""Keyed permutations are bijections, for any size and key, and the random streams agree between numpy and torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.random_streams import below, hash_tensor, hash_words, permute, uniform, uniform_tensor

WORD = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def slow_mix(word: int) -> int:
    """SplitMix64's finalizer on Python integers."""
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def slow_hash(*words: int) -> int:
    state = 0
    for word in words:
        state = slow_mix(state ^ (word & MASK))
    return state


def slow_permute(index: int, size: int, key: int) -> int:
    """Generalized Feistel network with cycle walking, one element at a time."""
    rows = math.ceil(math.sqrt(size))
    columns = -(-size // rows)
    key = slow_mix(key & MASK)
    while True:
        left, right = divmod(index, columns)
        for number in range(16):
            round_key = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
            if number % 2 == 0:
                left = (left + ((slow_mix(round_key ^ right) >> 32) * rows >> 32)) % rows
            else:
                right = (right + ((slow_mix(round_key ^ left) >> 32) * columns >> 32)) % columns
        index = left * columns + right
        if index < size:
            return index


@given(size=st.integers(1, 3000), key=st.integers(0, MASK))
@settings(max_examples=60, deadline=None)
def test_every_size_and_key_gives_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(sizes=st.lists(st.integers(1, 2**62), min_size=1, max_size=20), key=st.integers(0, MASK), data=st.data())
@settings(max_examples=60, deadline=None)
def test_ragged_sizes_equal_the_slow_network_element_by_element(
    sizes: list[int], key: int, data: st.DataObject
) -> None:
    indices = [data.draw(st.integers(0, size - 1)) for size in sizes]
    keys = hash_words(key, np.arange(len(sizes)))
    moved = permute(np.array(indices), np.array(sizes), keys)
    assert moved.dtype == np.int64
    assert moved.tolist() == [slow_permute(i, n, int(k)) for i, n, k in zip(indices, sizes, keys, strict=True)]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_sizes_reach_all_permutations_alike(size: int) -> None:
    draws, permutations = 60_000, math.factorial(size)
    moved = permute(np.arange(size)[None, :], size, hash_words(5, np.arange(draws))[:, None])
    _, counts = np.unique((moved * size ** np.arange(size)).sum(1), return_counts=True)
    expected = draws / permutations
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == permutations
    # Mean of chi square: its degrees of freedom; 6 standard deviations above, on fixed keys.
    assert chi_square < permutations - 1 + 6 * math.sqrt(2 * (permutations - 1))


def test_an_epoch_of_a_million_is_well_mixed_and_unlike_the_next() -> None:
    size = 1_000_003
    first, second = permute(np.arange(20_000), size, 0), permute(np.arange(20_000), size, 1)
    for order in (first, second):
        assert len(np.unique(order)) == len(order)
        assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.03
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
        counts = np.histogram(order, bins=20, range=(0, size))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 6 * math.sqrt(38)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (first == second).mean() < 0.001


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"index 5 is outside the permutation of \[0, 5\)"):
        permute(np.array([0, 5]), 5, 0)
    with pytest.raises(ValueError, match=r"size must lie in 1 \.\.\. 2\^62, got 0 \.\.\. 3"):
        permute(np.array([0, 0]), np.array([0, 3]), 0)
    assert permute(np.zeros((0, 2), np.int64), 5, 0).shape == (0, 2)


@given(words=st.lists(WORD, min_size=1, max_size=8), seed=WORD)
@settings(max_examples=60, deadline=None)
def test_numpy_torch_and_python_hash_alike(words: list[int], seed: int) -> None:
    array = np.array(words)
    hashes = hash_words(seed, array, 3)
    assert hashes.tolist() == [slow_hash(seed, word, 3) for word in words]
    tensor = hash_tensor(seed, torch.tensor(words), 3)
    assert tensor.numpy().view(np.uint64).tolist() == hashes.tolist()
    numbers = uniform(hashes)
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.array_equal(uniform_tensor(tensor).numpy(), numbers)


def test_numbers_below_a_bound_are_even() -> None:
    numbers = below(hash_words(9, np.arange(70_000)), 7)
    counts = np.bincount(numbers, minlength=7)
    assert len(counts) == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 6 + 6 * math.sqrt(12)


def test_hash_of_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensor among them: use hash_words"):
        hash_tensor(1, 2)
