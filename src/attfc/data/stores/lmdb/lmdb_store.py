"""LMDB sets as a store: a file `NAME.lmdb`, or a folder with `data.mdb`, of keys 0, 1, 2 ... and values (encoded image, label).

Opening lists the keys, reads each value once in the order of the file and keeps where its image lies: 20 bytes per image, mapped, found again
like the index of RecordIO. From then on an image is one `pread`, without msgpack or pickle. Keys that begin with two underscores tell counts.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex, checked_positions, offsets_of
from attfc.data.index_cache import IndexCache
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.data.stores.lmdb.lmdb_file import LmdbFile
from attfc.data.stores.lmdb.lmdb_values import image_and_label, plain_value
from attfc.data.stores.rec.record_file import BadRecordError
from attfc.data.stores.rec.record_index import IGNORED, RecordIndex
from attfc.data.stores.rec.records import RecordStore, digest_of
from attfc.errors import UserError
from attfc.typing import Int64, PathLike, Progress

__all__ = ["LmdbStore"]

_FORMAT = "attfc lmdb index 1"
_DATA = "data.mdb"


class LmdbStore(RecordStore):
    """A Store over an LMDB file.

    Args:
        path: the file, or the folder that holds `data.mdb`. Nothing is written there, no lock either: let no other program write meanwhile.
        cache: folder for the index; None: `attfc` in the user's cache folder; where nothing can be written, memory.
        progress: called as (images done, images) while the values are read; not called when the cached index is used.

    Raises:
        UserError: no LMDB file, a damaged one, or values that are not (encoded image, label).
    """

    length_slack = 0
    file_kind = LmdbFile
    _file: LmdbFile

    def __init__(
        self,
        path: PathLike,
        *,
        cache: PathLike | None = None,
        progress: Progress | None = None,
    ) -> None:
        found = Path(os.path.abspath(path))
        found = found / _DATA if found.is_dir() else found
        places = IndexCache(found, "lmdb", digest_of([found], _FORMAT), cache=cache)
        self._open(found, places, lambda: _index(self._file, progress))

    @property
    def _names_and_note(self) -> tuple[NameTable | None, str | None]:
        return None, None

    def byte_lengths(self, positions: Int64) -> Int64:
        """Return the byte length of encoded images."""
        return np.asarray(self._index.spans[positions], np.int64)

    def _image(self, position: int, label: int) -> bytes:
        try:
            return self._file.bytes_at(int(self._index.offsets[position]), int(self._index.spans[position]))
        except BadRecordError as error:
            raise BrokenImageError(str(error)) from None

    def where(self, position: int) -> str:
        """Return "faces.lmdb key KEY"."""
        checked_positions(position, len(self))
        file = self.path.parent if self.path.name == _DATA else self.path
        return f"{printable(file.name)} key {self._index.key(position)}"


def _index(file: LmdbFile, progress: Progress | None) -> RecordIndex:
    rows, counted = [], None
    for key, begin, length in file.values():
        if length > MAX_FILE_BYTES:
            raise UserError(f"{_shown(file, key)}: {length:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        if key == b"__len__":
            with contextlib.suppress(UserError):  # told beside the images, and not needed
                counted = plain_value(file.bytes_at(begin, length), "")
        elif not key.startswith(b"__"):
            if not key.isdigit() or len(key) > 18:
                raise UserError(f"{_shown(file, key)}: keys of images are whole numbers, 0, 1, 2 ...")
            rows.append((int(key), begin, length))
    if not rows:
        raise UserError(f"{file.path}: no images: keys 0, 1, 2 ... with (encoded image, label) are expected")
    keys_N, begins_N, lengths_N = np.array(rows, np.int64).T
    labels_N = np.empty_like(keys_N)
    first = b""
    for done, row in enumerate(np.argsort(begins_N, kind="stable").tolist(), 1):
        value = file.bytes_at(int(begins_N[row]), int(lengths_N[row]))
        at, length, labels_N[row] = image_and_label(value, _shown(file, b"%d" % keys_N[row]))
        begins_N[row], lengths_N[row], first = begins_N[row] + at, length, first or value[:1]
        if progress is not None and (done % 4096 == 0 or done == len(rows)):
            progress(done, len(rows))
    order = np.lexsort((keys_N, labels_N))
    numbers, counts = np.unique(labels_N, return_counts=True)
    differs = isinstance(counted, int) and counted != len(rows)
    return RecordIndex(
        IdentityIndex(offsets_of(counts)),
        begins_N[order],
        lengths_N[order].astype(np.uint32),
        numbers,
        "lmdb, pickle" if first == b"\x80" else "lmdb, msgpack",
        keys_N[order],
        compare_labels=False,
        ignored=dict.fromkeys(IGNORED, 0),
        notes=[f"__len__ says {counted:,} images, the file holds {len(rows):,}"] if differs else [],
        rec_bytes=file.size,
        mtime_ns=file.mtime_ns,
    )


def _shown(file: LmdbFile, key: bytes) -> str:
    return f"{file.path} key {printable(key[:40])}"
