"""Image folder store: `root/<identity>/<image>.{jpg,jpeg,png,webp,bmp}`.

Identities are the folders directly under the root, images the files directly in them, both in the order of their bytes (the
same on every machine and locale); a folder without images is no identity. Ignored and counted in `ignored`: names that begin
with a dot, other extensions, deeper folders, files beside the identity folders; pictures of other formats are named in `notes`.
Names need not be UTF-8. Links are read through, wherever they lead; who passes images on asks `leads_out` first.

The names and the identity index are scanned once and kept as memory-mapped arrays, one packed byte row for all names: some 20
bytes an image instead of a Python string of 60. They are cached under a digest of every identity folder's name, modification
time and size, so opening costs one `stat` a folder and a changed folder finds no cache and is scanned again. Overwriting a
file in place changes nothing that is indexed. Folders modified within 2 s of the scan may change once more in the same tick of
their clock: their entries are counted again at the next opening.
"""

import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex, open_array
from attfc.data.index_cache import IndexCache
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.store import EncodedStore
from attfc.errors import UserError

__all__ = ["EXTENSIONS", "FolderStore"]

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".webp", b".bmp")
# Read, they would move the positions and labels of sets that have them beside their images: they are named instead.
_JPEG_BY_OTHER_NAMES = (".jfif", ".jpe", ".jif")
_UNREAD = (
    *_JPEG_BY_OTHER_NAMES,
    *[
        ".avif",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jp2",
        ".jxl",
        ".pbm",
        ".pgm",
        ".pnm",
        ".ppm",
        ".raw",
        ".tga",
        ".tif",
        ".tiff",
    ],
)
MAX_FILE_BYTES = 256 * 1024 * 1024
"""Larger files are reported as broken and not read: no face is that large, and one such file could exhaust a worker."""

Progress = Callable[[int, int], None]

_FORMAT = b"attfc folder index 2"
_RACY_NS = 2_000_000_000
_IGNORED = ("hidden", "other_files", "deeper_folders", "empty_folders", "files_beside_folders")


class FolderStore(EncodedStore):
    """A Store over a folder of identity folders.

    Args:
        root: the folder.
        cache: folder for the index, e.g. a run's; None: `attfc` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache);
            where nothing can be written, memory.
        progress: called as (folders done, folders) while scanning; not called when the cached index is used.

    Raises:
        UserError: no such folder, not a folder, a folder that cannot be listed, or no image at root/<identity>/.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.root = Path(os.path.abspath(root))
        folders = _list_folders(self.root)
        places = IndexCache(self.root, "folder", folders.digest, cache=cache)
        tables = places.open(lambda folder: _current(_open_tables(folder), self.root, folders))
        if tables is None:
            scanned = _scan(self.root, folders, progress)
            tables = places.write(lambda draft: _save(scanned, draft), _open_tables) or scanned
        beside = {"hidden": folders.hidden, "files_beside_folders": folders.files}
        self._ignored = {kind: count + beside.get(kind, 0) for kind, count in tables.ignored.items()}
        self._hold(tables)

    def _hold(self, tables: "_Tables") -> None:
        self._tables = tables
        self._prefix = os.path.join(os.fsencode(self.root), b"")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return printable(os.fsencode(self.root.name or str(self.root)))

    @property
    def identities(self) -> IdentityIndex:
        """The identity index; position = slot, since images are numbered identity by identity."""
        return self._tables.index

    @property
    def ignored(self) -> dict[str, int]:
        """What the scan left out: hidden, other_files, deeper_folders, empty_folders, files_beside_folders."""
        return dict(self._ignored)

    @property
    def notes(self) -> list[str]:
        """Sentences about pictures that are not read, and about links."""
        unread = self._tables.unread
        renamed = _counted({ending: count for ending, count in unread.items() if ending in _JPEG_BY_OTHER_NAMES})
        others = _counted({ending: count for ending, count in unread.items() if ending not in _JPEG_BY_OTHER_NAMES})
        notes = [f"not read: {renamed} (JPEG under another name: rename to .jpg)"] if renamed else []
        notes += [f"not read: {others} (convert to .jpg or .png)"] if others else []
        links = len(self._tables.links)
        return notes + ([f"images reached by symbolic links: {links:,} of {len(self):,}"] if links else [])

    def leads_out(self) -> tuple[int, str] | None:
        """Return the first image that a link takes from outside the folder, and where it lies in truth; None: there is none."""
        root = os.path.join(os.path.realpath(os.fsencode(self.root)), b"")
        for position in self._tables.links.tolist():
            real = os.path.realpath(self.path(position))
            if not real.startswith(root):
                return position, printable(real)
        return None

    @property
    def cache(self) -> Path | None:
        """Folder of the cached index; None if it is held in memory."""
        return self._tables.folder

    def __len__(self) -> int:
        """Return the number of images."""
        return self._tables.index.images

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the labels of positions: int64."""
        return self._tables.index.labels_of_slots(positions)

    def path(self, position: int) -> bytes:
        """Return an image's path, as bytes: the only form that every name has."""
        return self._path_and_label(position)[0]

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the file's bytes and the label.

        Raises:
            OSError: the file is gone or may not be read.
            BrokenImageError: more than 256 MiB.
        """
        path, label = self._path_and_label(position)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # a file object costs as much again
        try:
            size = os.fstat(descriptor).st_size
            if size > MAX_FILE_BYTES:
                raise BrokenImageError(f"file of {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
            encoded = os.read(descriptor, size)
            while len(encoded) < size and (more := os.read(descriptor, size - len(encoded))):
                encoded += more
            return encoded, label
        finally:
            os.close(descriptor)

    def _path_and_label(self, position: int) -> tuple[bytes, int]:
        tables = self._tables
        if not 0 <= position < len(tables.file_names):
            raise IndexError(f"position {position} of {len(tables.file_names)} images")
        label = int(tables.index.offsets.searchsorted(position, side="right")) - 1
        return self._prefix + tables.identity_names[label] + b"/" + tables.file_names[position], label

    def where(self, position: int) -> str:
        """Return "identity/file" in printable form."""
        return printable(self._path_and_label(position)[0][len(self._prefix) :])

    def identity_name(self, label: int) -> str:
        """Return the identity folder's name in printable form."""
        return printable(self._tables.identity_names[label])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths alone where the index is on disk: a worker maps the same pages."""
        tables = self._tables
        kept = tables if tables.folder is None else (tables.folder, len(self))
        return {"root": self.root, "ignored": self._ignored, "tables": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reopen what `__getstate__` left."""
        self.root = state["root"]
        self._ignored = state["ignored"]
        tables = state["tables"]
        if not isinstance(tables, _Tables):
            folder, images = tables
            tables = _open_tables(folder)
            if tables.index.images != images:
                raise UserError(f"{folder}: the index changed while a worker started; start again")
        self._hold(tables)

    def __repr__(self) -> str:
        """Return the root and the counts."""
        return f"FolderStore({str(self.root)!r}, {len(self.identities):,} identities, {len(self):,} images)"


