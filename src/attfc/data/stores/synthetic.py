"""A store of synthetic faces: any number of identities, nothing on disk, nobody's biometric data.

Image `position` is the photograph (seed, identity, sample) rendered by `face_renderer` at 112 x 112 and encoded as JPEG with
a quality that is itself one of the nuisances. `images` gives exactly the pixels of decoding what `read` gives, at any
size: the codec is really run, because its artefacts are part of the data, and because a store whose two ways in differ
would train on one data set and be inspected as another. Rendering directly at 56 x 56 would be faster and was not taken for
the same reason; the JPEG decoder's own scaling makes the small size cheap.

Cost: see benchmarks/results/synthetic.json (about 2 ms per image on one core, most of it the renderer). Memory: the identity
index, 8 bytes per image and 8 bytes per identity, built when first asked for.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from attfc.data.images import encode_image
from attfc.data.index import IdentityIndex, checked_label, checked_positions, offsets_of
from attfc.data.people.name_table import NameTable
from attfc.data.stores.store import EncodedStore
from attfc.errors import UserError, nearest
from attfc.random_streams import below, hash_words
from attfc.synthetic.face_parameters import identity_keys, identity_traits, sample_conditions, sample_keys
from attfc.synthetic.face_renderer import render_faces
from attfc.typing import Int64

__all__ = ["SyntheticFaces", "open_synthetic"]

_IMAGE_COUNTS = 0x636F756E  # the stream that draws how many images an identity has
_BLOCK = 64  # images rendered and encoded together: bounds the memory of one call


class SyntheticFaces(EncodedStore):
    """Parametric faces as a store: the same pixels for the same (seed, identity, sample), whatever the batch.

    Positions run identity by identity. Identity numbers are `first_identity` ... `first_identity + identities - 1`, labels
    count from 0: two stores of one seed whose identity numbers do not meet share nobody (training and evaluation).

    Args:
        identities: number of people, >= 1.
        images_per_identity: photographs of each, >= 1; or (lowest, highest): a number drawn for each identity. It is skewed towards
            the lowest as in real sets: a share q of the identities has more than lowest + (1 - q)^3 of the range.
        seed: another seed, other people.
        first_identity: number of the first person, >= 0.

    Raises:
        UserError: a number out of range.

    >>> store = SyntheticFaces(identities=3, images_per_identity=2)
    >>> len(store), store.where(3)
    (6, 'identity 1/sample 1')
    >>> store.images([0, 3], size=56).pixels.shape
    (2, 56, 56, 3)
    """

    def __init__(
        self,
        identities: int,
        images_per_identity: int | tuple[int, int],
        seed: int = 0,
        *,
        first_identity: int = 0,
    ) -> None:
        each = images_per_identity
        low, high = (each, each) if isinstance(each, int) else each
        if identities < 1:
            raise UserError(f"identities = {identities}: synthetic faces need at least 1")
        if not 1 <= low <= high:
            raise UserError(
                f"images_per_identity = {images_per_identity}: give a number from 1, or (lowest, highest) in this order"
            )
        if first_identity < 0 or first_identity + identities > 2**62:
            raise UserError(f"first_identity = {first_identity}: must be from 0 to 2^62 - identities")
        self.seed = seed
        self.first_identity = first_identity
        self.images_per_identity = images_per_identity
        self._count = identities
        self._each = low if low == high else 0  # 0: the numbers differ
        self._range = (low, high)
        self._length = identities * low if self._each else int(self._starts[-1])

    @property
    def place(self) -> str:
        """The seed: numbers of one seed are the same people."""
        return f"synthetic {self.seed}"

    @property
    def name(self) -> str:
        """A specification that `open_store` understands."""
        low, high = self._range
        images = f"{low}" if low == high else f"{low}-{high}"
        first = f",first={self.first_identity}" if self.first_identity else ""
        return f"synthetic:identities={self._count},images={images},seed={self.seed}{first}"

    @cached_property
    def identities(self) -> IdentityIndex:
        """The identity index, built on first use: 8 bytes per identity."""
        return IdentityIndex(self._starts, source=self.name)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._length

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64, shaped as `positions`.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        return self._split(positions)[0]

    def where(self, position: int) -> str:
        """Return "identity 7/sample 3"; the identity number counts `first_identity` in."""
        labels, samples = self._split([position])
        return f"{self.identity_name(int(labels[0]))}/sample {int(samples[0])}"

    def identity_name(self, label: int) -> str:
        """Return "identity 7": the number that, with the seed, makes this person."""
        return f"identity {self.first_identity + checked_label(label, self._count)}"

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities, each with the seed: "identity 7" alone is somebody else in every seed."""
        start = f"seed {self.seed} identity "
        return NameTable.pack(f"{start}{number}".encode() for number in (labels + self.first_identity).tolist())

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return the JPEGs of several images, rendered a block at a time.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        labels, samples = self._split(positions)
        encoded: list[bytes | Exception] = []
        for start in range(0, len(labels), _BLOCK):
            block = slice(start, start + _BLOCK)
            encoded.extend(self._encoded(labels[block], samples[block]))
        return encoded

    def _encoded(self, labels_N: Int64, samples_N: Int64) -> list[bytes]:
        keys = identity_keys(self.seed, labels_N + self.first_identity)
        traits = identity_traits(keys)
        conditions = sample_conditions(sample_keys(keys, samples_N), traits)
        pixels = render_faces(traits, conditions)
        return [
            encode_image(image, "JPEG", quality=int(quality))
            for image, quality in zip(pixels, conditions.quality, strict=True)
        ]

    def _split(self, positions: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Label and sample number of each position."""
        asked = checked_positions(positions, self._length)
        if self._each:
            return asked // self._each, asked % self._each
        labels: Int64 = np.searchsorted(self._starts, asked, side="right").astype(np.int64) - 1
        return labels, asked - self._starts[labels]

    @cached_property
    def _starts(self) -> Int64:
        """First position of every identity, and the number of images: int64 (identities + 1,)."""
        if self._each:
            return np.arange(self._count + 1, dtype=np.int64) * self._each
        low, high = self._range
        numbers = np.arange(self.first_identity, self.first_identity + self._count, dtype=np.int64)
        share = below(hash_words(_IMAGE_COUNTS, self.seed, numbers), 1 << 20)
        # Integer arithmetic: a rounded cube would move every later position on another machine.
        cube = share * share // (1 << 20) * share // (1 << 20)
        return offsets_of(low + (cube * (high - low + 1)) // (1 << 20))

    def __repr__(self) -> str:
        """Return the specification."""
        return f"SyntheticFaces({self.name!r})"


_SPEC = {"identities": 1000, "images": 20, "seed": 0, "first": 0}


def open_synthetic(spec: str) -> SyntheticFaces:
    """Return the faces of "synthetic:identities=1000,images=20,seed=0"; see `open_store`. Raises UserError."""
    values = dict(_SPEC)
    most_images = 0
    for part in filter(None, (part.strip() for part in spec.partition(":")[2].split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        key = "first" if key == "first_identity" else key
        if key not in values:
            raise UserError(f"{spec}: unknown key {key!r}{nearest(key, values)}; known: {', '.join(values)}")
        low, dash, high = value.partition("-") if key == "images" else (value, "", "")
        try:
            values[key] = int(low)
            most_images = int(high) if dash else most_images
        except ValueError:
            example = "images=20 or images=5-40" if key == "images" else f"{key}={_SPEC[key]}"
            raise UserError(f"{spec}: {key} needs a whole number, as in {example}") from None
    images = (values["images"], most_images) if most_images else values["images"]
    return SyntheticFaces(values["identities"], images, seed=values["seed"], first_identity=values["first"])
