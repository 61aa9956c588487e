"""Label noise of known amount, as edit lists over any store: how robust is a head against the faults of web data?

- `flip_noise`: a share of the images gets the label of another person, drawn evenly among all others (the "Flip" rows of
  Partial FC's table of noisy data sets).
- `conflict_noise`: a share of the identities is split, so that one person has several labels (inter-class conflict, the
  "Conflict" rows).

The share is met exactly, to the nearest image or identity. Which ones, and what they become, are hashes of (seed, purpose,
position): the same on every machine and with every version of numpy, and drawing a larger share with the same seed
changes the same images and more. Cost: about 2 M changed images/s on one core, 16 bytes each.
Source: An et al., "Killing Two Birds with One Stone" (Partial FC, CVPR 2022). Differs: its lists are not published, so equal
shares do not mean equal images.
"""

import math

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex
from attfc.data.stores.edits import Edits
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.random_streams import below, hash_words, permute
from attfc.typing import Int64

__all__ = ["conflict_noise", "flip_noise"]


# Purposes: the second word of every hash.
_FLIPPED, _NEW_LABEL, _SPLIT, _PART = 0x666C0001, 0x666C0002, 0x636F0001, 0x636F0002
_CHUNK = 1 << 20


def flip_noise(source: Store | IdentityIndex | npt.ArrayLike, share: float, seed: int) -> Edits:
    """Give a share of the images the label of another identity.

    Every image is as likely to be chosen as any other, and every other identity as likely to be its new label. An identity
    may lose all its images; an `EditedStore` then closes the gap.

    Args:
        source: a store, an identity index, or the labels of positions 0, 1, 2 ..., dense from 0.
        share: 0 ... 1 of the images; the number is rounded to the nearest, halves up.
        seed: names the choice.

    Raises:
        UserError: a share outside 0 ... 1, or only one identity.

    >>> flip_noise([0, 0, 0, 1, 1, 1, 2, 2], share=0.25, seed=0).labels
    array([0, 0])
    """
    index = _index_of(source)
    count = _share_of(index.images, share, "images")
    if count and len(index) < 2:
        raise UserError(f"flip noise needs another identity to flip to: the data hold {len(index)}")
    positions = np.sort(_chosen(index.images, count, seed, _FLIPPED))
    labels = np.empty(count, np.int64)
    before = index.labels()[positions]
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        steps = 1 + below(hash_words(seed, _NEW_LABEL, positions[part]), len(index) - 1)
        labels[part] = (before[part] + steps) % len(index)
    return Edits(index.images, len(index), positions, labels)


def conflict_noise(source: Store | IdentityIndex | npt.ArrayLike, share: float, seed: int, *, parts: int = 2) -> Edits:
    """Split a share of the identities into several labels.

    A split person's images are dealt at random into `parts` labels; their sizes differ by at most one image.
    The first part keeps the label, the others get new ones from `identities` up.

    Args:
        source: a store, an identity index, or the labels of positions 0, 1, 2 ..., dense from 0.
        share: 0 ... 1 of all identities; the number is rounded to the nearest, halves up. Chosen are identities of at least
            `parts` images, each as likely as the others.
        seed: names the choice.
        parts: >= 2, labels that a split person ends up with.

    Raises:
        UserError: a share outside 0 ... 1, parts < 2, or too few identities with that many images.

    >>> conflict_noise([0, 0, 0, 1, 1, 1, 2], share=2 / 3, seed=0).apply([0, 0, 0, 1, 1, 1, 2])
    array([0, 3, 0, 4, 1, 1, 2])
    """
    if parts < 2:
        raise UserError(f"parts = {parts}: a split identity needs at least 2")
    index = _index_of(source)
    count = _share_of(len(index), share, "identities")
    large = np.flatnonzero(index.counts() >= parts)
    if count > len(large):
        raise UserError(
            f"conflict noise is to split {count} of {len(index)} identities and only {len(large)} have {parts} images or "
            f"more: lower share to {len(large) / max(1, len(index)):.4g} or parts"
        )
    split = np.sort(large[_chosen(len(large), count, seed, _SPLIT)])
    starts, sizes = index.spans(split)
    rank = np.repeat(np.arange(count, dtype=np.int64), sizes)
    within = np.arange(len(rank), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    part = np.empty(len(rank), np.int64)
    for start in range(0, len(rank), _CHUNK):
        rows = slice(start, start + _CHUNK)
        size = sizes[rank[rows]]
        dealt = permute(within[rows], size, hash_words(seed, _PART, split[rank[rows]]))
        part[rows] = dealt * parts // size
    moved = np.flatnonzero(part > 0)
    positions = index.positions_of_slots(starts[rank[moved]] + within[moved])
    labels = len(index) + rank[moved] * (parts - 1) + part[moved] - 1
    order = np.argsort(positions)
    return Edits(index.images, len(index), positions[order], labels[order])


def _index_of(source: Store | IdentityIndex | npt.ArrayLike) -> IdentityIndex:
    if isinstance(source, IdentityIndex):
        return source
    if isinstance(source, Store):
        return source.identities
    return IdentityIndex.from_labels(source)


def _share_of(total: int, share: float, what: str) -> int:
    if not 0 <= share <= 1:
        raise UserError(f"share = {share:g}: a part of the {what} from 0 to 1 is needed (0.4 for 40 %)")
    return math.floor(share * total + 0.5)


def _chosen(total: int, count: int, seed: int, purpose: int) -> Int64:
    """The first `count` elements of a keyed permutation of 0 ... total - 1."""
    key = hash_words(seed, purpose)
    chosen = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        part = np.arange(start, min(start + _CHUNK, count), dtype=np.int64)
        chosen[start : start + _CHUNK] = permute(part, total, key)
    return chosen
