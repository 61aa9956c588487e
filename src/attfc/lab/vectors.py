"""The vector world: identities without pictures, for questions of scale that images answer in weeks.

A person is a latent vector z ~ N(0, I); sample j of a person is x = tanh([z, s n_j] A) C with nuisances n_j ~ N(0, I) and a fixed random map
(A, C). An encoder has to undo the map and to drop the nuisances, as one of faces does with pose and light. A view of a sample moves its
nuisances a little, which stands for augmentation. Every number is a hash of (seed, person, sample, ...) (`random_streams`), so a million
persons take no memory, and persons that are kept aside are just other numbers.
Cost: about 2 us a vector at the default sizes on one core. Not taken: a table of latents, and mixtures with covariances of their own: more
knobs, and no question needs them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from attfc.data.index import IdentityIndex
from attfc.errors import UserError
from attfc.random_streams import below, hash_words, uniform
from attfc.typing import Float32, Int64

__all__ = ["SPLITS", "VectorEncoder", "VectorWorld"]


# Persons are numbered: those of training from 0, those kept aside from far beyond any of them.
SPLITS = {"train": 0, "validation": 1 << 40, "test": 1 << 41}

# Purposes: a word of every hash.
_LATENT, _NUISANCE, _VIEW, _COUNT, _FLIP, _FLIPPED, _CONFLICT = range(1, 8)


def _normals(count: int, *words: int | Int64) -> Float32:
    """Standard normal numbers, float32 (B, count), by hash of words of shape (B,): Box and Muller's pairs, one hash a pair."""
    halves = -(-count // 2)
    wide = [word if isinstance(word, int) else word[:, None] for word in words]
    hashes = hash_words(*wide, np.arange(halves)[None, :])
    radius = np.sqrt(-2.0 * np.log1p(-uniform(hashes)))
    angle = np.float32(2.0 * np.pi) * uniform(hashes << np.uint64(24))
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


@dataclass(frozen=True)
class VectorWorld:
    """A training set of vectors, and people kept aside.

    Args:
        identities: people in the training set, >= 2.
        images: least and most samples per person; the number's logarithm is uniform, so few people have many.
        seed: of the world: map, people and samples.
        latent, nuisance, hidden, size: dimensions of z, of n, of the map's middle and of x.
        nuisance_scale: s; the larger, the harder.
        view_scale: how far a view moves the nuisances, in their standard deviations.
        flip: share of the samples that get the label of another person at random.
        conflict: share of the people who are in the set under two labels, each with about half of their samples.
        test_identities, test_images: people kept aside (twice: validation and test), and samples of each.

    Raises:
        UserError: a number out of its range.

    >>> world = VectorWorld(identities=100, images=(2, 20))
    >>> world.observe(np.array([0, 1]), np.array([0, 0])).shape
    (2, 96)
    """

    identities: int = 10_000
    images: tuple[int, int] = (2, 20)
    seed: int = 0
    latent: int = 24
    nuisance: int = 24
    hidden: int = 96
    size: int = 96
    nuisance_scale: float = 2.0
    view_scale: float = 0.3
    flip: float = 0.0
    conflict: float = 0.0
    test_identities: int = 2_000
    test_images: int = 4

    def __post_init__(self) -> None:
        least = {
            "identities": 2,
            "latent": 1,
            "nuisance": 1,
            "hidden": 1,
            "size": 1,
            "test_identities": 2,
            "test_images": 2,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"world {name} = {getattr(self, name)}: set it to {bound} or more")
        if not 1 <= self.images[0] <= self.images[1]:
            raise UserError(
                f"world images = {list(self.images)}: give the least and the most a person, such as [2, 20]"
            )
        for name in ("flip", "conflict"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"world {name} = {getattr(self, name)} is a share: set it to 0 ... 1")

    def people(self) -> IdentityIndex:
        """Return who is on which position, in truth: positions run person by person."""
        low, high = np.log(self.images[0]), np.log(self.images[1] + 1)
        drawn = uniform(hash_words(self.seed, _COUNT, np.arange(self.identities)))
        counts = np.floor(np.exp(low + (high - low) * drawn.astype(np.float64))).astype(np.int64)
        return IdentityIndex(np.concatenate([[0], np.cumsum(np.clip(counts, *self.images))]))

    def labelled(self) -> IdentityIndex:
        """Return who is on which position as the training set says: with flipped labels, and people under two labels."""
        people = self.people()
        if self.flip == 0 and self.conflict == 0:
            return people
        positions = np.arange(people.images)
        labels = people.labels_of_slots(positions)
        if self.conflict > 0:
            split = uniform(hash_words(self.seed, _CONFLICT, np.arange(self.identities))) < self.conflict
            second = np.cumsum(split) - 1 + self.identities
            odd = (positions - people.offsets[labels]) % 2 == 1
            labels = np.where(split[labels] & odd, second[labels], labels)
        if self.flip > 0:
            flipped = uniform(hash_words(self.seed, _FLIP, positions)) < self.flip
            others = below(hash_words(self.seed, _FLIPPED, positions), max(int(labels.max()), 1))
            labels = np.where(flipped, others + (others >= labels), labels)
        _, labels = np.unique(labels, return_inverse=True)  # a person may have lost all samples, or have no second one
        return IdentityIndex.from_labels(labels)

    def samples_at(self, positions: Int64) -> tuple[Int64, Int64]:
        """Return person and sample number of positions, in truth; `positions` any shape."""
        people = self._people
        persons = people.labels_of_slots(positions)
        return persons, positions - people.offsets[persons]

    def kept_aside(self, split: str) -> tuple[Int64, Int64]:
        """Return persons and sample numbers of the people kept aside as "validation" or "test", each (M,)."""
        persons = SPLITS[split] + np.repeat(np.arange(self.test_identities), self.test_images)
        return persons, np.tile(np.arange(self.test_images), self.test_identities)

    def observe(self, persons: Int64, samples: Int64, views: Int64 | None = None) -> Float32:
        """Return what is seen of samples.

        Args:
            persons, samples: int64 (B,).
            views: int64 (B,) seeds of views; None: the samples themselves.

        Returns:
            float32 (B, size), each number of the order of 1.
        """
        nuisances = _normals(self.nuisance, self.seed, _NUISANCE, persons, samples)
        if views is not None:
            nuisances += np.float32(self.view_scale) * _normals(self.nuisance, self.seed, _VIEW, views)
        latents = _normals(self.latent, self.seed, _LATENT, persons)
        first, second = self._map
        return np.tanh(np.concatenate([latents, np.float32(self.nuisance_scale) * nuisances], axis=1) @ first) @ second

    @cached_property
    def _people(self) -> IdentityIndex:
        return self.people()

    @cached_property
    def _map(self) -> tuple[Float32, Float32]:
        rng = np.random.default_rng(self.seed)
        into = self.latent + self.nuisance
        first = rng.standard_normal((into, self.hidden)) * 1.5 / np.sqrt(into)
        second = rng.standard_normal((self.hidden, self.size)) * 1.5 / np.sqrt(self.hidden)
        return first.astype(np.float32), second.astype(np.float32)


class VectorEncoder(nn.Module):
    """An encoder of vectors: two hidden layers with BatchNorm and ReLU, and a last BatchNorm as face networks have.

    Args:
        size: of the input.
        embedding_size: D.
        width: of the hidden layers.

    (N, size) float -> (N, D) float, not normalized.
    """

    def __init__(self, size: int, embedding_size: int, width: int = 256) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.layers = nn.Sequential(
            nn.Linear(size, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, vectors_NX: Tensor) -> Tensor:
        """Return the embeddings."""
        embeddings_ND: Tensor = self.layers(vectors_NX)
        return embeddings_ND
