"""Counter-based random numbers: each number is a hash of the words that name it, never the next of a sequence.

SplitMix64's finalizer (Steele, Lea, Flood, 2014) chained over the words: `hash(seed, purpose, position, ...)`. Nothing is
stored and nothing has an order, so workers, ranks, resumed runs and devices agree without talking to each other.
The numpy form (uint64) serves the loader, the torch form (int64, which wraps alike on every device) the augmentations:
same words, same bits. Cost: about ten vectorized integer operations a word. Not cryptographic.
Not taken: a `Generator` per worker or per sample; the first ties results to the worker count, the second is a Python loop.

`permute` is a keyed permutation of [0, size) that is computed, element by element, and never stored: a generalized Feistel
network. index = left * columns + right on a grid of rows x columns >= size with almost square sides; each round adds a hash
of one half to the other (modulo its side), which can be undone, so the whole is a bijection of the grid; an element that
lands beyond `size` goes through the network again until it is inside ("cycle walking"), which keeps it a bijection of
[0, size). Fewer than sqrt(size) grid cells lie outside, so a second walk is rare. Cost: 16 rounds of about a dozen vectorized
operations; memory proportional to the indices asked for: the shuffle of 42 M images needs no 336 MB array a process.
Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), second and third method together.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attfc.typing import Float32, Float64, Int64

__all__ = [
    "INCREMENT",
    "below",
    "hash_tensor",
    "hash_words",
    "mix64",
    "normal",
    "permute",
    "scramble_tensor",
    "signed",
    "uniform",
    "uniform_tensor",
]

_MASK64 = (1 << 64) - 1
INCREMENT = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_ROUNDS = (
    16  # of the Feistel network: 6 shuffle large sizes; with 12, some permutations of 6 elements come 40 % too often
)
_LARGEST = 1 << 62


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words: a bijection in which every input bit flips every output bit with probability near 1/2."""
    mixed = words + np.uint64(INCREMENT)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_MULTIPLIER_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MULTIPLIER_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_words(*words: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash words that broadcast against each other into uint64 of the broadcast shape (at least 1-D).

    Args:
        words: integers or integer arrays (int64 or uint64); taken modulo 2^64. Their order matters.

    Returns:
        uint64, shape of the broadcast words, (1,) if all are plain integers.

    >>> int(hash_words(0, 1, 2)[0])
    6768782832058643234
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        bits = np.uint64(word & _MASK64) if isinstance(word, int) else word.astype(np.uint64, copy=False)
        state = mix64(state ^ bits)
    return state


def uniform(hashes: NDArray[np.uint64]) -> Float32:
    """Turn hashes into float32 in [0, 1): their upper 24 bits, exact in float32, so numpy and torch agree."""
    return (hashes >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def normal(hashes: NDArray[np.uint64]) -> Float64:
    """Turn hashes into float64, mean 0, variance 1, bounded by 3.47: the sum of their four 16-bit parts (Irwin-Hall)."""
    parts = np.stack([(hashes >> np.uint64(bits)) & np.uint64(0xFFFF) for bits in (0, 16, 32, 48)])
    drawn: Float64 = (parts.sum(axis=0).astype(np.float64) / 65535.0 - 2.0) * 3.0**0.5
    return drawn


def below(hashes: NDArray[np.uint64], bound: int | Int64) -> Int64:
    """Turn hashes into int64 in [0, bound); bound >= 1, broadcasts. The bias is below bound / 2^63."""
    return (hashes >> np.uint64(1)).astype(np.int64) % bound


def permute(indices: Int64, size: int | Int64, key: int | NDArray[np.uint64]) -> Int64:
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
    key_array = np.asarray(key & _MASK64 if isinstance(key, int) else key, dtype=np.uint64)
    index, sizes, keys = np.broadcast_arrays(np.asarray(indices, dtype=np.int64), np.asarray(size, np.int64), key_array)
    shape = index.shape
    index, sizes, keys = index.ravel(), sizes.ravel(), mix64(keys.ravel())
    if index.size == 0:
        return np.zeros(shape, dtype=np.int64)
    if sizes.min() < 1 or sizes.max() > _LARGEST:
        raise ValueError(f"permutation size must lie in 1 ... 2^62, got {int(sizes.min())} ... {int(sizes.max())}")
    if index.min() < 0 or (index >= sizes).any():
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


def _walk(index: Int64, rows: Int64, columns: Int64, keys: NDArray[np.uint64]) -> Int64:
    """One pass through the Feistel network over the grid rows x columns."""
    left_side, right_side = rows.astype(np.uint64), columns.astype(np.uint64)
    left, right = np.divmod(index.astype(np.uint64), right_side)
    for number in range(_ROUNDS):
        round_keys = keys + np.uint64((number + 1) * INCREMENT & _MASK64)
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


def signed(word: int) -> int:
    """Return the int64 that has the bits of a 64-bit word: torch has no uint64 arithmetic."""
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _shifted_right(words: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically: clear the copies of the sign bit.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def scramble_tensor(words: Tensor) -> Tensor:
    """Scramble int64 words one to one on their device: the finalizer of SplitMix64, which `mix64` applies to words + INCREMENT."""
    words = (words ^ _shifted_right(words, 30)) * signed(_MULTIPLIER_1)
    words = (words ^ _shifted_right(words, 27)) * signed(_MULTIPLIER_2)
    return words ^ _shifted_right(words, 31)


def hash_tensor(*words: int | Tensor) -> Tensor:
    """Hash words as `hash_words` does, on the device of the tensors among them.

    Args:
        words: integers or int64 tensors that broadcast against each other; at least one tensor.

    Returns:
        int64, the bits of `hash_words`' uint64.

    Raises:
        ValueError: no tensor among the words: the device would be a guess.
    """
    device = next((word.device for word in words if isinstance(word, Tensor)), None)
    if device is None:
        raise ValueError(f"hash_tensor got {len(words)} words and no tensor among them: use hash_words")
    state = torch.zeros((), dtype=torch.int64, device=device)
    for word in words:
        state = scramble_tensor((state ^ (signed(word) if isinstance(word, int) else word)) + signed(INCREMENT))
    return state


def uniform_tensor(hashes: Tensor) -> Tensor:
    """Turn the hashes of `hash_tensor` into float32 in [0, 1), bit for bit as `uniform` does."""
    return _shifted_right(hashes, 40).to(torch.float32) * 2.0**-24
