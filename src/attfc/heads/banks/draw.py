"""Which classes a step of Partial FC sees: those of the batch and a random draw of the others, without an array of all N.

The draw is the head of a keyed permutation of [0, N), a Feistel network over a grid of rows x columns >= N with almost square
sides, computed for its first elements only. Fewer than sqrt(N) cells of the grid lie outside [0, N); so many elements more are
computed and those outside left out: the number is fixed beforehand, nothing waits for the device. A draw is a function of
(seed, number): a resumed run draws what the uninterrupted one would have drawn, on every device the same.
Cost: 12 rounds of five vectorized operations on int32 over count + sqrt(N) elements, one sort of `count`, and memory of a few
int64 per drawn class; nothing of size N. Not taken: `rand(N).topk(count)` (arcface_torch) and `randperm(N)`, which touch all N
classes and draw from a generator whose state a resume would have to carry; one class of each of `count` strata (cheaper, sorted
for nothing, but two classes of one stratum would never meet).
Source: the sampling of Partial FC (arXiv 2203.15565, section 3); the permutation as in `attfc.random_streams.permute`, with tables for the
rounds, which pay where thousands of elements of one permutation are wanted.
"""

import math

import torch
from torch import Tensor

from attfc.heads.banks.bank import find_sorted
from attfc.random_streams import INCREMENT, scramble_tensor, signed

__all__ = ["draw_classes", "drawn_classes"]

_ROUNDS = 12


def drawn_classes(classes: int, count: int, seed: int, number: int, device: torch.device) -> Tensor:
    """Return at least `count` different classes in random order, int64, mixed with numbers >= `classes` to be left out.

    Args:
        classes: N, 1 <= N < 2**31.
        count: 0 <= count <= N.
        seed, number: name the draw.

    Returns:
        int64 (count + fewer than sqrt(N) + 1,), all different; the values below N are a uniform draw without replacement.
    """
    rows = math.isqrt(classes - 1) + 1
    columns = -(-classes // rows)
    first = torch.arange(count + rows * columns - classes, device=device)
    left, right = (first // columns).int(), (first % columns).int()
    # Keys of the rounds: splitmix64 from a state that both words shape; made on the device, which a copy would wait for.
    state = seed * 0xD1342543DE82EF95 + number * 0x2545F4914F6CDD1D + 1
    steps = torch.arange(1, _ROUNDS + 1, device=device) * signed(INCREMENT)
    keys = scramble_tensor(steps + signed(state)).unsqueeze(1)
    # What a round adds to one half is a random number for each value of the other: tables of sqrt(N), one gather per element.
    for_left = _below(scramble_tensor(torch.arange(columns, device=device) ^ keys[0::2]), rows)
    for_right = _below(scramble_tensor(torch.arange(rows, device=device) ^ keys[1::2]), columns)
    for turn in range(_ROUNDS // 2):
        left += for_left[turn].index_select(0, right)
        left += (left >> 31) & rows  # below zero: once around
        right += for_right[turn].index_select(0, left)
        right += (right >> 31) & columns
    return left.long().mul_(columns).add_(right)


def _below(hashes: Tensor, side: int) -> Tensor:
    """Turn hashes into int32 in [-side, 0): 32 of their bits times a side below 2**31 stay inside int64."""
    return ((((hashes >> 32) & 0xFFFFFFFF) * side >> 32) - side).int()


def draw_classes(labels_B: Tensor, classes: int, count: int, seed: int, number: int) -> Tensor:
    """Return the classes of the batch and random others, `count` in all, ascending.

    Args:
        labels_B: (B,) int64 in [0, classes); B <= count.
        classes: N.
        count: S <= N; at S = N these are all classes.
        seed, number: name the draw; the same words give the same others, whatever the batch pushed out of them.

    Returns:
        int64 (S,), ascending, all different, every label among them.

    >>> draw_classes(torch.tensor([7, 3, 7]), classes=10, count=4, seed=0, number=0)
    tensor([3, 5, 7, 9])
    """
    if count >= classes:
        return torch.arange(classes, device=labels_B.device)
    sorted_B = labels_B.sort().values
    drawn_M = drawn_classes(classes, count, seed, number, labels_B.device)
    again_B = torch.zeros_like(sorted_B, dtype=torch.bool)
    again_B[1:] = sorted_B[1:] == sorted_B[:-1]
    wanted_M = (drawn_M < classes) & ~find_sorted(sorted_B, drawn_M)[1]
    # The batch's classes first, then the draw until there are `count`: one write each, the rest goes to a bin at the end.
    wanted = torch.cat([~again_B, wanted_M])
    place = wanted.cumsum(0) - 1
    place = torch.where(wanted, place.clamp_max_(count), count)
    sampled = labels_B.new_empty(count + 1).scatter_(0, place, torch.cat([sorted_B, drawn_M]))
    return sampled[:count].sort().values
