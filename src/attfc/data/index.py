"""Which images belong to which identity: compressed sparse rows over int64 arrays.

`items[offsets[y] : offsets[y + 1]]` are the positions of identity y's images. Where a store numbers its images identity by
identity, as all but lists and views do, items are 0, 1, 2 ... and are not held at all. Cost: 8 bytes per identity, and 8
an image unless it is so, in memory or memory-mapped from `.npy` files, whose pages all worker processes share. Opening reads
the offsets and not the items: to look through 42 M of them would take 0.1 s and make 336 MB resident in every process, so their range
is checked where they are used. The alternative, a list of lists, costs some 60 bytes an image in every worker and seconds to
pickle. Labels are int64 everywhere: float32 ones collide above 2^24 identities.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.errors import UserError
from attfc.typing import Array, Int64, PathLike

__all__ = ["IdentityIndex", "checked_label", "checked_positions", "offsets_of", "open_array", "run_starts", "spread"]

_OFFSETS = "offsets.npy"
_ITEMS = "items.npy"
_CHECKED_WHEN_OPENED = 1 << 20  # items; more are checked where they are used
_BLOCK = 1 << 20


def open_array(path: Path, dtype: npt.DTypeLike) -> Array:
    """Open a one-dimensional `.npy` file of exactly this dtype, memory-mapped and read-only; nothing in it is executed.

    Raises:
        UserError: not a `.npy` file, cut short, object dtype (a pickle), another dtype or another number of dimensions.
        FileNotFoundError: no such file.
    """
    array: Array
    try:
        if path.stat().st_size > 4096:
            array = np.lib.format.open_memmap(path, mode="r")
        else:  # cheaper read than mapped, and an array without elements cannot be mapped
            with open(path, "rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Of a damaged header numpy also makes tokenize.TokenError, TypeError, or a warning that may be an error here.
        raise UserError(f"{path}: not a readable .npy array ({error}); delete it to have it rebuilt") from None
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        found = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{path}: holds {found} instead of a row of {np.dtype(dtype)}; delete it to have it rebuilt")
    array = array.view(np.ndarray)  # the same mapped pages; np.memmap's own indexing is several times slower
    array.flags.writeable = False
    return array


def checked_positions(positions: npt.ArrayLike, images: int, of: str = "store", what: str = "positions") -> Int64:
    """Return positions as int64, shaped as they are.

    Raises:
        IndexError: one outside 0 ... images - 1.
    """
    asked = np.asarray(positions, dtype=np.int64)
    if asked.size and not 0 <= asked.min() <= asked.max() < images:
        article = "an" if of == "index" else "a"
        raise IndexError(f"{what} {int(asked.min())} ... {int(asked.max())} of {article} {of} of {images} images")
    return asked


def checked_label(label: int, identities: int) -> int:
    """Return a label. Raises IndexError if it is not one of 0 ... identities - 1."""
    if not 0 <= label < identities:
        raise IndexError(f"label {label} is not one of {identities} identities")
    return label


def offsets_of(counts: npt.ArrayLike) -> Int64:
    """Return where rows of so many elements begin and, last, where all end: int64 [rows + 1].

    >>> offsets_of([2, 3])
    array([0, 2, 5])
    """
    return np.append(0, np.cumsum(counts, dtype=np.int64))


def run_starts(ordered: Array) -> Int64:
    """Return where each run of equal values begins: [5, 5, 7] gives [0, 2]."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def spread(total: int, count: int) -> Int64:
    """Return up to `count` positions of 0 ... total - 1, evenly apart, the first and the last among them.

    >>> spread(9, 3), spread(2, 3)
    (array([0, 4, 8]), array([0, 1]))
    """
    return np.unique(np.linspace(0, total - 1, min(count, total), dtype=np.int64))


