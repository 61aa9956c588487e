"""Which image is query number n when every batch holds two images, or K, of each identity: a pure function of (seed, n), nothing stored.

Queries 2i and 2i + 1 show one person, so that each can be the other's key without a pass of its own (`AttFC(center=Pairs())`). Each epoch
an identity's images are paired in a new order, and the pairs of all identities come in a new order: every image is query once per epoch.
An odd image out is paired with the first of its identity, which then comes twice; an identity with one image is paired with itself, and
the stream shows it mirrored (`QueryStream`). In groups of K the last group of an identity begins again with its first images, so an epoch is longer
where people have few. Cost: two keyed permutations per query, and 8 bytes per identity.
Source: our own; batches of P people with K images each are usual in metric learning (1703.07737), there drawn anew and not once per epoch.
"""

import numpy as np

from attfc.data.index import IdentityIndex, offsets_of
from attfc.random_streams import below, hash_words, permute
from attfc.typing import Int64, UInt64

__all__ = ["PairedQueries"]


# Purposes: the second word of every hash.
_PAIRS, _WITHIN = 0x70610001, 0x70610002


class PairedQueries:
    """The endless sequence of queries, two of each identity one after the other.

    Args:
        identities: the index; at least one image.
        seed: names the sequence.
        group: K queries of an identity in a row.

    Attributes:
        length: queries in an epoch, twice the pairs: the images, and one more for each identity with an odd number of them. In groups: the
            images of each identity, rounded up to a multiple of K.

    >>> pairs = PairedQueries(IdentityIndex.from_labels(np.array([0, 0, 0, 0, 1])), seed=0)
    >>> slots = pairs.query_slots(np.arange(6)).reshape(3, 2)
    >>> pairs.length, sorted(pairs.identities.labels_of_slots(slots).tolist()), np.unique(slots).tolist()
    (6, [[0, 0], [0, 0], [1, 1]], [0, 1, 2, 3, 4])
    """

    def __init__(self, identities: IdentityIndex, seed: int, group: int = 2) -> None:
        self.identities = identities
        self.seed = int(seed)
        self.group = group
        self._first_group = offsets_of(-(-identities.counts() // group))
        self._groups = int(self._first_group[-1])
        self.length = group * self._groups

    def query_slots(self, numbers: Int64) -> Int64:
        """Return the slots of queries, places in `identities.items`: int64, shaped as `numbers`.

        Args:
            numbers: int64 >= 0, places in the endless sequence.
        """
        epoch, place = np.divmod(np.asarray(numbers, np.int64), self.length)
        group = permute(place // self.group, self._groups, hash_words(self.seed, _PAIRS, epoch))
        label = np.searchsorted(self._first_group, group, side="right") - 1
        first, count = self.identities.spans(label)
        turn = (self.group * (group - self._first_group[label]) + place % self.group) % count
        return first + permute(turn, count, hash_words(self.seed, _WITHIN, label, epoch))

    def drawn_slots(self, hashes: UInt64, numbers: Int64) -> Int64:
        """Return slots drawn from all images, for queries that cannot be decoded: those lose their partner."""
        return below(hashes, self.identities.images)
