"""Which images make up sample n of the endless training stream: the query, its keys and their augmentation seeds.

Stream number n is element n % N of the keyed permutation of epoch n // N, so every image is query once per epoch; the j-th
key is element j of a keyed permutation of the identity's other images, so keys repeat only when all others were used.
Everything is a hash of (seed, purpose, n, ...): no state, no order, vectorized over the batch (about 3 ms for 1,024 samples
with two keys on one core, whatever the number of images). Not taken: a shuffled array of all images in every process.
Source: AttFC (arXiv 2503.06839), attention loader. Differs: its code draws queries and keys with replacement, and a key may
be the query; `sampling="with_replacement"` and `distinct_keys=False` do the same.
"""

from dataclasses import dataclass

import numpy as np

from attfc.data.index import IdentityIndex
from attfc.data.sampling.identity_mix import IdentityMix
from attfc.data.sampling.paired_queries import PairedQueries
from attfc.data.sampling.weighted_epochs import EachImageOnce, WeightedEpochs
from attfc.data.stores.combined import CombinedStore
from attfc.data.transforms import FLIP_LANE, OPPOSITE_FLIP
from attfc.errors import UserError, nearest
from attfc.random_streams import below, hash_words, permute
from attfc.typing import Int64

__all__ = ["SAMPLINGS", "Queries", "QueryStream", "Samples", "mirror_seeds", "queries_of"]

SAMPLINGS = ("each_once", "with_replacement")

# Purposes: the second word of every hash. Changing one changes every batch of every seed.
_ORDER, _QUERY, _KEYS, _AUGMENTATION = 1, 2, 3, 4


@dataclass
class Samples:
    """B samples by number, nothing decoded.

    Attributes:
        labels: int64 (B,) identities.
        positions: int64 (B,) store positions of the queries.
        key_positions: int64 (B, K) store positions of the keys.
        seeds: int64 (B, 1 + K) augmentation seeds, the query's first (layout: `attfc.data.transforms`).
    """

    labels: Int64
    positions: Int64
    key_positions: Int64
    seeds: Int64


Queries = EachImageOnce | WeightedEpochs | IdentityMix | PairedQueries


def queries_of(
    identities: IdentityIndex,
    seed: int,
    batch_size: int,
    ranks: int = 1,
    *,
    sampling: str,
    identity_share: float,
    group: int,
    sources: CombinedStore | None = None,
) -> Queries | None:
    """Return which images are queries, where that is not every image once per epoch (`AttentionLoader`).

    Args:
        sources: the store, if it has several.

    Raises:
        UserError: choices that do not go together.
    """
    weighted = sources.weighted_epochs(seed) if sources is not None and sources.has_weights else None
    if group > 1:
        for clash, name in (
            (identity_share != 0, f"identity_share = {identity_share:g}"),
            (weighted is not None, "weights of sources"),
            (sampling != "each_once", f"sampling = {sampling!r}"),
        ):
            if clash:
                raise UserError(
                    f"queries in pairs do not go with {name}: each says on its own which image comes next, take one of them"
                )
        if batch_size % group:
            kind = (
                "pairs need an even batch_size"
                if group == 2
                else f"groups need a batch_size that is a multiple of {group}"
            )
            raise UserError(
                f"queries in {kind}, and it is {batch_size} a rank: take {batch_size + group - batch_size % group}"
            )
        return PairedQueries(identities, seed, group)
    if identity_share == 0:
        return weighted
    if sources is not None and 0 in sources.weights:
        raise UserError(
            f"{sources.name}: a source has weight 0 and identity_share = {identity_share:g} draws identities of all sources: "
            "leave the source out"
        )
    return IdentityMix(identities, identity_share, batch_size * ranks, seed, images=weighted)


