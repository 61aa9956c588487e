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

from attfc.data.images import BrokenImageError, decode_image, reason_of
from attfc.data.index import IdentityIndex
from attfc.typing import Int64, UInt8

__all__ = ["EncodedStore", "Images", "Store", "images_array"]


@dataclass
class Images:
    """Decoded images and the rows among them that are broken.

    Attributes:
        pixels: uint8 (N, size, size, 3) RGB; broken rows are zeros.
        broken: row -> reason, one line without the path (`Store.where` gives that).
    """

    pixels: UInt8
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

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return each encoded image, or the OSError or BrokenImageError that reading it met."""

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64."""

    def where(self, position: int) -> str:
        """Return where an image comes from, for messages: "Ann Lee/0001.jpg"."""

    def identity_name(self, label: int) -> str:
        """Return the identity's name, for messages and pair lists."""

    def images(self, positions: npt.ArrayLike, size: int, out: UInt8 | None = None) -> Images:
        """Return decoded RGB images, size x size pixels, in `out` if given; broken ones black and named, never raised."""


class EncodedStore:
    """Gives `read_many` and `images` to a store that has `read`."""

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

    def images(self, positions: npt.ArrayLike, size: int, out: UInt8 | None = None) -> Images:
        """Read and decode images; one that is asked for several times is decoded once.

        Args:
            positions: (N,) integers.
            size: side in pixels of the square results.
            out: uint8 (N, size, size, 3) to decode into, e.g. shared memory; None: a new array.

        Returns:
            Images: uint8 (N, size, size, 3) RGB; what cannot be read or decoded is black and named in `broken`.
        """
        asked = np.asarray(positions, dtype=np.int64)
        pixels = images_array(len(asked), size, out)
        unique, rows, places = np.unique(asked, return_index=True, return_inverse=True)
        reasons: dict[int, str] = {}
        for row, encoded in zip(rows.tolist(), self.read_many(unique.tolist()), strict=True):
            try:
                if isinstance(encoded, Exception):
                    raise encoded
                pixels[row] = decode_image(encoded, size)
            except (OSError, BrokenImageError) as error:
                reasons[row] = reason_of(error)
        for row in reasons:
            pixels[row] = 0
        first = rows[places]
        again = np.flatnonzero(first != np.arange(len(asked)))
        pixels[again] = pixels[first[again]]
        if not reasons:
            return Images(pixels)
        return Images(pixels, {row: reasons[origin] for row, origin in enumerate(first.tolist()) if origin in reasons})


def images_array(count: int, size: int, out: UInt8 | None) -> UInt8:
    """Return `out` after checking it, or a new uint8 array (count, size, size, 3)."""
    if out is None:
        return np.empty((count, size, size, 3), np.uint8)
    if out.shape != (count, size, size, 3) or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}: uint8 {(count, size, size, 3)} is needed")
    return out
