"""Verification sets: lfw.bin, cfp_fp.bin, agedb_30.bin: encoded images, two by two, and whether each two show one person.

The format of InsightFace: a pickle of (images, same) with 2 P images and P booleans; pair i is images 2i and 2i + 1. Writers differ:
Python 2 or 3, protocols 0 to 5, an image as bytes or as the uint8 array that OpenCV's imencode returns, lists or arrays of
either. All are read, by `restricted_pickle`, never by Python's unpickler: such files are passed from hand to hand.

Cost: the file's bytes in memory once (protocols 0 to 2 of Python 3: twice while reading); nothing is decoded before it is asked for.
"""

import os
import pickle
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.images import BrokenImageError, decode_image
from attfc.data.index import checked_positions
from attfc.data.people.name_table import printable
from attfc.data.stores.plain_pickle import PlainArray, PlainUnpickler
from attfc.data.stores.restricted_pickle import describe
from attfc.data.stores.store import EncodedStore, Store
from attfc.errors import UserError
from attfc.files import replacing
from attfc.typing import Bools, PathLike, Progress

__all__ = ["VerificationSet", "make_verification_set", "read_verification_set", "write_verification_set"]

MAX_FILE_BYTES = 4 * 1024**3
"""Larger files are refused: the largest public set has 0.2 GiB."""

_PROTOCOL = 4  # compact, and read by every Python since 3.4; arcface_torch's pickle.load(f, encoding="bytes") takes it