@dataclass(frozen=True)
class _Tables:
    """Everything known about the folder's images; arrays mapped from `folder`, or in memory if that is None."""

    index: IdentityIndex
    identity_names: NameTable
    file_names: NameTable
    entries: npt.NDArray[np.int64]  # of every listed folder, those without images included
    scanned_ns: int
    ignored: dict[str, int]
    unread: dict[str, int]  # ending -> pictures of a format that is not read
    links: npt.NDArray[np.int64]  # positions of images that are links or lie in an identity folder that is one
    folder: Path | None


@dataclass(frozen=True)
class _Folders:
    """The folders under the root, in the order of their bytes, and the digest under which an index is cached."""

    names: list[bytes]
    links: list[bool]
    changed_ns: npt.NDArray[np.int64]
    hidden: int
    files: int
    digest: str


def _list_folders(root: Path) -> _Folders:
    found: list[tuple[bytes, int, int, bool]] = []
    hidden = files = 0
    try:
        with os.scandir(os.fsencode(root)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    hidden += entry.name != b".attfc-index"
                elif entry.is_dir():
                    status = entry.stat()
                    found.append((entry.name, status.st_mtime_ns, status.st_size, entry.is_symlink()))
                else:
                    files += 1
    except FileNotFoundError:
        raise UserError(f"{root}: no such folder") from None
    except NotADirectoryError:
        raise UserError(f"{root}: is a file; expected a folder that holds one folder of images per identity") from None
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror})") from None
    found.sort()
    hasher = hashlib.blake2b(_FORMAT, digest_size=16)
    for name, changed_ns, size, link in found:
        hasher.update(b"%d %d %d %d %b" % (len(name), changed_ns, size, link, name))
    return _Folders(
        [name for name, _, _, _ in found],
        [link for _, _, _, link in found],
        np.array([changed_ns for _, changed_ns, _, _ in found], np.int64),
        hidden,
        files,
        hasher.hexdigest(),
    )


def _scan(root: Path, folders: _Folders, progress: Progress | None) -> _Tables:
    started_ns = time.time_ns()
    root_bytes = os.fsencode(root)
    identity_names: list[bytes] = []
    offsets, name_ends, links = array("q", [0]), array("q", [0]), array("q")
    names = bytearray()
    entries_of = np.zeros(len(folders.names), np.int64)
    ignored, unread = dict.fromkeys(_IGNORED, 0), dict[str, int]()
    total = len(folders.names)
    for number, folder in enumerate(folders.names):
        entries_of[number], images = _scan_folder(root_bytes, folder, ignored, unread)
        if images:
            images.sort()
            identity_names.append(folder)
            for name, is_link in images:
                if is_link or folders.links[number]:
                    links.append(len(name_ends) - 1)
                names += name
                name_ends.append(len(names))
            offsets.append(len(name_ends) - 1)
        else:
            ignored["empty_folders"] += 1
        if progress is not None and (number % 256 == 255 or number == total - 1):
            progress(number + 1, total)
    file_names = NameTable(np.frombuffer(bytes(names), np.uint8), np.array(name_ends, np.int64))
    if not identity_names:
        raise UserError(_nothing_found(root, ignored, unread, folders))
    return _Tables(
        IdentityIndex(np.array(offsets, np.int64)),
        NameTable.pack(identity_names),
        file_names,
        entries_of,
        started_ns,
        ignored,
        unread,
        np.array(links, np.int64),
        None,
    )