class IdentityIndex:
    """Positions of every identity's images; immutable.

    Args:
        offsets: int64 [identities + 1], from 0, never falling, its last element the number of images.
        items: int64 [images], each position 0 ... images - 1 once; None: images are numbered identity by identity, item = slot.
        source: for messages.
        folder: where `offsets` is mapped from as `offsets.npy`, for pickling; only without items.

    Raises:
        UserError: the two arrays contradict each other.

    >>> index = IdentityIndex.from_labels(np.array([1, 0, 1]))
    >>> len(index), index.images, index.of(1).tolist()
    (2, 3, [0, 2])
    """

    offsets: Int64

    def __init__(
        self,
        offsets: Int64,
        items: Int64 | None = None,
        *,
        source: PathLike = "identity index",
        folder: Path | None = None,
    ) -> None:
        self.offsets = offsets
        self._items = items
        self._consecutive = items is None
        self._folder = folder if items is None else None
        self._source = os.fspath(source)
        problem = _contradiction(offsets, items)
        if problem:
            raise UserError(f"{self._source}: {problem}; delete it to have it rebuilt")
        self._images = int(offsets[-1])
        self._checked = items is None or len(items) <= _CHECKED_WHEN_OPENED
        if items is not None and self._checked:
            self._check_range(items)

    @classmethod
    def from_labels(cls, labels: npt.ArrayLike, identities: int | None = None) -> "IdentityIndex":
        """Group the positions 0 ... N - 1 by label; within an identity positions rise. O(N log N), O(N) if sorted.

        Args:
            labels: (N,) integers, dense from 0.
            identities: number of identities; more than the labels show leaves identities without images.

        Raises:
            UserError: labels that are not integers, negative, beyond `identities`, or (without `identities`) with gaps.
        """
        raw = np.asarray(labels)
        if raw.ndim != 1 or (raw.size and raw.dtype.kind not in "iu"):
            raise UserError(
                f"labels are {raw.dtype} of shape {raw.shape}: a row of integers is needed "
                "(float32 labels collide above 16,777,216)"
            )
        if raw.size and raw.dtype.kind == "u" and raw.max() > np.iinfo(np.int64).max:
            raise UserError(f"label {int(raw.max())} does not fit into int64")
        label_of = raw.astype(np.int64, copy=False)
        low, high = (int(label_of.min()), int(label_of.max())) if label_of.size else (0, -1)
        if low < 0:
            raise UserError(f"label {low} at position {int(label_of.argmin())} is negative: labels count from 0")
        if identities is not None and high >= identities:
            raise UserError(
                f"label {high} at position {int(label_of.argmax())} is beyond the last of {identities} identities"
            )
        # Without this check a single label of 10^12 would ask bincount for 8 TB.
        if identities is None and high >= label_of.size:
            raise UserError(
                _gap_message(f"label {high} among {label_of.size} images leaves identities without an image")
            )
        counts = np.bincount(label_of, minlength=high + 1 if identities is None else identities)
        if identities is None and counts.size and counts.min() == 0:
            raise UserError(_gap_message(f"label {int(counts.argmin())} has no image"))
        if (label_of[1:] >= label_of[:-1]).all():
            return cls(offsets_of(counts))
        return cls(offsets_of(counts), np.argsort(label_of, kind="stable").astype(np.int64, copy=False))

    @classmethod
    def open(cls, folder: PathLike, *, consecutive: bool = False) -> "IdentityIndex":
        """Map the arrays that `save` wrote.

        Args:
            folder: where they are.
            consecutive: images are numbered identity by identity; there need be no `items.npy`.

        Raises:
            UserError: a file is missing, damaged, of another type, or the two contradict each other.
        """
        where = Path(folder)
        try:
            offsets = open_array(where / _OFFSETS, np.int64)
            items = None if consecutive else open_array(where / _ITEMS, np.int64)
        except FileNotFoundError as error:
            raise UserError(f"{where}: no identity index here ({Path(error.filename).name} is missing)") from None
        index = cls(offsets, items, source=where)
        index._folder = where.absolute()
        return index

    def save(self, folder: PathLike) -> None:
        """Write `offsets.npy` and, if there are items, `items.npy` into an existing folder (whoever caches it makes it atomic)."""
        np.save(Path(folder) / _OFFSETS, self.offsets, allow_pickle=False)
        if not self._consecutive:
            np.save(Path(folder) / _ITEMS, self.items, allow_pickle=False)

    def __len__(self) -> int:
        """Return the number of identities."""
        return len(self.offsets) - 1

    @property
    def images(self) -> int:
        """Number of images."""
        return self._images

    @property
    def consecutive(self) -> bool:
        """Whether images are numbered identity by identity: position = slot."""
        return self._consecutive

    @property
    def items(self) -> Int64:
        """All positions by slot: int64 (images,). Whoever needs a few asks `positions_of_slots`: this may cost 8 bytes per image."""
        if self._items is None:
            self._items = np.arange(self._images, dtype=np.int64)
        if not self._checked:
            for start in range(0, self._images, _BLOCK):
                self._check_range(self._items[start : start + _BLOCK])
            self._checked = True
        return self._items

    def positions_of_slots(self, slots: Int64) -> Int64:
        """Return `items[slots]`: int64, shaped as `slots`, each of 0 ... images - 1.

        Raises:
            UserError: what was opened is damaged there.
        """
        if self._consecutive:
            return slots
        assert self._items is not None
        positions: Int64 = self._items[slots]
        if not self._checked:
            self._check_range(positions)
        return positions

    def _check_range(self, positions: Int64) -> None:
        if positions.size and (positions.min() < 0 or positions.max() >= self._images):
            raise UserError(
                f"{self._source}: items hold positions {int(positions.min())} ... {int(positions.max())} but there are "
                f"{self._images} images; delete it to have it rebuilt"
            )

    def of(self, label: int) -> Int64:
        """Return the positions of identity `label`: int64 (n,), read-only."""
        first = self.offsets[checked_label(label, len(self))]
        positions = self.positions_of_slots(np.arange(first, self.offsets[label + 1], dtype=np.int64))
        positions.flags.writeable = False
        return positions

    def spans(self, labels: Int64) -> tuple[Int64, Int64]:
        """Return the first slot of each label and how many it has: int64, shaped as `labels`."""
        first: Int64 = self.offsets[labels]
        return first, self.offsets[labels + 1] - first

    def counts(self) -> Int64:
        """Return the number of images of every identity: int64 (identities,)."""
        return np.diff(self.offsets)

    def labels_of_slots(self, slots: npt.ArrayLike) -> Int64:
        """Return the label that owns each slot, i.e. each place in `items`: int64, shaped as `slots`.

        Raises:
            IndexError: a slot outside 0 ... images - 1.
        """
        asked = checked_positions(slots, self._images, "index", "slots")
        return np.searchsorted(self.offsets, asked, side="right") - 1

    def labels(self) -> Int64:
        """Return the label of every position: int64 (images,), a new array."""
        by_slot = np.repeat(np.arange(len(self), dtype=np.int64), self.counts())
        if self._consecutive:
            return by_slot
        labels = np.empty(self._images, np.int64)
        labels[self.items] = by_slot
        return labels

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an opened index as its folder, so that a worker maps the same pages; one in memory as its arrays."""
        if self._folder is not None:
            return _reopen, (self._folder, len(self), self.images, self._consecutive)
        return IdentityIndex, (np.asarray(self.offsets), None if self._consecutive else np.asarray(self._items))

    def __repr__(self) -> str:
        """Return the two counts."""
        return f"IdentityIndex({len(self):,} identities, {self.images:,} images)"


def _gap_message(what: str) -> str:
    return f"{what}: labels must be dense from 0 (np.unique(labels, return_inverse=True)[1] makes them so)"


def _contradiction(offsets: Int64, items: Int64 | None) -> str | None:
    for name, array in (("offsets", offsets), ("items", items)):
        if array is not None and (array.dtype != np.int64 or array.ndim != 1):
            return f"{name} are {array.dtype} of shape {array.shape} instead of a row of int64"
    images = len(items) if items is not None else int(offsets[-1]) if len(offsets) else 0
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != images:
        ends = f"{int(offsets[0])} ... {int(offsets[-1])}" if len(offsets) else "nothing"
        return f"offsets run over {ends} but there are {images} images"
    for start in range(0, len(offsets), _BLOCK):  # no array of their size beside them
        block = offsets[start : start + _BLOCK + 1]
        if (block[1:] < block[:-1]).any():
            return f"offsets fall at identity {start + int((block[1:] < block[:-1]).argmax())}"
    return None


def _reopen(folder: Path, identities: int, images: int, consecutive: bool) -> IdentityIndex:
    index = IdentityIndex.open(folder, consecutive=consecutive)
    if (len(index), index.images) != (identities, images):
        raise UserError(
            f"{folder}: the index changed while a worker started: {identities} identities became {len(index)}"
        )
    return index
