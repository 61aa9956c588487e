"""Packed store: the encoded images of each identity one after the other in a few large files, with a mapped index.

A folder with `packed.json`, shards `shard-00000.bin ...` and index arrays (`docs/formats.md` has the bytes). Positions are in
the order of the bytes, identity by identity, so an identity's query and keys lie close together and come in one read; a folder
of files costs an open, a read and a close for each. Cost: 12 bytes per image and some 16 bytes and a name per identity, all mapped
from `.npy` files whose pages every process shares; opening reads what is kept per identity and nothing that is kept per image.

Nothing is believed unchecked. Opening compares every file's size and the checksums of the arrays kept per identity, because a
wrong one would silently move labels. What is kept per image is checked when the image is read: bounds, then the CRC-32 of its
bytes, so a wrong place, a damaged byte and a shard of another set all end as a broken image. Shards are read with `pread`, never
mapped: a file cut short under a mapping kills the process.
"""

import contextlib
import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex, checked_label, checked_positions, offsets_of
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.data.stores.packed.packed_format import (
    ABOUT,
    CHECKSUMS,
    ENDS,
    HEADER_BYTES,
    IMAGE_NAMES,
    MAX_NAME_BYTES,
    OFFSETS,
    PER_IDENTITY,
    RESTORE,
    About,
    check_size,
    file_crc32,
    npy_header,
    read_about,
    shard_name,
)
from attfc.data.stores.store import IndexedStore
from attfc.errors import UserError
from attfc.files import read_at
from attfc.typing import Array, Int64, PathLike

__all__ = ["PackedStore"]

_OPEN_SHARDS = 256
_GAP = 64 * 1024  # cold reads from a solid-state disk: 11,300 images/s, 9,000 one by one; from memory no difference
_SPAN = 1024 * 1024


