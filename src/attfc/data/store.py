"""What every source of face images offers: random access to encoded images by position, and the identity index.

Positions are 0 ... len(store) - 1 and stay the same as long as the data does. A store is cheap to pickle: loader
workers get a copy, by fork or spawn. A broken image is never an exception of `images`: its row is black and it is named,
because one bad file among millions must not end a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from attfc.data.images import BrokenImageError, decode_image
from attfc.data.index import IdentityIndex

__all__ = ["EncodedStore", "Images", "Store"]

Int64 = npt.NDArray[np.int64]


@dataclass
class Images:
    """Decoded images and the rows among them that are broken.

    Attributes:
        pixels: uint8 (N, size, size, 3) RGB; broken rows are zeros.
        broken: row -> reason, one line without the path (`Store.where` gives that).
    """

    pixels: npt.NDArray[np.uint8]
    broken: dict[int, str] = field(default_factory=dict)


@runtime_checkable
class Store(Protocol):
    """Images by position. `name` is for messages; `identities` says which positions belong to which label."""

    @property
    def name(self) -> str:
        """Short name for messages and tables."""

    @property
    def identities(self) -> IdentityIndex:
        """The identity index."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the encoded image and its label. Raises OSError or BrokenImageError if it cannot be read."""

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64."""

    def where(self, position: int) -> str:
        """Return where an image comes from, for messages: "Ann Lee/0001.jpg"."""

    def identity_name(self, label: int) -> str:
        """Return the identity's name, for messages and pair lists."""

    def images(self, positions: npt.ArrayLike, size: int) -> Images:
        """Return decoded RGB images, size x size pixels; broken ones black and named, never raised."""


class EncodedStore:
    """Gives `images` to a store that has `read`."""

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the encoded image and its label; the store's own."""
        raise NotImplementedError

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return each encoded image, or the OSError or BrokenImageError that reading it met.

        One `read` after the other; a store that can do better with a batch (neighbours in one read) overrides it.
        """
        found: list[bytes | Exception] = []
        for position in positions:
            try:
                found.append(self.read(position)[0])
            except (OSError, BrokenImageError) as error:
                found.append(error)
        return found

    def images(self, positions: npt.ArrayLike, size: int) -> Images:
        """Read and decode images.

        Args:
            positions: (N,) integers.
            size: side in pixels of the square results.

        Returns:
            Images: uint8 (N, size, size, 3) RGB; what cannot be read or decoded is black and named in `broken`.
        """
        asked = np.asarray(positions, dtype=np.int64).tolist()
        result = Images(np.zeros((len(asked), size, size, 3), np.uint8))
        for row, encoded in enumerate(self.read_many(asked)):
            try:
                if isinstance(encoded, Exception):
                    raise encoded
                result.pixels[row] = decode_image(encoded, size)
            except BrokenImageError as error:
                result.broken[row] = str(error)
            except OSError as error:
                result.broken[row] = f"cannot be read ({error.strerror or error})"
        return result
