"""Read the arrays of a `.npz` file that may come from elsewhere: bounded before anything is allocated, and no pickle.

NumPy's own reader allocates what a member's header announces, and a compressed megabyte can stand for a gigabyte. Here all members
together hold no more than the caller allows, and each header is compared with the length of its member first.
"""

import math
import zipfile
from pathlib import Path

import numpy as np

from attfc.errors import one_line
from attfc.typing import Array

__all__ = ["read_npz"]

_MOST_MEMBERS = 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(file: Path, most_bytes: int | None = None) -> dict[str, Array]:
    """Return all arrays by name.

    Args:
        file: the `.npz`.
        most_bytes: of all members together, unpacked; None: they must not be compressed, so the size of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else, in one line.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    try:
        return _read(file, most_bytes)
    except FileNotFoundError:
        raise
    except Exception as error:  # zlib, zipfile, struct and numpy each have their own, and numpy's include tokenize's
        raise ValueError(one_line(error)[:200]) from None


def _read(file: Path, most_bytes: int | None) -> dict[str, Array]:
    size = file.stat().st_size
    found: dict[str, Array] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        allowed = (zipfile.ZIP_STORED,) if most_bytes is None else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        for member in members:
            if member.compress_type not in allowed:
                raise ValueError(f"{member.filename[:60]!r} is compressed in a way that attfc does not write")
        if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > (most_bytes or size):
            raise ValueError(f"its {len(members):,} members claim more than a file of {size:,} bytes can hold")
        for member in members:
            with archive.open(member) as stream:
                shape, _, kind = _HEADERS[np.lib.format.read_magic(stream)](stream)
                if kind.hasobject or math.prod(shape) * max(kind.itemsize, 1) > member.file_size:
                    raise ValueError(f"{member.filename[:60]!r} announces more than it holds")
            with archive.open(member) as stream:
                name = member.filename.removesuffix(".npy")
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found