class PackedStore(IndexedStore):
    """A Store over a packed folder.

    Args:
        path: the folder that holds `packed.json`.

    Raises:
        UserError: no such folder, not a packed one, an unfinished conversion, a version of the future, a file that is missing or
            damaged or of another size than `packed.json` says.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(os.path.abspath(path))
        self._open(read_about(self.path), trusted=False)

    def _open(self, about: About, *, trusted: bool) -> None:
        """Map the arrays; `trusted`: the process that pickled this store has compared the checksums."""
        folder = self.path
        self.about = about
        for number, size in enumerate(about.shards):
            check_size(folder / shard_name(number), size)
        for name in PER_IDENTITY if not trusted else ():
            if (crc := file_crc32(folder / name)) != about.crc32[name]:
                raise UserError(
                    f"{folder / name}: damaged (CRC-32 {crc:08x} instead of {about.crc32[name]:08x}): {RESTORE}"
                )
        offsets = _map_array(folder / OFFSETS, np.int64, about.identities + 1)
        self._ends = _map_array(folder / ENDS, np.int64, about.images + 1)
        self._checksums = _map_array(folder / CHECKSUMS, np.uint32, about.images)
        self._identity_names = _map_names(folder, "identity", about.identities)
        self._image_names = _map_names(folder, "image", about.images) if about.image_names else None
        if not trusted and not (offsets[1:] > offsets[:-1]).all():
            at = int((offsets[1:] <= offsets[:-1]).argmax())
            raise UserError(f"{folder / OFFSETS}: identity {at} has no image: {RESTORE}")
        if offsets[-1] != about.images:
            raise UserError(
                f"{folder / OFFSETS}: offsets run over 0 ... {offsets[-1]} but {ABOUT} says {about.images} images: {RESTORE}"
            )
        self._index = IdentityIndex(offsets, source=folder / OFFSETS, folder=folder)
        self._starts: list[int] = offsets_of(about.shards).tolist()
        if (self._ends[0], self._ends[-1]) != (0, self._starts[-1]):
            raise UserError(
                f"{folder / ENDS}: runs over bytes {self._ends[0]} ... {self._ends[-1]} but the shards hold "
                f"{self._starts[-1]}: {RESTORE}"
            )
        self._files: list[_ShardFile | None] = [None] * min(len(about.shards), _OPEN_SHARDS)

    @property
    def identities(self) -> IdentityIndex:
        """The identity index; position = slot."""
        return self._index

    @property
    def ignored(self) -> dict[str, int]:
        """What the conversion left out: images, identities."""
        return dict(self.about.left_out)

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return each image's bytes, compared with their checksum, or the error met; neighbours on disk come in one read.

        Images that begin at most 64 KiB after the end of the one before are read together, up to 1 MiB at once. The error is an
        OSError (the shard is gone or cannot be read) or a BrokenImageError (the checksum differs, or the index leads out of the shard).

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        asked = checked_positions(positions, len(self))
        order = self._ends[asked].argsort(kind="stable")
        ordered = asked[order]
        columns = order, ordered, self._ends[ordered], self._ends[ordered + 1]
        found: list[bytes | Exception] = [b""] * len(asked)
        run = _Run(-1, 0, 0)
        runs: list[_Run] = []
        for row, position, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            try:
                shard = self._shard_of(position, begin, end)
            except BrokenImageError as error:
                found[row] = error
                continue
            if shard != run.shard or begin > run.end + _GAP or end > run.begin + _SPAN:
                run = _Run(shard, begin, end)
                runs.append(run)
            run.images.append((row, position, begin, end))
            run.end = max(run.end, end)
        for run in runs:
            self._read_run(run, found)
        return found

    def _read_run(self, run: "_Run", found: list[bytes | Exception]) -> None:
        """Read the bytes of a run and cut its images out of them."""
        try:
            region = self._pread(run)
        except (OSError, BrokenImageError) as error:
            for row, position, *_ in run.images:  # one bad sector must not break the neighbours
                found[row] = self.read_many([position])[0] if len(run.images) > 1 else error
            return
        for row, position, begin, end in run.images:
            encoded = found[row] = region[begin - run.begin : end - run.begin]
            if zlib.crc32(encoded) != self._checksums[position]:
                at = f"{len(encoded)} bytes from byte {begin - self._starts[run.shard]}"
                found[row] = BrokenImageError(f"checksum of image {position} differs ({shard_name(run.shard)}, {at})")

    def _pread(self, run: "_Run") -> bytes:
        slot = run.shard % len(self._files)
        file = self._files[slot]
        if file is None or file.number != run.shard:
            # Without a lock: a fork would copy it locked. Who loses the race has opened a file too many.
            file = self._files[slot] = _ShardFile(self.path / shard_name(run.shard), run.shard)
        at, wanted = run.begin - self._starts[run.shard], run.end - run.begin
        region = read_at(file.descriptor, wanted, at)
        if len(region) < wanted:
            raise BrokenImageError(
                f"{shard_name(run.shard)} is cut short: it ends before byte {at + wanted} of the image at byte {at}"
            )
        return region

    def _shard_of(self, position: int, begin: int, end: int) -> int:
        """Return the shard that holds bytes begin ... end, counted over all shards, or say why none does."""
        total = self._starts[-1]
        if not 0 <= begin <= end <= total:
            raise BrokenImageError(f"{ENDS} places image {position} at bytes {begin} ... {end} of {total}")
        if end - begin > MAX_FILE_BYTES:
            raise BrokenImageError(f"image of {end - begin:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        shard = min(bisect_right(self._starts, begin), len(self._starts) - 1) - 1
        if end > self._starts[shard + 1]:
            within = begin - self._starts[shard]
            raise BrokenImageError(
                f"{ENDS} places image {position} over the end of {shard_name(shard)} (byte {within})"
            )
        return shard

    def byte_lengths(self, positions: Int64) -> Int64:
        """Return the byte length of encoded images."""
        return np.asarray(self._ends[positions + 1] - self._ends[positions], np.int64)

    def image_name(self, position: int) -> bytes:
        """Return the file name that the image had in the source; empty if it had none or names were not kept.

        Raises:
            UserError: the table of names is damaged here.
        """
        checked_positions(position, len(self))
        return b"" if self._image_names is None else self._entry(self._image_names, position, IMAGE_NAMES[0])

    def identity_name_bytes(self, label: int) -> bytes:
        """Return the identity's name as the source had it: file names need not be UTF-8."""
        return self._entry(self._identity_names, checked_label(label, self.about.identities), PER_IDENTITY[1])

    def _entry(self, table: NameTable, number: int, file: str) -> bytes:
        begin, end = int(table.offsets[number]), int(table.offsets[number + 1])
        if not 0 <= begin <= end <= len(table.data) or end - begin > MAX_NAME_BYTES:
            raise UserError(f"{self.path / file}: name {number} lies at bytes {begin} ... {end}: {RESTORE}")
        return table[number]

    def where(self, position: int) -> str:
        """Return "identity/file" in printable form; "identity/image 3" or "identity 7/..." where there is no name or it is damaged."""
        label = int(self._index.labels_of_slots(position))
        image, identity = f"image {position - int(self._index.offsets[label])}", f"identity {label}"
        with contextlib.suppress(UserError):  # a message about a broken image must not fail over a name
            image = printable(self.image_name(position)) or image
        with contextlib.suppress(UserError):
            identity = self.identity_name(label)
        return f"{identity}/{image}"

    def identity_name(self, label: int) -> str:
        """Return the identity's name in printable form."""
        return printable(self.identity_name_bytes(label))

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities as the source had them."""
        return self._identity_names.take(labels)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path and which `packed.json` it was: a worker maps the same pages."""
        return {"path": self.path, "digest": self.about.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reopen what `__getstate__` left."""
        self.path = state["path"]
        about = read_about(self.path)
        if about.digest != state["digest"]:
            raise UserError(f"{self.path}: another packed set was put here while a worker started; start again")
        self._open(about, trusted=True)


@dataclass(slots=True)
class _Run:
    """Images that lie close together in a shard: row in the answer, position, first byte and end of each, over all shards."""

    shard: int
    begin: int
    end: int
    images: list[tuple[int, int, int, int]] = field(default_factory=list)


class _ShardFile:
    """A descriptor that closes with its last user: a thread may still read from it when its slot is given away."""

    __slots__ = ("descriptor", "number")

    def __init__(self, path: Path, number: int) -> None:
        self.descriptor = -1
        self.number = number
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _map_array(path: Path, dtype: npt.DTypeLike, count: int) -> Array:
    """Map an array of exactly this type and length, read-only. Its header is compared, not parsed."""
    check_size(path, HEADER_BYTES + count * np.dtype(dtype).itemsize)
    with open(path, "rb") as file:
        if file.read(HEADER_BYTES) != npy_header(dtype, count):
            raise UserError(f"{path}: not an array of {count} {np.dtype(dtype)}: {RESTORE}")
        if count == 0:
            return np.empty(0, dtype)
        mapped = np.memmap(file, dtype, "r", HEADER_BYTES, (count,))
    return mapped.view(np.ndarray)  # the same pages; np.memmap's own indexing is several times slower


def _map_names(folder: Path, kind: str, count: int) -> NameTable:
    """Map the two arrays of names of a kind, of which there are `count`."""
    offsets = _map_array(folder / f"{kind}_name_offsets.npy", np.int64, count + 1)
    data = folder / f"{kind}_names.npy"
    ends = int(offsets[0]), int(offsets[-1])
    if ends[0] != 0 or not 0 <= ends[1] <= 2**62:
        raise UserError(f"{folder / f'{kind}_name_offsets.npy'}: runs over bytes {ends[0]} ... {ends[1]}: {RESTORE}")
    return NameTable(_map_array(data, np.uint8, ends[1]), offsets)
