"""The vectors of a gallery: a slot per template, in float32 and once more rounded to int8, in three files of plain rows.

`vectors.float32` (N, D), `vectors.int8` (N, D), `vectors.scales` (N, 2) float32: scale and error. A scan reads the second, one byte per number.
2,568 bytes per slot at 512 numbers. A free slot is all zeros. The files only grow, by 256 slots, and a slot is changed in place: whoever has them
mapped sees what was written.

They are written without help of a database's journal, so who may write when, and what a kill leaves, is `TemplateStore`'s to order.
"""

import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attfc.errors import UserError
from attfc.typing import Array, Float32, Int64

__all__ = ["GROUP", "VECTORS", "Rows", "VectorFiles", "rounded"]

GROUP = 256  # slots by which the files grow
VECTORS = ("vectors.float32", "vectors.int8", "vectors.scales")


class Rows(NamedTuple):
    """What N slots hold.

    Attributes:
        exact_ND: float32, unit length.
        coarse_ND: int8, exact / scale rounded.
        scales_N2: float32, the scale, and an error >= the length of exact - scale * coarse; zeros where the slot is free.
    """

    exact_ND: Array
    coarse_ND: Array
    scales_N2: Array


def rounded(vectors_ND: Float32) -> Rows:
    """Return what slots hold for vectors."""
    scale_N = np.abs(vectors_ND).max(axis=1, initial=0.0) / np.float32(127)
    coarse_ND = np.rint(vectors_ND / np.maximum(scale_N, np.finfo(np.float32).tiny)[:, None])
    error_N = np.linalg.norm(vectors_ND - coarse_ND * scale_N[:, None], axis=1) + np.float32(1e-6) * (scale_N > 0)
    return Rows(vectors_ND.astype("<f4"), coarse_ND.astype(np.int8), np.stack([scale_N, error_N], axis=1).astype("<f4"))


class VectorFiles:
    """The three files; writing needs a turn of `TemplateStore`.

    Args:
        folder: of the gallery.
        size: D, numbers per embedding.
    """

    REMEDY = "restore a whole copy of the folder, or make the gallery again"

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = [folder / name for name in VECTORS], size
        self._types = [np.dtype(("<f4", (size,))), np.dtype(("i1", (size,))), np.dtype(("<f4", (2,)))]
        self._mapped = Rows(*(np.empty(0, kind) for kind in self._types))

    def rows(self, slots: int) -> Rows:
        """Return the first `slots` slots and those up to the next multiple of GROUP, mapped.

        Raises:
            UserError: a file is shorter.
        """
        count = -(-slots // GROUP) * GROUP
        if len(self._mapped.exact_ND) < count:
            self._mapped = Rows(*map(self._map, self.paths, self._types, [count] * len(VECTORS)))
        return Rows(*(rows[:count] for rows in self._mapped))

    def _map(self, path: Path, kind: np.dtype[Any], count: int) -> Array:
        have, needed = path.stat().st_size if path.is_file() else 0, count * kind.itemsize
        if have < needed:
            raise UserError(
                f"{path} has {have:,} bytes where its gallery needs {needed:,}: "
                f"the folder was copied in part; {self.REMEDY}"
            )
        with path.open("rb") as file:
            # Copy-on-write, and nothing is written: torch warns of memory that it may not write to.
            return np.frombuffer(mmap.mmap(file.fileno(), needed, access=mmap.ACCESS_COPY), kind.base).reshape(
                count, -1
            )

    def exact(self, slots_N: Int64) -> Float32:
        """Return (N, D) float32, a copy of the vectors in slots."""
        return np.asarray(self.rows(int(slots_N.max(initial=-1)) + 1).exact_ND[slots_N], dtype=np.float32)

    def write(self, slots_N: Int64, vectors_ND: Float32) -> None:
        """Write vectors into slots and wait until they are on the disk; zeros erase.

        Raises:
            OSError: disk full.
        """
        count = -(-(int(slots_N.max(initial=-1)) + 1) // GROUP) * GROUP
        for path, kind, rows in zip(self.paths, self._types, rounded(vectors_ND), strict=True):
            with path.open("r+b", buffering=0) as file:
                if os.fstat(file.fileno()).st_size < count * kind.itemsize:
                    os.ftruncate(file.fileno(), count * kind.itemsize)
                for first, last in _runs(slots_N):
                    _write_at(file.fileno(), rows[first:last].tobytes(), int(slots_N[first]) * kind.itemsize)
                os.fsync(file.fileno())


def _runs(slots_N: Int64) -> Iterator[tuple[int, int]]:
    """Yield the ranges of `slots_N` that are neighbours in the files."""
    breaks = np.flatnonzero(np.diff(slots_N) != 1) + 1
    yield from itertools.pairwise([0, *breaks.tolist(), len(slots_N)])


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
