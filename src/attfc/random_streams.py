"""Counter-based random numbers: each number is a hash of the words that name it, never the next of a sequence.

SplitMix64's finalizer (Steele, Lea, Flood, 2014) chained over the words: `hash(seed, purpose, position, ...)`. Nothing is
stored and nothing has an order, so workers, ranks, resumed runs and devices agree without talking to each other.
The numpy form (uint64) serves the loader, the torch form (int64, which wraps alike on every device) the augmentations:
same words, same bits. Cost: about ten vectorized integer operations a word. Not cryptographic.
Not taken: a `Generator` per worker or per sample; the first ties results to the worker count, the second is a Python loop.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["below", "hash_tensor", "hash_words", "mix64", "uniform", "uniform_tensor"]

_MASK64 = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words: a bijection in which every input bit flips every output bit with probability near 1/2."""
    mixed = words + np.uint64(_INCREMENT)
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


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Turn hashes into float32 in [0, 1): their upper 24 bits, exact in float32, so numpy and torch agree."""
    return (hashes >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def below(hashes: NDArray[np.uint64], bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn hashes into int64 in [0, bound); bound >= 1, broadcasts. The bias is below bound / 2^63."""
    return (hashes >> np.uint64(1)).astype(np.int64) % bound


def _signed(word: int) -> int:
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _shifted_right(words: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically: clear the copies of the sign bit.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


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
        state = (state ^ (_signed(word) if isinstance(word, int) else word)) + _signed(_INCREMENT)
        state = (state ^ _shifted_right(state, 30)) * _signed(_MULTIPLIER_1)
        state = (state ^ _shifted_right(state, 27)) * _signed(_MULTIPLIER_2)
        state = state ^ _shifted_right(state, 31)
    return state


def uniform_tensor(hashes: Tensor) -> Tensor:
    """Turn the hashes of `hash_tensor` into float32 in [0, 1), bit for bit as `uniform` does."""
    return _shifted_right(hashes, 40).to(torch.float32) * 2.0**-24
