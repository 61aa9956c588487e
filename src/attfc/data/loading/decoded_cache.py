"""Decoded pixels of a whole store in memory that all worker processes share: each image is decoded once, not once per epoch.

For stores that fit: S^2 x 3 bytes per image (0.59 GB for 15,664 faces of 112 x 112), taken only as images arrive
(`SharedBytes`). Workers fill it lazily without locks: two that decode the same image write the same bytes, and the flag
is set after the pixels. Not taken: a cache per worker (each would hold everything) and a file (a stale one lies).
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.data.shared_bytes import SharedBytes
from attfc.data.stores.store import Images, Store, images_array
from attfc.errors import UserError
from attfc.typing import UInt8

__all__ = ["DecodedCache"]

_MIB = 1024 * 1024


class DecodedCache:
    """Gives a store's decoded images, from memory the second time.

    Workers started by fork share it everywhere; by spawn or forkserver where the system has memfd (Linux).

    Args:
        store: the images.
        size: side in pixels of the square images; only this size is kept.
        budget_mib: largest memory in MiB; the whole store must fit, a part would help in no epoch with every image once.

    Raises:
        UserError: the budget is too small: the message has the MiB needed.
    """

    def __init__(self, store: Store, size: int, budget_mib: float) -> None:
        images = len(store)
        needed = images * (size * size * 3 + 1)
        if needed > budget_mib * _MIB:
            raise UserError(
                f"decoded cache: {images} images of {size} x {size} need {-(-needed // _MIB)} MiB and the budget is "
                f"{budget_mib:g} MiB: raise it to at least {-(-needed // _MIB)} or switch the cache off"
            )
        self.store, self.size = store, size
        self._memory = SharedBytes(needed, "decoded cache")

    @cached_property
    def _pixels(self) -> UInt8:
        shape = (len(self.store), self.size, self.size, 3)
        return self._memory.array[: math.prod(shape)].reshape(shape)

    @cached_property
    def _filled(self) -> UInt8:
        return self._memory.array[self._pixels.size :]

    @property
    def filled(self) -> int:
        """Images held so far, by all processes together."""
        return int(np.count_nonzero(self._filled))

    def check(self, store: Store, size: int) -> None:
        """Raise UserError unless the cache belongs to this store and size."""
        if store is not self.store or size != self.size:
            raise UserError(
                f"decoded cache holds {self.store.name} at {self.size} pixels, not {store.name} at {size}: make one for it"
            )

    def images(self, positions: npt.ArrayLike, size: int, out: UInt8 | None = None) -> Images:
        """Return decoded images, as `Store.images` does.

        Args:
            positions: (N,) integers.
            size: the cache's own size.
            out: uint8 (N, size, size, 3) to write into; None: a new array.

        Returns:
            Images: uint8 (N, size, size, 3); broken images are tried again each time and named.

        Raises:
            UserError: another size than the cache's.
        """
        if size != self.size:
            raise UserError(f"decoded cache holds images of {self.size} pixels, not {size}: make one for that size")
        asked = np.asarray(positions, dtype=np.int64)
        pixels = images_array(len(asked), size, out)
        missing = np.flatnonzero(self._filled[asked] == 0)
        if not missing.size:
            np.take(self._pixels, asked, axis=0, out=pixels, mode="clip")
            return Images(pixels)
        held = np.flatnonzero(self._filled[asked])
        pixels[held] = self._pixels[asked[held]]
        decoded = self.store.images(asked[missing], size)
        pixels[missing] = decoded.pixels
        whole = [row for row in range(len(missing)) if row not in decoded.broken]
        self._pixels[asked[missing[whole]]] = decoded.pixels[whole]
        self._filled[asked[missing[whole]]] = 1
        return Images(pixels, {int(missing[row]): reason for row, reason in decoded.broken.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for a new worker process, which shares the memory."""
        return {"store": self.store, "size": self.size, "_memory": self._memory}
