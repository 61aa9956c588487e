"""The vectors of a gallery, `vectors.bin`: a slot per template, each vector in float32 and once more in int8, rounded.

Blocks of 4,096 slots: scales, errors, int8 rows, float32 rows, each together, so that a scan reads one byte per number. 2,568 bytes per slot
at 512 numbers; slots that were never written take no room where files may have holes. A free slot is all zeros. The file only grows, and a slot
is changed in place: whoever has it mapped sees what was written.

It is written without help of a database's journal, so who may write when, and what a kill leaves, is `TemplateStore`'s to order.
"""

import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attfc.errors import UserError
from attfc.typing import Float32, Int64

__all__ = ["BLOCK", "VectorFile"]

BLOCK = 4096  # slots


def block_type(size: int) -> np.dtype[Any]:
    """Return the layout of a block of embeddings of that size: what stands where is the type's to know."""
    return np.dtype(
        [
            ("scale", "<f4", (BLOCK,)),
            ("error", "<f4", (BLOCK,)),
            ("coarse", "i1", (BLOCK, size)),
            ("exact", "<f4", (BLOCK, size)),
        ]
    )


def rounded(vectors_ND: Float32) -> dict[str, np.ndarray[Any, Any]]:
    """Return the fields of slots: `exact`, `coarse` = exact / scale rounded to int8, and error >= |exact - scale * coarse|."""
    scale_N = np.abs(vectors_ND).max(axis=1, initial=0.0) / np.float32(127)
    coarse_ND = np.rint(vectors_ND / np.maximum(scale_N, np.finfo(np.float32).tiny)[:, None])
    error_N = np.linalg.norm(vectors_ND - coarse_ND * scale_N[:, None], axis=1) + np.float32(1e-6) * (scale_N > 0)
    return {
        "scale": scale_N.astype("<f4"),
        "error": error_N.astype("<f4"),
        "coarse": coarse_ND.astype(np.int8),
        "exact": vectors_ND.astype("<f4"),
    }


class VectorFile:
    """The file; writing needs a turn of `TemplateStore`.

    Args:
        path: of the file.
        size: D, numbers per embedding.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.type = path, size, block_type(size)
        self._blocks = np.empty(0, self.type)

    def blocks(self, slots: int) -> np.ndarray[Any, Any]:
        """Return the blocks that hold the first `slots` slots, mapped: fields `scale`, `error` (BLOCK,), `coarse`, `exact` (BLOCK, D).

        Raises:
            UserError: the file is shorter.
        """
        count = -(-slots // BLOCK)
        if len(self._blocks) < count:
            have = self.path.stat().st_size if self.path.is_file() else 0
            if have < count * self.type.itemsize:
                raise UserError(
                    f"{self.path} has {have:,} bytes where its gallery needs {count * self.type.itemsize:,}: "
                    "the folder was copied in part; copy all of it, or make the gallery anew"
                )
            with self.path.open("rb") as file:
                # Copy-on-write, and nothing is written: torch warns of memory that it may not write to.
                mapped = mmap.mmap(file.fileno(), count * self.type.itemsize, access=mmap.ACCESS_COPY)
            self._blocks = np.frombuffer(mapped, self.type)
        return self._blocks[:count]

    def exact(self, slots_N: Int64) -> Float32:
        """Return (N, D) float32, a copy of the vectors in slots."""
        blocks = self.blocks(int(slots_N.max(initial=-1)) + 1)
        return np.ascontiguousarray(blocks["exact"][slots_N // BLOCK, slots_N % BLOCK], dtype=np.float32)

    def write(self, slots_N: Int64, vectors_ND: Float32) -> None:
        """Write vectors into slots and wait until they are on the disk; zeros erase.

        Raises:
            OSError: disk full.
        """
        with self.path.open("r+b", buffering=0) as file:
            needed = (int(slots_N.max(initial=-1)) // BLOCK + 1) * self.type.itemsize
            if os.fstat(file.fileno()).st_size < needed:
                os.ftruncate(file.fileno(), needed)
            for first, last in _runs(slots_N):
                block, row = divmod(int(slots_N[first]), BLOCK)
                for name, values in rounded(vectors_ND[first:last]).items():
                    field = self.type.fields[name][1] + row * values[0].nbytes  # type: ignore[index]
                    _write_at(file.fileno(), values.tobytes(), block * self.type.itemsize + field)
            os.fsync(file.fileno())


def _runs(slots_N: Int64) -> Iterator[tuple[int, int]]:
    """Yield the ranges of `slots_N` that are neighbours in one block."""
    new_N = np.append(True, (np.diff(slots_N) != 1) | (slots_N[1:] % BLOCK == 0))
    starts = np.append(np.flatnonzero(new_N[: len(slots_N)]), len(slots_N)).tolist()
    yield from itertools.pairwise(starts)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
