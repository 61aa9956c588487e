"""Image folder store: `root/<identity>/<image>.{jpg,jpeg,png,webp,bmp}`.

Identities are the folders directly under the root, images the files directly in them, both in the order of their bytes (the
same on every machine and locale); a folder without images is not an identity. Ignored and counted in `ignored`: names that begin
with a dot, other extensions, deeper folders, files beside the identity folders; pictures of other formats are named in `notes`.
Names need not be UTF-8. Links are read through, wherever they lead; who passes images on asks `leads_out` first.

The names and the identity index are scanned once and kept as memory-mapped arrays, one packed byte row for all names: some 20
bytes an image instead of a Python string of 60. They are cached under a digest of every identity folder's name, modification
time and size, so opening costs one `stat` a folder and a changed folder finds no cache and is scanned again. Overwriting a
file in place changes nothing that is indexed. Folders modified within 2 s of the scan may change once more in the same tick of
their clock: their entries are counted again at the next opening.
"""

import hashlib
import os
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from attfc.data.index import IdentityIndex
from attfc.data.index_cache import RACY_NS, IndexCache, Tables
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.image_files import ImageFiles, read_image
from attfc.data.stores.store import Store, origins
from attfc.errors import UserError
from attfc.files import entry_is
from attfc.typing import Int64, PathLike, Progress

__all__ = ["EXTENSIONS", "FolderStore", "refuse_links_out"]

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".webp", b".bmp")
# Read, they would move the positions and labels of sets that have them beside their images: they are named instead.
_NO_FILE = "no file"  # an image's name, and no file behind it
_JPEG_BY_OTHER_NAMES = (".jfif", ".jpe", ".jif")
_UNREAD = (
    *_JPEG_BY_OTHER_NAMES,
    *(
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
    ),
    ".tiff",
)

_FORMAT = b"attfc folder index 2"
_IGNORED = ("hidden", "other_files", "deeper_folders", "empty_folders", "files_beside_folders")


@dataclass(frozen=True)
class _Folders:
    """What lies in the root.

    Attributes:
        listed: name, time of change in ns, size, whether it is a link: of each folder, in the order of the names' bytes.
        beside: hidden names and files beside the folders.
    """

    listed: list[tuple[bytes, int, int, bool]]
    beside: Counter[str]

    def digest(self) -> str:
        """Name their state, under which an index is cached."""
        hasher = hashlib.blake2b(_FORMAT, digest_size=16)
        for name, changed_ns, size, link in self.listed:
            hasher.update(b"%d %d %d %d %b" % (len(name), changed_ns, size, link, name))
        return hasher.hexdigest()


@dataclass(frozen=True)
class _FolderTables(Tables):
    """Of a folder: `paths` are the names of the files.

    Attributes:
        entries: of every listed folder, those without images included.
        links: positions of images that are links or lie in an identity folder that is one.
        unread: ending -> pictures of a format that is not read.
    """

    source = "folder"
    path_kind = "file"
    rows = ("entries", "links")
    counts: ClassVar = {"ignored": _IGNORED, "unread": (*_UNREAD, _NO_FILE)}
    consecutive = True

    identities: NameTable
    entries: Int64
    links: Int64
    ignored: dict[str, int]
    unread: dict[str, int]

    def sound(self) -> bool:
        """Whether the tables fit one another, every identity has images, and no name leads out of the folder."""
        links = self.links
        return (
            super().sound()
            and self.identities.sound()
            and self.paths.sound()
            and bool((self.index.counts() > 0).all())
            and bool((links[1:] > links[:-1]).all())
            and 0 <= links.min(initial=0) <= links.max(initial=0) < self.index.images
            and len(self.ignored) == len(_IGNORED)
        )

    def current(self, root: Path, folders: _Folders) -> bool:
        """Whether the index still describes the folders: those that had just changed then are counted again."""
        unsure_ns = self.scanned_ns - RACY_NS
        counted = zip(folders.listed, self.entries.tolist(), strict=False)
        try:
            return len(self.entries) == len(folders.listed) and all(
                len(os.listdir(os.fsencode(root) + b"/" + name)) == entries
                for (name, changed_ns, *_), entries in counted
                if changed_ns >= unsure_ns
            )
        except OSError:
            return False


