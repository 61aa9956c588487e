"""What stores have in common whose images are files of their own: a folder of identities, a list of paths.

Their names, labels and identity index are made once and kept as memory-mapped arrays (`index_cache`): a copy of the store in
a worker process maps the same pages, so pickling sends the paths alone.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex, checked_label
from attfc.data.index_cache import Tables
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.store import IndexedStore
from attfc.errors import UserError
from attfc.files import read_at
from attfc.typing import Int64, PathLike

__all__ = ["MAX_FILE_BYTES", "ImageFiles", "read_image"]

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Larger files are reported as broken and not read: no face is that large, and one such file could exhaust a worker."""


class ImageFiles(IndexedStore):
    """A Store over files: `source` is the folder or list, relative paths start at `root`."""

    _tables: Tables

    def __init__(self, source: PathLike, root: PathLike) -> None:
        self.path = Path(os.path.abspath(source))
        self.root = Path(os.path.abspath(root))
        self._prefix = os.path.join(os.fsencode(self.root), b"")

    @property
    def identities(self) -> IdentityIndex:
        """The identity index."""
        return self._tables.index

    @property
    def cache(self) -> Path | None:
        """Folder of the cached index; None if it is held in memory."""
        return self._tables.folder

    def identity_name(self, label: int) -> str:
        """Return the identity's name, or its number in the source, in printable form."""
        known = self._tables.identities
        checked_label(label, len(known))
        return printable(known[label]) if isinstance(known, NameTable) else str(int(known[label]))

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities as they are in the source."""
        return NameTable.of(self._tables.identities, labels)

    def image_path(self, position: int) -> bytes:
        """Return an image's path, as bytes: the only form that every name has; the store's own."""
        raise NotImplementedError

    def byte_lengths(self, positions: Int64) -> Int64:
        """Return the size of the images' files, -1 for one that is gone."""
        return np.array([_size(self.image_path(position)) for position in positions.tolist()], np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths alone where the index is on disk: a worker maps the same pages."""
        tables = self._tables
        kept = tables if tables.folder is None else (type(tables), tables.folder, len(self))
        return {**self.__dict__, "_tables": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reopen what `__getstate__` left."""
        self.__dict__.update(state)
        if isinstance(kept := state["_tables"], tuple):
            tables, folder, images = kept
            self._tables = tables.open(folder)
            if len(self) != images:
                raise UserError(f"{folder}: the index changed while a worker started; start again")


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def read_image(descriptor: int) -> bytes:
    """Return what an open file holds, and close it.

    Raises:
        BrokenImageError: more than 256 MiB.
    """
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_FILE_BYTES:
            raise BrokenImageError(f"file of {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        return read_at(descriptor, size, 0)
    finally:
        os.close(descriptor)
