"""Which image is query number n when a part of every batch is drawn by identity: a pure function of (seed, n), nothing stored.

Of the G queries of a batch (of all ranks together) the first ceil(share G) are drawn by identity: identities evenly, whatever
number of images they have, then one of the identity's images. The rest are drawn by image. Both parts go through whole keyed
permutations: no identity comes again by identity before every other one has, its images take turns, and no image comes
again by image before every other one has. An epoch is one pass of the image part, 1 / (1 - share) times the images; at share 1, which has no
such part, as many queries as there are images. Cost: two keyed permutations per query, and 8 bytes per identity if some have no image.
Source: the two loaders of F2C (arXiv 2105.10375) and of its code (tiandunx/FFC), where 2 of 3 samples are by identity and the
instance loader's pass is the epoch. Differs: an identity's images take turns, there each is drawn anew.
"""

import math

import numpy as np

from attfc.data.index import IdentityIndex
from attfc.data.sampling.weighted_epochs import EachImageOnce, WeightedEpochs
from attfc.errors import UserError
from attfc.random_streams import below, hash_words, mix64, permute
from attfc.typing import Int64, UInt64

__all__ = ["IdentityMix"]


# Purposes: the second word of every hash.
_IDENTITIES, _TURNS, _IMAGES = 0x69640001, 0x69640002, 0x69640003


class IdentityMix:
    """The endless sequence of queries, a part of each batch by identity and the rest by image.

    Args:
        identities: the index; at least one image.
        share: of each batch that is drawn by identity, 0 to 1 (F2C: 2 / 3).
        batch: G, the samples of a batch over all ranks.
        seed: names the sequence.
        images: the sequence of the part drawn by image, for sources with sampling weights; None: every image once a pass.
            Weights leave the part drawn by identity alone.

    Raises:
        UserError: a share out of range, or a batch too small for the image part that the share leaves.

    >>> mix = IdentityMix(IdentityIndex.from_labels(np.array([0, 0, 0, 0, 0, 1])), share=0.5, batch=4, seed=0)
    >>> slots = mix.query_slots(np.arange(12)).reshape(3, 4)  # the fourth batch begins the next epoch
    >>> mix.length, mix.identities.labels_of_slots(slots[:, :2]).tolist(), np.sort(slots[:, 2:].ravel()).tolist()
    (12, [[1, 0], [1, 0], [0, 1]], [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self, identities: IdentityIndex, share: float, batch: int, seed: int, *, images: WeightedEpochs | None = None
    ) -> None:
        if not 0 <= share <= 1:  # NaN fails too
            raise UserError(
                f"the share of a batch drawn by identity is {share}: set it to 0 ... 1 (F2C: two thirds; 0: all by image)"
            )
        self.identities = identities
        self.seed = int(seed)
        self.batch = batch
        self.by_identity = math.ceil(share * batch)
        """Queries of a batch that are drawn by identity: its first ones. As `DCP` counts those that enter first."""
        by_image = batch - self.by_identity
        if share < 1 and by_image == 0:
            raise UserError(
                f"a share of {share:g} by identity leaves no image of a batch of {batch}: raise the batch, or lower the share"
            )
        self._images = images or EachImageOnce(identities.images, seed, _IMAGES)
        self.length = -(-self._images.length * batch // by_image) if by_image else identities.images
        """Queries in an epoch."""
        counts = identities.counts()
        # Edits may leave an identity without an image: it keeps its label and is not drawn.
        self._drawn: Int64 | None = None if counts.all() else np.flatnonzero(counts).astype(np.int64, copy=False)
        self._identities = len(identities) if self._drawn is None else len(self._drawn)

    def query_slots(self, numbers: Int64) -> Int64:
        """Return the slots of queries, places in `identities.items`: int64, shaped as `numbers`.

        Args:
            numbers: int64 >= 0, places in the endless sequence; batch t is batch * t ... batch * (t + 1) - 1.
        """
        batches, places = np.divmod(np.asarray(numbers, np.int64), self.batch)
        by_identity = places < self.by_identity
        slots = np.empty_like(places)
        slots[by_identity] = self._by_identity(batches[by_identity] * self.by_identity + places[by_identity])
        by_image = ~by_identity
        first = batches * (self.batch - self.by_identity) - self.by_identity
        slots[by_image] = self._images.query_slots(first[by_image] + places[by_image])
        return slots

    def drawn_slots(self, hashes: UInt64, numbers: Int64) -> Int64:
        """Return slots drawn with replacement from one hash each, by identity or by image as the place in the batch says."""
        by_identity = np.asarray(numbers, np.int64) % self.batch < self.by_identity
        label = self._label(below(hashes, self._identities))
        first, count = self.identities.spans(label)
        slots = first + below(mix64(hashes), count)
        return np.where(by_identity, slots, self._images.drawn_slots(hashes, numbers))

    def _by_identity(self, draws: Int64) -> Int64:
        # In each cycle an identity comes once: the cycle's number is also how often the identity has come before.
        cycle, place = np.divmod(draws, self._identities)
        label = self._label(permute(place, self._identities, hash_words(self.seed, _IDENTITIES, cycle)))
        first, count = self.identities.spans(label)
        turn, image = np.divmod(cycle, count)
        return first + permute(image, count, hash_words(self.seed, _TURNS, label, turn))

    def _label(self, identities: Int64) -> Int64:
        return identities if self._drawn is None else self._drawn[identities]