class FolderStore(ImageFiles):
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
        root: PathLike,
        *,
        cache: PathLike | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(root, root)
        folders = _list_folders(self.root)
        self._tables: _FolderTables = IndexCache(self.root, "folder", folders.digest(), cache=cache).get(
            _FolderTables.open,
            lambda: _scan(self.root, folders, progress),
            _FolderTables.save,
            lambda tables: tables.current(self.root, folders),
        )
        self._ignored = {kind: count + folders.beside[kind] for kind, count in self._tables.ignored.items()}

    @property
    def ignored(self) -> dict[str, int]:
        """What the scan left out: hidden, other_files, deeper_folders, empty_folders, files_beside_folders."""
        return dict(self._ignored)

    @property
    def notes(self) -> list[str]:
        """Sentences about pictures and folders that are not read, and about links."""
        unread, notes = self._tables.unread, []
        for renamed, advice in ((True, "JPEG under another name: rename to .jpg"), (False, "convert to .jpg or .png")):
            found = {
                end: n for end, n in unread.items() if end != _NO_FILE and (end in _JPEG_BY_OTHER_NAMES) == renamed
            }
            notes += [f"not read: {_counted(found)} ({advice})"] if found else []
        for count, what in (
            (unread.get(_NO_FILE, 0), "links that lead nowhere, named like images"),
            (self._ignored["deeper_folders"], "folders inside a person's folder: move their images up"),
            (self._ignored["empty_folders"], "folders without an image in them"),
        ):
            notes += [f"left out: {count:,} {what}"] if count else []
        links = len(self._tables.links)
        return notes + ([f"images reached by symbolic links: {links:,} of {len(self):,}"] if links else [])

    def leads_out(self) -> tuple[int, str] | None:
        """Return the first image that a link takes from outside the folder, and where it lies in truth; None: there is none."""
        root = os.path.join(os.path.realpath(os.fsencode(self.root)), b"")
        for position in self._tables.links.tolist():
            real = os.path.realpath(self.image_path(position))
            if not real.startswith(root):
                return position, printable(real)
        return None

    def image_path(self, position: int) -> bytes:
        """Return an image's path."""
        return self._path_and_label(position)[0]

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the file's bytes and the label.

        Raises:
            OSError: the file is gone or may not be read.
            BrokenImageError: more than 256 MiB.
        """
        path, label = self._path_and_label(position)
        return read_image(
            os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        ), label  # a file object costs as much again

    def _path_and_label(self, position: int) -> tuple[bytes, int]:
        tables = self._tables
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} images")
        label = int(tables.index.offsets.searchsorted(position, side="right")) - 1
        return self._prefix + tables.identities[label] + b"/" + tables.paths[position], label

    def where(self, position: int) -> str:
        """Return "identity/file" in printable form."""
        return printable(self._path_and_label(position)[0][len(self._prefix) :])


def refuse_links_out(store: Store) -> None:
    """Raise UserError if an image of a folder is reached by a link that leads out of it; of a view or several sets, of each.

    A folder from elsewhere may hold `Ann/passwd.jpg -> /etc/passwd`; a conversion would carry the file off. Links within the
    folder are followed. List files name their images outright, wherever those are.

    Cost: nothing where no image is reached by a link, else up to 20 us per image that is.
    """
    for base in origins(store, np.zeros(0, np.int64))[0]:
        if isinstance(base, FolderStore) and (found := base.leads_out()) is not None:
            position, real = found
            raise UserError(
                f"{base.root}: {base.where(position)} is reached by a link that leads out of the folder, to {real}: give "
                "--follow-links (follow_links=True) to take whatever links lead to, or remove the link"
            )


def _list_folders(root: Path) -> _Folders:
    found: list[tuple[bytes, int, int, bool]] = []
    beside = Counter[str]()
    try:
        with os.scandir(os.fsencode(root)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    beside["hidden"] += entry.name != b".attfc-index"
                elif entry_is(entry.is_dir):
                    status = entry.stat()
                    found.append((entry.name, status.st_mtime_ns, status.st_size, entry.is_symlink()))
                else:
                    beside["files_beside_folders"] += 1
    except FileNotFoundError:
        raise UserError(f"{root}: no such folder") from None
    except NotADirectoryError:
        raise UserError(f"{root}: is a file; expected a folder that holds one folder of images per identity") from None
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror})") from None
    return _Folders(sorted(found), beside)


def _scan(root: Path, folders: _Folders, progress: Progress | None) -> _FolderTables:
    started_ns = time.time_ns()
    identity_names: list[bytes] = []
    offsets, name_ends, links = array("q", [0]), array("q", [0]), array("q")
    names = bytearray()
    total = len(folders.listed)
    entries_of = np.zeros(total, np.int64)
    ignored, unread = dict.fromkeys(_IGNORED, 0), Counter[str]()
    for number, (folder, _, _, linked) in enumerate(folders.listed):
        entries_of[number], images = _scan_folder(os.fsencode(root), folder, ignored, unread)
        if images:
            identity_names.append(folder)
            for name, is_link in sorted(images):
                if is_link or linked:
                    links.append(len(name_ends) - 1)
                names += name
                name_ends.append(len(names))
            offsets.append(len(name_ends) - 1)
        else:
            ignored["empty_folders"] += 1
        if progress is not None and (number % 256 == 255 or number == total - 1):
            progress(number + 1, total)
    if not identity_names:
        raise UserError(_nothing_found(root, ignored, unread, folders))
    return _FolderTables(
        IdentityIndex(np.array(offsets, np.int64)),
        NameTable.pack(identity_names),
        NameTable(np.frombuffer(bytes(names), np.uint8), np.array(name_ends, np.int64)),
        started_ns,
        None,
        entries=entries_of,
        links=np.array(links, np.int64),
        ignored=ignored,
        unread=dict(unread),
    )


def _scan_folder(
    root: bytes, folder: bytes, ignored: dict[str, int], unread: Counter[str]
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
                elif entry.name.lower().endswith(EXTENSIONS) and entry_is(entry.is_file):
                    images.append((entry.name, entry.is_symlink()))
                elif entry_is(entry.is_dir):
                    ignored["deeper_folders"] += 1
                else:
                    ignored["other_files"] += 1
                    ending = os.path.splitext(entry.name)[1].lower().decode("ascii", "replace")
                    if ending in _UNREAD or entry.name.lower().endswith(EXTENSIONS):
                        unread[ending if ending in _UNREAD else _NO_FILE] += 1
    except OSError as error:
        # Skipping it would lose an identity and shift every label after it.
        where = f"{printable(root)}/{printable(folder)}"
        raise UserError(f"{where}: cannot be listed ({error.strerror}); fix its permissions or remove it") from None
    return count, images


def _counted(unread: dict[str, int]) -> str:
    """Return "3 .gif, 12 .tif"."""
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(unread.items()))


def _nothing_found(root: Path, in_folders: dict[str, int], unread: dict[str, int], folders: _Folders) -> str:
    ignored = in_folders | {"files_beside_folders": folders.beside["files_beside_folders"]}
    expected = "expected root/<identity>/<image> with " + ", ".join(sorted(e.decode() for e in EXTENSIONS))
    seen = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in ignored.items() if count)
    hint = ""
    if ignored["deeper_folders"]:
        hint = "; if the people are one folder further down, give that folder; if it sorts one person's images, move them up"
    if not folders.listed and ignored["files_beside_folders"]:
        hint = "; put the images of each person into a folder of their own"
    gone, unread = unread.get(_NO_FILE, 0), {end: count for end, count in unread.items() if end != _NO_FILE}
    hint += f"; not read: {_counted(unread)} (convert to .jpg or .png)" if unread else ""
    hint += f"; {gone:,} are links that lead nowhere, named like images" if gone else ""
    return f"{printable(root)}: no images: {expected}; found {seen or 'an empty folder'}{hint}"
