"""One person under two labels, of one set or of two: the closest center of each center or image, and what score chance alone gives.

A fixed cosine means another thing for each model. Here the data set the threshold. The height of a stranger, -log(1 - cosine^2), falls off
exponentially; exactly so where directions are uniform on a sphere. Two facts follow, however many strangers are near a row:

1. The gap from the j-th highest of them to the next is exponential too, with a mean of scale / j (Renyi, "On the theory of order statistics", 1953):
   the median gap from the second to the third gives the scale, also where most people have two labels.
2. Given the third, the first reaches a height t with the probability 2 y - y^2, where y = exp((third - t) / scale).

The *third* closest center is a stranger's, also where a person has three labels. The threshold is where these probabilities sum to the false
matches that are allowed. Each row is judged by its own neighbourhood, so people who are alike in groups are no trouble. What it cannot tell:
two people who resemble each other and nobody else are found as one, and a person under four labels or more raises the threshold.
Rates in generated worlds: `tests/unit/test_same_people.py`; on faces and vectors: docs/formats.md. Cost: rows x centers x D
products, 64 MiB at a time, 28 bytes per row.

Not taken: all pairs of images, images per person times the work.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from attfc.data.cleaning.identity_centers import unit_rows
from attfc.data.cleaning.label_cleaning import closest_centers
from attfc.data.stores.store import Store
from attfc.typing import Array, Float32, Float64, Int64, Progress

__all__ = ["Alike", "alike", "chance_threshold", "near_copies"]

FEWEST = 20
"""Fewer rows say nothing about chance."""
_SIDE, _SAME_EMBEDDING, _SAME_PIXELS = 32, 0.9, 0.97
_ROWS, _PRODUCTS, _PAIRS = (
    4_096,
    1 << 24,
    1 << 14,
)  # at once: images of a person, cosines, pairs whose pictures are compared


@dataclass(frozen=True, eq=False)
class Alike:
    """The closest center of each row.

    Attributes:
        best: (N,) int64 its place, -1 where there is none.
        cosines: (N,) float32.
        threshold: the cosine from which the two are one person.
        by_chance: whether the data set it; False: it was given, or the rows were too few.
    """

    best: Int64
    cosines: Float32
    threshold: float
    by_chance: bool

    @property
    def found(self) -> Int64:
        """Rows at or above the threshold: int64, rising."""
        return np.flatnonzero((self.cosines >= self.threshold) & (self.best >= 0))

    def borderline(self, count: int) -> Int64:
        """Rows nearest to the threshold, highest cosine first: int64, at most `count`."""
        near = np.argsort(np.abs(self.cosines - self.threshold), kind="stable")[:count]
        near = near[self.best[near] >= 0]
        return near[np.argsort(-self.cosines[near], kind="stable")]


def chance_threshold(second: Float32, third: Float32, false_matches: float = 1.0) -> float | None:
    """Return the cosine that the closest strangers of about `false_matches` of all rows reach.

    Args:
        second, third: (N,) cosine of each row's second and third closest center; -2: none.
        false_matches: above 0, at most 1.

    Returns:
        At most 1; None: fewer than 20 rows have a third closest center.

    >>> strangers = np.sort(np.random.default_rng(0).normal(0, 0.1, size=(1000, 500)).astype(np.float32), axis=1)
    >>> limit = chance_threshold(strangers[:, -2], strangers[:, -3])
    >>> int((strangers[:, -1] >= limit).sum())
    2
    """
    known = third > -2
    if known.sum() < FEWEST:
        return None
    above, below = _height(second[known]), _height(third[known])
    scale = max(2 * float(np.median(above - below)) / math.log(2), 1e-9)
    top = float(below.max())
    powers = np.exp((below - top) / scale)
    once, twice = float(powers.sum()), float(np.square(powers).sum())
    reached = top + scale * math.log((once + math.sqrt(once**2 - false_matches * twice)) / false_matches)
    return math.sqrt(-math.expm1(-reached)) if reached > 0 else -math.sqrt(math.expm1(-reached))


def _height(cosines: Float32) -> Float64:
    wide = np.clip(cosines.astype(np.float64), -1, 0.9999)
    return -np.log1p(-wide * np.abs(wide))


def alike(
    rows_ND: Array,
    centers_CD: Array,
    threshold: float | None = None,
    *,
    own: Int64 | None = None,
    false_matches: float = 1.0,
    otherwise: float = 0.7,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Alike:
    """Find the closest center of each row, and from which cosine on it is the same person.

    Args:
        rows_ND: embeddings or centers, of any length; rows of length 0 match nobody.
        centers_CD: of the same model.
        threshold: a cosine; None: `chance_threshold`.
        own: (N,) the center that does not count for each row: its own.
        false_matches: of `chance_threshold`.
        otherwise: the threshold where the rows are too few for it.
        device: where the products are computed.
        progress: called as (rows done, rows).
    """
    best, cosines = closest_centers(rows_ND, None, centers_CD, device, own, progress, 1 if threshold is not None else 3)
    chance = chance_threshold(cosines[1], cosines[2], false_matches) if threshold is None else None
    used = threshold if threshold is not None else otherwise if chance is None else chance
    return Alike(best, cosines[0], used, chance is not None)


def near_copies(
    stores: tuple[Store, Store], embeddings: tuple[Array, Array], groups: tuple[Int64, Int64]
) -> tuple[Int64, Int64]:
    """Find images that are the same photograph in another encoding or size: close embeddings, then equal pixels.

    Compared are the images of one group: a person's in both, or a person's with those whose closest center is that person's. Candidates have
    embeddings of a cosine of 0.9 or more; copies also agree in 32 x 32 grey pixels, with a correlation of 0.97 or more.

    Args:
        stores, embeddings: the images of either side, and their embeddings, of one model.
        groups: of each image of either side; negative: not compared.

    Returns:
        Positions in the first and in the second store: int64, one pair each, the same image with itself left out.
    """
    itself = stores[0] is stores[1]
    found: list[Int64] = [np.zeros((0, 2), np.int64)]
    for one, two in _in_both(*groups):
        others_MD = unit_rows(embeddings[1], two)
        step = max(1, min(_ROWS, _PRODUCTS // len(two)))
        for start in range(0, len(one), step):
            rows = one[start : start + step]
            close = np.argwhere(unit_rows(embeddings[0], rows) @ others_MD.T >= _SAME_EMBEDDING)
            pairs = np.stack([rows[close[:, 0]], two[close[:, 1]]], axis=1)
            found.append(_same_pixels(stores, pairs[pairs[:, 0] != pairs[:, 1]] if itself else pairs))
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1]


def _in_both(first: Int64, second: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Yield the rows of each group that both sides have."""
    orders = [np.argsort(groups, kind="stable") for groups in (first, second)]
    ordered = [groups[order] for groups, order in zip((first, second), orders, strict=True)]
    common = np.intersect1d(ordered[0], ordered[1])
    common = common[common >= 0]
    ends = [[np.searchsorted(rows, common, side) for side in ("left", "right")] for rows in ordered]
    for place in range(len(common)):
        one, two = (order[low[place] : high[place]] for order, (low, high) in zip(orders, ends, strict=True))
        yield one, two


def _same_pixels(stores: tuple[Store, Store], pairs: Int64) -> Int64:
    """Return the pairs whose small grey pictures agree; a broken image is nobody's copy."""
    if not len(pairs):
        return pairs
    grey, places = [], []
    for store, column in zip(stores, pairs.T, strict=True):
        positions, place = np.unique(column, return_inverse=True)
        flat = store.images(positions, _SIDE).pixels.reshape(len(positions), -1, 3).astype(np.float32).mean(axis=2)
        flat -= flat.mean(axis=1, keepdims=True)
        grey.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
        places.append(place)
    agree = np.concatenate(
        [
            np.einsum("np,np->n", grey[0][places[0][some]], grey[1][places[1][some]]) >= _SAME_PIXELS
            for some in (slice(start, start + _PAIRS) for start in range(0, len(pairs), _PAIRS))
        ]
    )
    same: Int64 = pairs[agree]
    return same