@dataclass(frozen=True, eq=False)
class VerificationSet(EncodedStore):
    """2 P encoded images and P times same or not; gives images as a store does, so `embed_store` takes it.

    Attributes:
        name: "lfw" for lfw.bin.
        encoded: 2 P images as they were written (JPEG, PNG ...); pair i is images 2i and 2i + 1.
        same: (P,) bool, true where both images of a pair show one person.
        path: the file; None if there is none.
    """

    name: str
    encoded: list[bytes]
    same: Bools
    path: Path | None = None

    def __len__(self) -> int:
        """Return the number of images, twice that of pairs."""
        return len(self.encoded)

    def where(self, position: int) -> str:
        """Return which image this is, for messages."""
        return f"image {position} (pair {position // 2}, {'second' if position % 2 else 'first'})"

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return the encoded images. Raises IndexError: a position outside the set."""
        return [self.encoded[position] for position in checked_positions(positions, len(self), "set").tolist()]

    def __repr__(self) -> str:
        """Return name and counts, not the images."""
        return f"VerificationSet({self.name!r}, {len(self.same):,} pairs, {int(self.same.sum()):,} of one person)"


def read_verification_set(path: PathLike, *, max_bytes: int = MAX_FILE_BYTES) -> VerificationSet:
    """Read a `.bin` file. Nothing in it is executed, and no image is decoded.

    Args:
        path: the file.
        max_bytes: refuse larger files.

    Raises:
        UserError: no such file, not a pickle, cut short or with something after its end. A pickle that asks for anything but
            lists, bytes, numbers and arrays. Not (images, same), counts that do not fit, or no pairs.
    """
    shown = printable(path)
    content = read_plain_pickle(path, max_bytes=max_bytes)
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise UserError(f"{shown}: holds {describe(content)}: a verification set is a tuple (images, same or not)")
    encoded = [_encoded(shown, number, image) for number, image in enumerate(_elements(shown, "images", content[0]))]
    same = _same(shown, content[1])
    _check_counts(shown, len(encoded), len(same))
    return VerificationSet(_name(path), encoded, same, Path(path))


def read_plain_pickle(path: PathLike, *, max_bytes: int = MAX_FILE_BYTES) -> object:
    """Return what a pickle holds: lists, tuples, bytes, str, int, bool, None and `PlainArray`, nested in any way.

    Python 2's `str` comes as bytes, and so does `bytearray`. Lists may hold themselves. Protocols 0 to 5.

    Args:
        path: the file.
        max_bytes: refuse larger files.

    Raises:
        UserError: no such file, not a pickle, cut short, something after its end, a name or an instruction that plain data has no
            use for; with the byte offset.
    """
    shown = printable(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # before opening: a pipe would wait for its writer
            raise UserError(
                f"{shown}: is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}: pass a .bin file"
            )
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{shown}: {size:,} bytes, more than the limit of {max_bytes:,}: raise max_bytes")
            start = file.read(64)
            file.seek(0)
            if not _START.match(start):
                raise UserError(f"{shown}: not a pickle ({_kind(start)}): {_FIX}")
            return PlainUnpickler(file, shown, size).load()
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file{_hint(Path(path))}") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror or error})") from None


_START = re.compile(rb"\x80|[(\]]|c[A-Za-z_][\w.]*\n")  # protocols 2 to 5; in 0 and 1 a tuple, a list, or a name
_FIX = "pass a verification set, a pickle of (encoded images, same or not)"
_STARTS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive, as torch.save and np.savez write; unpack it first",
    b"\x93NUMPY": "a NumPy array file",
    b"\x0a\x23\xd7\xce": "MXNet RecordIO, the format of a training set",
    b"\x89HDF": "an HDF5 file",
}


def _kind(start: bytes) -> str:
    if not start:
        return "an empty file"
    return next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), f"it starts with {start[:8]!r}")


def _hint(path: Path) -> str:
    try:
        others = sorted(other.name for other in path.parent.iterdir() if other.suffix == ".bin")
    except OSError:
        return ""
    shown = ", ".join(printable(name) for name in others[:8])
    return f"; {printable(path.parent)} holds {shown}" if others else ""


def write_verification_set(path: PathLike, encoded: Sequence[bytes], same: npt.ArrayLike) -> None:
    """Write a `.bin` file that this library and InsightFace's scripts read (Python 3.4 or newer).

    The file appears whole or not at all; one of that name is replaced. An image that occurs several times as the same
    object is written once.

    Args:
        path: the file, by custom `NAME.bin`.
        encoded: 2 P images as JPEG or PNG ...; pair i is images 2i and 2i + 1.
        same: (P,) booleans, or whole numbers 0 and 1.

    Raises:
        UserError: counts that do not fit, no pairs, an image that is not bytes, or the file cannot be written.
    """
    shown = printable(path)
    target = Path(os.path.abspath(path))
    for number, image in enumerate(encoded):
        if not isinstance(image, bytes):
            raise UserError(
                f"{shown}: image {number} is {type(image).__name__}: bytes are needed, as a JPEG file has them"
            )
    flags = np.asarray(same)
    if flags.ndim != 1 or (flags.dtype != np.bool_ and not (flags.dtype.kind in "iu" and np.isin(flags, (0, 1)).all())):
        raise UserError(f"{shown}: same is {flags.dtype} of shape {flags.shape}: a row of booleans is needed")
    _check_counts(shown, len(encoded), len(flags))
    try:
        with replacing(target) as file:
            pickle.dump((list(encoded), flags.astype(np.bool_).tolist()), file, protocol=_PROTOCOL)
    except OSError as error:
        raise UserError(f"{shown}: cannot be written ({error.strerror or error})") from None


def make_verification_set(
    store: Store,
    positions: npt.ArrayLike,
    same: npt.ArrayLike,
    path: PathLike,
    progress: Progress | None = None,
) -> VerificationSet:
    """Write pairs of a store's images as a `.bin` file; the bytes of the images stay as they are.

    Every image is read and decoded once, however many pairs it is in, and is held in memory.

    Args:
        store: where the images are.
        positions: (P, 2) integers, the two images of each pair.
        same: (P,) booleans.
        path: the file to write.
        progress: called as (images done, images).

    Returns:
        What was written.

    Raises:
        UserError: positions outside the store, counts that do not fit, an image that is broken, or the file cannot be written.
    """
    shown = printable(path)
    pairs = np.asarray(positions)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise UserError(
            f"{shown}: positions are {pairs.dtype} of shape {pairs.shape}: whole numbers (pairs, 2) are needed"
        )
    _check_counts(shown, pairs.size, len(np.asarray(same)))
    if pairs.min() < 0 or pairs.max() >= len(store):
        raise UserError(
            f"{shown}: positions {pairs.min()} ... {pairs.max()}, but {store.name} has images 0 ... {len(store) - 1}: "
            "use the store that the pairs were made for"
        )
    unique, places = np.unique(pairs.ravel(), return_inverse=True)
    distinct: list[bytes] = []
    for position in unique.tolist():
        distinct.append(_sound(store, position))
        if progress is not None and (len(distinct) % 64 == 0 or len(distinct) == len(unique)):
            progress(len(distinct), len(unique))
    encoded = [distinct[place] for place in places.tolist()]
    write_verification_set(path, encoded, same)
    return VerificationSet(_name(path), encoded, np.asarray(same).astype(np.bool_), Path(path))


def _sound(store: Store, position: int) -> bytes:
    try:
        encoded, _ = store.read(position)
        decode_image(encoded)
    except (OSError, BrokenImageError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"{store.name}: {store.where(position)}: {reason}: a verification set must be whole; repair the image or leave "
            "its pairs out"
        ) from None
    return encoded


def _name(path: PathLike) -> str:
    return printable(os.path.basename(path)).removesuffix(".bin")


def _check_counts(shown: str, images: int, pairs: int) -> None:
    if images != 2 * pairs:
        raise UserError(
            f"{shown}: {images:,} images for {pairs:,} pairs, which need {2 * pairs:,} (pair i is images 2i and 2i + 1)"
        )
    if pairs == 0:
        raise UserError(f"{shown}: holds no pairs: at least one is needed")


def _elements(shown: str, what: str, value: object) -> Sequence[object]:
    """Return a list's or an object array's elements."""
    if isinstance(value, PlainArray) and value.dtype == "O" and len(value.shape) == 1 and value.values is not None:
        return value.values
    if isinstance(value, list | tuple):
        return value
    raise UserError(f"{shown}: {what} are {describe(value)}: a list or a row of objects is needed")


def _encoded(shown: str, number: int, image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, PlainArray) and image.dtype == "|u1" and isinstance(image.values, bytes):
        if max(image.shape, default=0) == len(image.values):  # a row, or a column, as older versions of OpenCV have it
            return image.values
        if not image.values:
            return b""
        raise UserError(
            f"{shown}: image {number} is {describe(image)}: pixels, it seems; the encoded bytes of a JPEG or PNG are needed"
        )
    raise UserError(f"{shown}: image {number} is {describe(image)}: bytes or a row of uint8 are needed")


def _same(shown: str, value: object) -> Bools:
    if isinstance(value, PlainArray) and isinstance(value.values, bytes) and len(value.shape) == 1:
        flags = np.frombuffer(
            value.values, value.dtype.replace("b", "u")
        )  # a byte of 2 would be a boolean of its own kind
        wrong = np.flatnonzero((flags != 0) & (flags != 1))
        if wrong.size:
            raise UserError(
                f"{shown}: same-or-not of pair {wrong[0]} is {flags[wrong[0]]}: true or false (1 or 0) is needed"
            )
        return flags.astype(np.bool_)
    elements = _elements(shown, "same-or-not", value)
    for number, element in enumerate(elements):
        if not isinstance(element, int) or element not in (0, 1):
            found = str(element) if isinstance(element, int) else describe(element)
            raise UserError(f"{shown}: same-or-not of pair {number} is {found}: true or false (1 or 0) is needed")
    return np.array(elements, dtype=np.bool_)
