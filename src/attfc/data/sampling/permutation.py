"""Keyed permutations of [0, size) that are computed, element by element, and never stored.

A generalized Feistel network: index = left * columns + right on a grid of rows x columns >= size with almost square sides;
each round adds a hash of one half to the other (modulo its side), which can be undone, so the whole is a bijection of
the grid; an element that lands beyond `size` goes through the network again until it is inside ("cycle walking"), which
keeps it a bijection of [0, size). Fewer than sqrt(size) grid cells lie outside, so a second walk is rare.
Cost: 16 rounds of about a dozen vectorized operations; memory proportional to the indices asked for, not to `size`: the
shuffle of 42 M images needs no 336 MB array a process. Small sizes are mixed too: a test counts every permutation of 2 to 6.
Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), second and third method together.
"""

import numpy as np
from numpy.typing import NDArray

from attfc.random_streams import mix64

__all__ = ["permute"]

_ROUNDS = 16  # 6 shuffle large sizes already; with 12, some permutations of 6 elements come 40 % too often
_LARGEST = 1 << 62
_INCREMENT = 0x9E3779B97F4A7C15


def permute(
    indices: NDArray[np.int64], size: int | NDArray[np.int64], key: int | NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return where the permutation of [0, size) named by `key` sends each index.

    Args:
        indices: int64, any shape, 0 <= index < size.
        size: 1 ... 2^62; an int, or int64 that broadcasts against the indices: a permutation of its own size per element.
        key: names the permutation; an int, or uint64 that broadcasts, already hashed (`hash_words`).

    Returns:
        int64 of the broadcast shape; for a fixed size and key a bijection of [0, size).

    Raises:
        ValueError: an index outside [0, size), or a size outside 1 ... 2^62.

    Source: Black and Rogaway (2002). Differs: not cryptographic, the round function is `mix64`.

    >>> permute(np.arange(6), 6, 7)
    array([2, 4, 0, 5, 3, 1])
    """
    key_array = np.asarray(key & ((1 << 64) - 1) if isinstance(key, int) else key, dtype=np.uint64)
    index, sizes, keys = np.broadcast_arrays(np.asarray(indices, dtype=np.int64), np.asarray(size, np.int64), key_array)
    shape = index.shape
    index, sizes, keys = index.ravel(), sizes.ravel(), mix64(keys.ravel())
    if index.size == 0:
        return np.zeros(shape, dtype=np.int64)
    if sizes.min() < 1 or sizes.max() > _LARGEST:
        raise ValueError(f"permutation size must lie in 1 ... 2^62, got {int(sizes.min())} ... {int(sizes.max())}")
    if index.min() < 0 or bool((index >= sizes).any()):
        worst = int(np.argmax((index < 0) | (index >= sizes)))
        raise ValueError(f"index {int(index[worst])} is outside the permutation of [0, {int(sizes[worst])})")

    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.int64)
    columns = -(-sizes // rows)
    result = _walk(index, rows, columns, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        walked = _walk(result[outside], rows[outside], columns[outside], keys[outside])
        result[outside] = walked
        outside = outside[walked >= sizes[outside]]
    return result.reshape(shape)


def _walk(
    index: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """One pass through the Feistel network over the grid rows x columns."""
    left_side, right_side = rows.astype(np.uint64), columns.astype(np.uint64)
    left, right = np.divmod(index.astype(np.uint64), right_side)
    for number in range(_ROUNDS):
        round_keys = keys + np.uint64((number + 1) * _INCREMENT & ((1 << 64) - 1))
        if number % 2 == 0:
            left = _added(left, mix64(round_keys ^ right), left_side)
        else:
            right = _added(right, mix64(round_keys ^ left), right_side)
    return (left * right_side + right).astype(np.int64)


def _added(half: NDArray[np.uint64], hashes: NDArray[np.uint64], side: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(half + a number below `side` made from the hash) modulo `side`, without a division: sides are at most 2^31."""
    moved = half + ((hashes >> np.uint64(32)) * side >> np.uint64(32))
    moved -= side * (moved >= side)
    return moved
