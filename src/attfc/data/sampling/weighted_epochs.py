"""Which image is query number n when several sources have sampling weights: a pure function of (seed, n), nothing stored.

Source i of n_i images and weight w_i is visited v_i = round(w_i n_i) times in every epoch (at least once if w_i > 0), at places
that a keyed permutation of the epoch deals out. Its visits, counted over all epochs, run through whole permutations of its
images: visit g is element g % n_i of permutation g // n_i. So with w = 0.5 two epochs show every image once, with w = 2
one epoch shows every image twice, and whatever w is, no image comes twice before every other one of its source has come.
Cost: two keyed permutations per query. Not taken: drawing a source by its weight for each query, after which
some images have come five times and others never.
"""

from collections.abc import Sequence

import numpy as np

from attfc.data.index import offsets_of
from attfc.errors import UserError
from attfc.random_streams import below, hash_words, mix64, permute
from attfc.typing import Int64, UInt64

__all__ = ["EachImageOnce", "WeightedEpochs", "checked_weights"]


# Purposes: the second word of every hash.
_PLACES, _CYCLE = 0x77650001, 0x77650002


def checked_weights(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how often each source is visited in an epoch.

    Args:
        counts: images of each source.
        weights: one for each, finite and >= 0, in visits of each image an epoch; 0 leaves the source out.

    Raises:
        UserError: another number of weights, one that is negative or not finite, a billion visits of an image, or none at all.

    >>> checked_weights([10, 3, 5], [0.5, 1, 0])
    [5, 3, 0]
    """
    if len(weights) != len(counts):
        raise UserError(f"{len(weights)} sampling weights for {len(counts)} sources: one each is needed")
    for number, weight in enumerate(weights):
        if not 0 <= weight <= 1e9:  # NaN fails too
            raise UserError(f"sampling weight {weight:g} of source {number + 1}: a number from 0 to 10^9 is needed")
    visits = [
        max(1, round(weight * count)) if weight > 0 and count else 0
        for weight, count in zip(weights, counts, strict=True)
    ]
    if not sum(visits):
        raise UserError("all sampling weights are 0: no image is left to train on")
    if sum(visits) > 1 << 62:
        raise UserError(f"sampling weights make an epoch of {sum(visits)} images: lower them")
    return visits


class EachImageOnce:
    """The endless sequence of queries in which an epoch is a keyed permutation of all images.

    Args:
        images: in the index.
        seed: names the sequence.
        purpose: the second word of its hashes.

    Attributes:
        length: queries in an epoch.
    """

    def __init__(self, images: int, seed: int, purpose: int) -> None:
        self.length, self._seed, self._purpose = images, int(seed), purpose

    def query_slots(self, numbers: Int64) -> Int64:
        """Return the slots of queries: int64, shaped as `numbers`."""
        epoch, place = np.divmod(numbers, self.length)
        return permute(place, self.length, hash_words(self._seed, self._purpose, epoch))

    def drawn_slots(self, hashes: UInt64, numbers: Int64) -> Int64:
        """Return slots drawn with replacement, from one hash each; wherever in the sequence."""
        return below(hashes, self.length)


class WeightedEpochs:
    """The endless sequence of queries over weighted sources.

    Images are numbered source after source: source i has the numbers sum(counts[:i]) ... sum(counts[:i + 1]) - 1.

    Args:
        counts: images of each source.
        weights: visits of each image an epoch, on average; see `checked_weights`.
        seed: names the sequence.
        slots: int64 (images,) what stands for each image in the answers, e.g. its place in an `IdentityIndex`; None: its number.

    Raises:
        UserError: as `checked_weights`.

    >>> epochs = WeightedEpochs([4, 2], [0.5, 2], seed=0)
    >>> epochs.length, np.sort(epochs.query_slots(np.arange(12))).tolist()
    (6, [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5])
    """

    def __init__(
        self, counts: Sequence[int], weights: Sequence[float], seed: int, *, slots: Int64 | None = None
    ) -> None:
        visits = checked_weights(counts, weights)
        if slots is not None and len(slots) != sum(counts):
            raise ValueError(f"{len(slots)} slots for {sum(counts)} images: one each is needed")
        self.seed = int(seed)
        self.length = sum(visits)
        """Queries in an epoch."""
        self._slots = slots
        self._counts = np.array(counts, np.int64)
        self._visits = np.array(visits, np.int64)
        self._first_image, self._first_visit = offsets_of(counts), offsets_of(visits)

    def query_slots(self, numbers: Int64) -> Int64:
        """Return the slots of queries: int64, shaped as `numbers`.

        Args:
            numbers: int64 >= 0, places in the endless sequence; epoch e is length * e ... length * (e + 1) - 1.
        """
        epochs, places = np.divmod(np.asarray(numbers, np.int64), self.length)
        source, visit = self._visited(permute(places, self.length, hash_words(self.seed, _PLACES, epochs)))
        # Epoch * visits stays far below 2^63 for any run; cycle and place follow from the visits of all epochs.
        cycle, place = np.divmod(epochs * self._visits[source] + visit, self._counts[source])
        image = permute(place, self._counts[source], hash_words(self.seed, _CYCLE, source, cycle))
        return self._answer(self._first_image[source] + image)

    def drawn_slots(self, hashes: UInt64, numbers: Int64) -> Int64:
        """Return slots drawn with replacement, by weight and within a source evenly, from one hash each; wherever in the sequence."""
        source, _ = self._visited(below(hashes, self.length))
        return self._answer(self._first_image[source] + below(mix64(hashes), self._counts[source]))

    def _visited(self, places: Int64) -> tuple[Int64, Int64]:
        """Source and number of the visit, for places in the epoch's list of visits by source."""
        source = np.searchsorted(self._first_visit, places, side="right") - 1
        return source, places - self._first_visit[source]

    def _answer(self, images: Int64) -> Int64:
        return images if self._slots is None else self._slots[images]
