"""Millions of names in two arrays: one packed byte row and the offsets, memory-mapped from `.npy` files.

Some 20 bytes a name instead of a Python string of 60 in every process. Names are bytes: file names need not be UTF-8.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from attfc.data.index import offsets_of, open_array
from attfc.typing import Int64, PathLike, UInt8

__all__ = ["NameTable", "printable"]


class NameTable:
    """Byte strings by number: names[i] = data[offsets[i] : offsets[i + 1]].

    Args:
        data: uint8, all names one after the other.
        offsets: int64 [names + 1].

    >>> names = NameTable.pack([b"Ann", b"Bo"])
    >>> len(names), names[1]
    (2, b'Bo')
    """

    __slots__ = ("data", "offsets")

    def __init__(self, data: UInt8, offsets: Int64) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def pack(cls, names: Iterable[bytes]) -> "NameTable":
        """Make the table of some names."""
        rows = list(names)
        return cls(np.frombuffer(b"".join(rows), np.uint8), offsets_of([len(row) for row in rows]))

    @classmethod
    def of(cls, known: "NameTable | Int64", labels: Int64) -> "NameTable":
        """Make the table of the names at `labels`, or of the numbers there."""
        return (
            known.take(labels) if isinstance(known, NameTable) else cls.pack(b"%d" % n for n in known[labels].tolist())
        )

    @classmethod
    def open(cls, folder: Path, name: str) -> "NameTable":
        """Map what `save` wrote. Raises UserError (damaged) or FileNotFoundError."""
        return cls(
            open_array(folder / f"{name}_names.npy", np.uint8),
            open_array(folder / f"{name}_name_offsets.npy", np.int64),
        )

    def save(self, folder: Path, name: str) -> None:
        """Write `<name>_names.npy` and `<name>_name_offsets.npy` into an existing folder."""
        np.save(folder / f"{name}_names.npy", self.data, allow_pickle=False)
        np.save(folder / f"{name}_name_offsets.npy", self.offsets, allow_pickle=False)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        """Return one name, 0 <= number < len."""
        return self.data[self.offsets[number] : self.offsets[number + 1]].tobytes()

    def take(self, labels: Int64) -> "NameTable":
        """Return the names at `labels`, in their order: no copy of neighbours."""
        starts = self.offsets[labels]
        lengths = self.offsets[labels + 1] - starts
        offsets = offsets_of(lengths)
        if len(labels) and (starts[1:] == starts[:-1] + lengths[:-1]).all():  # the usual case
            return NameTable(self.data[int(starts[0]) : int(starts[0]) + int(offsets[-1])], offsets)
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]), dtype=np.int64)
        return NameTable(self.data[places], offsets)

    def sound(self, *, forbidden: bytes = b"/\0") -> bool:
        """Whether offsets and data fit, no name is empty, and none holds a forbidden byte (by default: leads out of its folder)."""
        offsets = self.offsets
        fit = (
            len(offsets) > 0
            and int(offsets[0]) == 0
            and int(offsets[-1]) == len(self.data)
            and bool((offsets[1:] > offsets[:-1]).all())
        )
        return fit and not any(bool((self.data == byte).any()) for byte in forbidden)


def printable(name: bytes | PathLike) -> str:
    """Return a file name for messages: bytes that are not UTF-8 and control characters are written as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