class QueryStream:
    """The endless stream of samples over an identity index.

    Args:
        identities: the index; at least one image.
        keys_per_query: K >= 0.
        seed: names the stream.
        distinct_keys: keys differ from the query and from each other as far as the identity's images reach: each other image
            is used once before any comes again; an identity with one image shows it again, mirrored. False: each key is any
            image of the identity, drawn with replacement, the query included (the published code).
        sampling: "each_once" | "with_replacement" (the published code): how queries are drawn.
        queries: which images are queries, for sources with sampling weights, a part of a batch by identity, or pairs; None: every
            image once per epoch. Of the pairs, an identity with one image has it twice, the second time mirrored.

    Attributes:
        epoch_length: queries in an epoch: the images, unless `queries` says otherwise.

    Raises:
        UserError: an option out of range, or no image.
    """

    def __init__(
        self,
        identities: IdentityIndex,
        keys_per_query: int,
        seed: int,
        *,
        distinct_keys: bool = True,
        sampling: str = "each_once",
        queries: Queries | None = None,
    ) -> None:
        if keys_per_query < 0:
            raise UserError(f"keys_per_query = {keys_per_query}: set it to 0 (FC heads) or more")
        if sampling not in SAMPLINGS:
            known = " or ".join(repr(name) for name in SAMPLINGS)
            raise UserError(f"sampling = {sampling!r} is not known: use {known}{nearest(sampling, SAMPLINGS)}")
        self.identities = identities
        self.keys_per_query = keys_per_query
        self.seed = int(seed)
        self.distinct_keys = distinct_keys
        self.sampling = sampling
        self.queries: Queries = queries or EachImageOnce(identities.images, seed, _ORDER)
        self.epoch_length = self.queries.length

    def samples(self, numbers: Int64, attempt: int = 0) -> Samples:
        """Return the samples of stream numbers.

        Args:
            numbers: int64 (B,), >= 0.
            attempt: 0: the stream's own; a > 0: the a-th substitute, for a sample whose query cannot be decoded.
        """
        index = self.identities
        slots = self._query_slots(numbers, attempt)
        labels = index.labels_of_slots(slots)
        columns = np.broadcast_to(np.arange(self.keys_per_query), (len(numbers), self.keys_per_query))
        key_positions = self._key_positions(numbers, attempt, slots, labels, columns)
        hashes = hash_words(
            self.seed, _AUGMENTATION, numbers[:, None], attempt, np.arange(1 + self.keys_per_query)[None, :]
        )
        seeds = (hashes >> np.uint64(1)).astype(np.int64)  # the sign bit is the opposite flip's
        alone = index.spans(labels)[1] == 1
        if self.distinct_keys:
            seeds[alone, 1:] = mirror_seeds(seeds[alone, 1:], seeds[alone, :1])
        if isinstance(self.queries, PairedQueries):
            place = numbers % self.queries.group
            second = (place % 2 == 1) & alone
            firsts = hash_words(self.seed, _AUGMENTATION, (numbers - place)[second], 0, 0) >> np.uint64(1)
            seeds[second, 0] = mirror_seeds(seeds[second, 0], firsts.astype(np.int64))
        return Samples(labels, index.positions_of_slots(slots), key_positions, seeds)

    def spare_keys(self, number: int, attempt: int, limit: int) -> Int64:
        """Return up to `limit` further keys of one sample, for keys that cannot be decoded.

        They continue the sample's keys: unused other images of the identity (or further draws with replacement).
        """
        numbers = np.array([number], dtype=np.int64)
        slots = self._query_slots(numbers, attempt)
        labels = self.identities.labels_of_slots(slots)
        others = int(self.identities.spans(labels)[1][0]) - 1
        first = self.keys_per_query
        end = min(first + limit, others) if self.distinct_keys else first + limit
        columns = np.arange(first, max(first, end))[None, :]
        return self._key_positions(numbers, attempt, slots, labels, columns).reshape(-1)

    def _query_slots(self, numbers: Int64, attempt: int) -> Int64:
        """Places in `index.items`: int64 (B,)."""
        if attempt or self.sampling == "with_replacement":
            return self.queries.drawn_slots(hash_words(self.seed, _QUERY, numbers, attempt), numbers)
        return self.queries.query_slots(numbers)

    def _key_positions(self, numbers: Int64, attempt: int, slots: Int64, labels: Int64, columns: Int64) -> Int64:
        """Store positions of the keys number `columns` (B, J) of each sample: int64 (B, J)."""
        index = self.identities
        first, count = (column[:, None] for column in index.spans(labels))
        if self.distinct_keys:
            others = np.maximum(count - 1, 1)
            keys = hash_words(self.seed, _KEYS, numbers[:, None], attempt, columns // others)
            ranks = permute(columns % others, others, keys)
            ranks = ranks + (ranks >= slots[:, None] - first)  # skip the query
            ranks = np.where(count == 1, 0, ranks)
        else:
            ranks = below(hash_words(self.seed, _KEYS, numbers[:, None], attempt, columns), count)
        return index.positions_of_slots(first + ranks)


def mirror_seeds(key_seeds: Int64, query_seeds: Int64) -> Int64:
    """Return key seeds whose flip is the opposite of the query's and whose other augmentations stay their own."""
    own = key_seeds & ~np.int64(FLIP_LANE) & ~np.int64(OPPOSITE_FLIP)
    return own | (query_seeds & np.int64(FLIP_LANE)) | np.int64(OPPOSITE_FLIP)
