"""People of a set that are kept aside for its evaluation: chosen by the hash of their names, left out of training as a whole.

A name's SHA-256 has nothing to do with the order of the data, so the same people are kept aside after a set is moved,
converted or sorted anew, and hardly anybody changes sides when people join. Cost: one hash per identity, some 3 s for 2 million.
Not taken: a seeded draw of labels, which picks others as soon as one label moves.
"""

import hashlib
import heapq
from fractions import Fraction

import numpy as np

from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.edits import LEFT_OUT, EditedStore, Edits
from attfc.data.stores.store import Store
from attfc.typing import Int64

__all__ = ["kept_aside_labels", "people_kept_aside", "split"]

_ENOUGH_PEOPLE = 20
_FEWEST, _MOST = 8, 1_000
_IMAGES_SHARE = 5  # at most a fifth of all images
_PERSON_SHARE = 10  # whoever has more than a tenth of them is trained on, so at least two of twenty people fit


def people_kept_aside(able: int, share: float) -> int:
    """Return how many of the `able` people of two or more images are kept aside, before the bound on their images.

    >>> [people_kept_aside(able, 0.1) for able in (19, 20, 60, 1_700, 50_000)]
    [0, 8, 8, 170, 1000]
    """
    if share <= 0 or able < _ENOUGH_PEOPLE:
        return 0
    return min(max(round(Fraction(str(share)) * able), _FEWEST), _MOST, able)


def kept_aside_labels(store: Store, share: float) -> Int64:
    """Choose the people that are kept aside: those of two or more images whose names have the smallest SHA-256.

    Args:
        store: the whole set.
        share: of the people of two or more images, 0 to 1; rounded to whole people, at least 8 and at most 1,000. Whoever has more
            than a tenth of the images, or would bring all together above a fifth, is left to the training.

    Returns:
        int64 (n,) rising labels; nobody where the share is 0, or fewer than 20 people have two or more images.
    """
    counts = store.identities.counts()
    able = np.flatnonzero(counts >= 2)
    people = people_kept_aside(len(able), share)
    light = able[counts[able] * _PERSON_SHARE <= len(store)]
    order = heapq.nsmallest(people, ((_digest(store, label), label) for label in light.tolist()))
    chosen, images = [], 0
    for _, label in order:
        if (images + int(counts[label])) * _IMAGES_SHARE <= len(store):
            chosen.append(label)
            images += int(counts[label])
    return np.array(sorted(chosen), np.int64)


def _digest(store: Store, label: int) -> bytes:
    return hashlib.sha256(store.identity_name(label).encode("utf-8", "surrogatepass")).digest()


def split(store: Store, share: float) -> tuple[Store, Store | None]:
    """Split a set into the people to train on and those kept aside (`kept_aside_labels`); None: nobody.

    No image is copied. Both number images and identities densely, in the order of the set. A `CombinedStore` stays one, with
    the weights of its sources.

    >>> from attfc.data import SyntheticFaces
    >>> training, kept = split(SyntheticFaces(identities=80, images_per_identity=3), share=0.1)
    >>> len(training.identities), len(kept.identities)
    (72, 8)
    """
    labels = kept_aside_labels(store, share)
    if not len(labels):
        return store, None
    others = np.delete(np.arange(len(store.identities), dtype=np.int64), labels)
    return _without(store, labels), EditedStore(store, _leaving_out(store, others), name=f"{store.name}, kept aside")


def _without(store: Store, labels: Int64) -> Store:
    if not isinstance(store, CombinedStore):
        return EditedStore(store, _leaving_out(store, labels), name=store.name) if len(labels) else store
    sources = zip(store.stores, store.own_labels(labels), store.weights, store.names, strict=True)
    left = [
        (_without(source, own), weight, name)
        for source, own, weight, name in sources
        if len(own) < len(source.identities)
    ]
    return CombinedStore(
        [source for source, _, _ in left],
        merge_names=store.merge_names,
        weights=[weight for _, weight, _ in left],
        names=[name for _, _, name in left],
    )


def _leaving_out(store: Store, labels: Int64) -> Edits:
    index = store.identities
    out = np.zeros(len(index), np.bool_)
    out[labels] = True
    positions = np.flatnonzero(out[index.labels()])
    return Edits(len(store), len(index), positions, np.full(len(positions), LEFT_OUT, np.int64))
