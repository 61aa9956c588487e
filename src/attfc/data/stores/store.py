"""What every source of face images offers: random access to encoded images by position, and the identity index.

Positions are 0 ... len(store) - 1 and stay the same as long as the data does. A store is cheap to pickle: loader
workers get a copy, by fork or spawn. A broken image is never an exception of `images`: its row is black and it is named,
because one bad file among millions must not end a run.

`StoreView` is a store that shows the images of others: edits over one, several as one. `origins` says where an image lies below all of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from attfc.data.images import BrokenImageError, decode_image, reason_of
from attfc.data.index import IdentityIndex
from attfc.data.people.name_table import printable
from attfc.typing import Int64, UInt8

__all__ = ["EncodedStore", "Images", "IndexedStore", "Store", "StoreView", "images_array", "origins"]


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
    """Gives `images` to a store that has `read` or `read_many`, and the other one; answers that a store may know better.

    Attributes:
        length_slack: how many bytes `byte_lengths` may be too high by.
    """

    length_slack = 0

    @property
    def place(self) -> str:
        """What the data are: equal for two stores of the same data."""
        path = getattr(self, "path", None)
        return f"object {id(self)}" if path is None else os.path.realpath(path)

    def byte_lengths(self, positions: Int64) -> Int64 | None:
        """Return the byte length of encoded images, -1 for one that is gone; None: only reading them would tell."""
        return None

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the encoded image and its label; where `read_many` is the store's own, of a batch of one.

        Raises:
            OSError, BrokenImageError: it cannot be read.
        """
        (encoded,) = self.read_many([position])
        if isinstance(encoded, Exception):
            raise encoded
        return encoded, int(self.labels(position))

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64; the store's own."""
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
                pixels[row], reasons[row] = 0, reason_of(error)
        first = rows[places]
        again = np.flatnonzero(first != np.arange(len(asked)))
        pixels[again] = pixels[first[again]]
        return Images(pixels, {row: reasons[origin] for row, origin in enumerate(first.tolist()) if origin in reasons})

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without what is a `cached_property`, such as an identity index: a decoding worker does not need it, or makes it again."""
        own = vars(self).items()
        return {name: it for name, it in own if not isinstance(getattr(type(self), name, None), cached_property)}


class IndexedStore(EncodedStore):
    """Gives a store at a `path` that has an identity index its name, its length, its labels and its representation."""

    path: Path

    @cached_property  # which a store of one's own may set
    def name(self) -> str:
        """The own name of the file or folder."""
        return printable(self.path.name or self.path)

    @property
    def identities(self) -> IdentityIndex:
        """The identity index; the store's own."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of images."""
        return self.identities.images

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64; for images that are numbered identity by identity."""
        return self.identities.labels_of_slots(positions)

    def __repr__(self) -> str:
        """Return the path and the counts."""
        counts = f"{len(self.identities):,} identities, {len(self):,} images"
        return f"{type(self).__name__}({str(self.path)!r}, {counts})"


class StoreView(EncodedStore):
    """Gives a store over `stores` all but `source_of`, `labels`, names and the identity index."""

    stores: tuple[Store, ...]

    def source_of(self, positions: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return the number of the store and the position in it: int64, shaped as `positions`; the view's own."""
        raise NotImplementedError

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return each encoded image, or the OSError or BrokenImageError that reading it met; a call a store."""
        source, places = self.source_of(positions)
        found: list[bytes | Exception] = [b""] * len(source)
        for number in np.unique(source).tolist():
            rows = np.flatnonzero(source == number)
            for row, item in zip(rows.tolist(), self.stores[number].read_many(places[rows].tolist()), strict=True):
                found[row] = item
        return found

    def images(self, positions: npt.ArrayLike, size: int, out: UInt8 | None = None) -> Images:
        """Return decoded images in the order asked for, one call a store."""
        source, places = self.source_of(positions)
        numbers: list[int] = np.unique(source).tolist()
        if len(numbers) == 1:
            return self.stores[numbers[0]].images(places, size, out)
        found = Images(images_array(len(source), size, out))
        for number in numbers:
            rows = np.flatnonzero(source == number)
            part = self.stores[number].images(places[rows], size)
            found.pixels[rows] = part.pixels
            found.broken.update((int(rows[row]), reason) for row, reason in part.broken.items())
        found.broken = dict(sorted(found.broken.items()))
        return found

    def where(self, position: int) -> str:
        """Return where the image comes from, as its store says it."""
        source, place = map(int, self.source_of(position))
        return self.stores[source].where(place)


def origins(store: Store, positions: Int64) -> tuple[list[Store], Int64, Int64]:
    """Return the stores below all views, and of each position the number of its store and the position there.

    Args:
        positions: int64 (n,); none of them: the stores alone.
    """
    if not isinstance(store, StoreView):
        return [store], np.zeros(len(positions), np.int64), positions
    source, place = store.source_of(positions)
    bases: list[Store] = []
    numbers, below = np.zeros((2, len(positions)), np.int64)
    for number, part in enumerate(store.stores):
        rows = np.flatnonzero(source == number)
        found, own, at = origins(part, place[rows])
        numbers[rows], below[rows] = own + len(bases), at
        bases += found
    return bases, numbers, below


def images_array(count: int, size: int, out: UInt8 | None) -> UInt8:
    """Return `out` after checking it, or a new uint8 array (count, size, size, 3)."""
    if out is None:
        return np.empty((count, size, size, 3), np.uint8)
    if out.shape != (count, size, size, 3) or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}: uint8 {(count, size, size, 3)} is needed")
    return out