def _scan_folder(
    root: bytes, folder: bytes, ignored: dict[str, int], unread: dict[str, int]
) -> tuple[int, list[tuple[bytes, bool]]]:
    """Return the number of entries of an identity folder, and its images: name, and whether it is a link."""
    images: list[tuple[bytes, bool]] = []
    count = 0
    try:
        with os.scandir(root + b"/" + folder) as entries:
            for entry in entries:
                count += 1
                if entry.name.startswith(b"."):
                    ignored["hidden"] += 1
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    images.append((entry.name, entry.is_symlink()))
                elif entry.is_dir():
                    ignored["deeper_folders"] += 1
                else:
                    ignored["other_files"] += 1
                    ending = os.path.splitext(entry.name)[1].lower().decode("ascii", "replace")
                    if ending in _UNREAD:
                        unread[ending] = unread.get(ending, 0) + 1
    except OSError as error:
        # Skipping it would lose an identity and shift every label after it.
        where = f"{printable(root)}/{printable(folder)}"
        raise UserError(f"{where}: cannot be listed ({error.strerror}); fix its permissions or remove it") from None
    return count, images


def _counted(unread: dict[str, int]) -> str:
    """Return "3 .gif, 12 .tif"."""
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(unread.items()))


def _nothing_found(root: Path, in_folders: dict[str, int], unread: dict[str, int], folders: _Folders) -> str:
    ignored = in_folders | {"files_beside_folders": folders.files}
    expected = "expected root/<identity>/<image> with " + ", ".join(sorted(e.decode() for e in EXTENSIONS))
    seen = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in ignored.items() if count)
    hint = "; are the identities one folder further down?" if ignored["deeper_folders"] else ""
    if not folders.names and folders.files:
        hint = "; put the images of each person into a folder of their own"
    hint += f"; not read: {_counted(unread)} (convert to .jpg or .png)" if unread else ""
    return f"{printable(os.fsencode(root))}: no images: {expected}; found {seen or 'an empty folder'}{hint}"


def _current(tables: _Tables, root: Path, folders: _Folders) -> _Tables:
    """Return the cached tables if they still describe the folders, else raise UserError."""
    if len(tables.entries) != len(folders.names) or not _unchanged(root, folders, tables):
        raise UserError(f"{tables.folder}: the index is of an earlier state")
    return tables


def _unchanged(root: Path, folders: _Folders, tables: _Tables) -> bool:
    for number in np.flatnonzero(folders.changed_ns >= tables.scanned_ns - _RACY_NS).tolist():
        try:
            if len(os.listdir(os.fsencode(root) + b"/" + folders.names[number])) != tables.entries[number]:
                return False
        except OSError:
            return False
    return True


def _open_tables(folder: Path) -> _Tables:
    """Map a cached index. Raises UserError if it is damaged: it may have come with somebody's data set."""
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        scanned_ns = int(about["scanned_ns"])
        ignored = {kind: int(about["ignored"][kind]) for kind in _IGNORED}
        unread = {ending: int(about["unread"][ending]) for ending in _UNREAD if ending in about["unread"]}
        index = IdentityIndex.open(folder, consecutive=True)
        identity_names, file_names = NameTable.open(folder, "identity"), NameTable.open(folder, "file")
        entries, links = (open_array(folder / f"{name}.npy", np.int64) for name in ("entries", "links"))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder}: damaged folder index ({error}); delete it to have it rebuilt") from None
    sound = (
        identity_names.sound()
        and file_names.sound()
        and len(identity_names) == len(index)
        and len(file_names) == index.images
        and bool((index.counts() > 0).all())
        and bool((links[1:] > links[:-1]).all())
        and (not len(links) or (int(links[0]) >= 0 and int(links[-1]) < index.images))
    )
    if not sound:
        raise UserError(f"{folder}: damaged folder index (its arrays contradict each other); delete it")
    return _Tables(index, identity_names, file_names, entries, scanned_ns, ignored, unread, links, folder)


def _save(tables: _Tables, draft: Path) -> None:
    tables.index.save(draft)
    tables.identity_names.save(draft, "identity")
    tables.file_names.save(draft, "file")
    np.save(draft / "entries.npy", tables.entries, allow_pickle=False)
    np.save(draft / "links.npy", tables.links, allow_pickle=False)
    about = {
        "format": _FORMAT.decode(),
        "scanned_ns": tables.scanned_ns,
        "ignored": tables.ignored,
        "unread": tables.unread,
    }
    (draft / "about.json").write_text(json.dumps(about), "utf-8")
