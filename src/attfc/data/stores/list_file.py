"""List file store: a text file with a line `path label` for every image, e.g. LFW-style lists or the output of another tool.

    # comments and blank lines are skipped; line ends are LF or CR LF; `.lst` files of other tools: `list_columns`
    aligned/Ann Lee/0001.jpg<TAB>17
    /mnt/more/ünal 3.png   4

The label is what follows the last TAB of the line, or, in a line without TABs, the last run of blanks; so paths may hold spaces.
Relative paths start at the list's folder. If every label is a whole number, identities are in the order of the numbers,
gaps closed; if any is a name, all are names, in the order of their bytes (then "7" and "07" are two people). An image may be
listed any number of times. Position = rank of the line among those that hold an image. Missing files are broken images when
they are read, not errors at the start: 42 M `stat` calls would take an hour on a network drive.

The list is parsed once (about 1 M lines/s; names cost a dictionary look-up more for each that is new to 4 MiB of list)
and kept as memory-mapped arrays, 24 bytes and the path an image, under a digest of the list's inode, size and times.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, checked_positions, open_array
from attfc.data.index_cache import RACY_NS, IndexCache, read_about
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.image_files import ImageFiles, Tables, read_image
from attfc.data.stores.list_columns import IMAGE_ENDINGS, ListLayout
from attfc.data.text_lines import MAX_LINE_BYTES, LineBlock, line_blocks, open_regular, opened, whole_numbers
from attfc.errors import UserError
from attfc.typing import Int64, Progress

__all__ = ["ListStore", "open_list"]

_FORMAT = "attfc list index 2"


@dataclass(frozen=True)
class _ListTables(Tables):
    """Of a list: `identities` are its own labels, numbers or names."""

    labels: Int64

    @classmethod
    def open(cls, folder: Path) -> "_ListTables":
        """Map a cached index."""

        def read(about: dict[str, Any]) -> _ListTables:
            return cls(
                index=IdentityIndex.open(folder, consecutive=bool(about.get("consecutive"))),
                identities=open_array(folder / "numbers.npy", np.int64)
                if about["numbers"]
                else NameTable.open(folder, "identity"),
                paths=NameTable.open(folder, "path"),
                scanned_ns=int(about["scanned_ns"]),
                folder=folder,
                labels=open_array(folder / "labels.npy", np.int64),
            )

        tables = read_about(folder, "list", read)
        known, paths = tables.identities, tables.paths
        sound = (
            len(tables.labels) == tables.index.images == len(paths)
            and len(known) == len(tables.index)
            and int(paths.offsets[-1]) == len(paths.data)
            and (not isinstance(known, NameTable) or known.sound(forbidden=b"\0"))
            and len(paths) > 0
        )
        if not sound:
            raise UserError(f"{folder}: damaged list index (its arrays contradict each other); delete it")
        return tables

    def save(self, draft: Path) -> None:
        """Write what `open` maps."""
        self.index.save(draft)
        np.save(draft / "labels.npy", self.labels, allow_pickle=False)
        self.paths.save(draft, "path")
        named = isinstance(self.identities, NameTable)
        if isinstance(self.identities, NameTable):
            self.identities.save(draft, "identity")
        else:
            np.save(draft / "numbers.npy", self.identities, allow_pickle=False)
        about = {
            "format": _FORMAT,
            "scanned_ns": self.scanned_ns,
            "numbers": not named,
            "consecutive": self.index.consecutive,
        }
        (draft / "about.json").write_text(json.dumps(about), "utf-8")


class ListStore(ImageFiles):
    """A Store over a text file of paths and labels.

    Only regular files are read (symbolic links are followed): a list that names a device or FIFO gets a broken image, not a
    process that waits. A list can name any file that its user may read, so one from a stranger deserves a look.

    Args:
        path: the list.
        root: folder where relative paths start; None: the list's.
        cache: folder for the index; None: `attfc` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache); where nothing can
            be written, memory.
        progress: called as (bytes done, bytes) while parsing; not called when the cached index is used.

    Raises:
        UserError: no such file, not a regular file, a line without label, with a NUL byte or longer than 16 KiB, a label
            that is a number but no whole number from 0 to 10^18 - 1, columns in another order, or no line at all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(path, Path(path).parent if root is None else root)
        with opened(self.path, "list cannot be read") as descriptor:
            self._tables: _ListTables = self._opened(descriptor, cache, progress)

    def _opened(self, descriptor: int, cache: str | os.PathLike[str] | None, progress: Progress | None) -> _ListTables:
        status = os.fstat(descriptor)

        def parsed() -> _ListTables:
            tables = _parse(self.path, descriptor, status, progress)
            if _digest(os.fstat(descriptor)) != _digest(status):
                raise UserError(f"{self.path}: the list changed while it was read; open it again")
            return tables

        def settled(tables: _ListTables) -> bool:
            """Whether the list was so old when it was parsed that it cannot have changed in the same tick."""
            return max(status.st_mtime_ns, status.st_ctime_ns) < tables.scanned_ns - RACY_NS

        places = IndexCache(self.path, "list", _digest(status), cache=cache)
        return places.get(_ListTables.open, parsed, _ListTables.save, settled)

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: int64.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        labels = np.asarray(self._tables.labels[checked_positions(positions, len(self), "list")])
        # Here and not at the start: to look through a cached index of 42 M images takes a second.
        if labels.size and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.identities)):
            raise UserError(f"{self.cache}: damaged list index (a label out of range); delete it to have it rebuilt")
        return labels

    def image_path(self, position: int) -> bytes:
        """Return an image's path.

        Backslashes of a list that was written on Windows stand for slashes, unless there is a file of that very name.
        """
        listed = self._listed(position)
        path = os.path.join(self._prefix, listed)
        if b"\\" in listed and not os.path.lexists(path):
            return os.path.join(self._prefix, listed.replace(b"\\", b"/"))
        return path

    def refuse_missing(self) -> None:
        """Raise UserError if none of ten images, spread over the list, is there: the list then stands in the wrong place."""
        looked_at = np.unique(np.linspace(0, len(self) - 1, 10, dtype=np.int64)).tolist()
        if any(os.path.isfile(self.image_path(position)) for position in looked_at):
            return
        rec = self.path.with_suffix(".rec")
        hint = f"; the images are in {rec}? Give that file" if rec.is_file() else ""
        raise UserError(
            f"{self.path}: none of {len(looked_at)} images of the list that were looked for exists; the first is "
            f"{self.where(0)!r}, looked for as {printable(self.image_path(0))}. Relative paths start at the list's folder "
            f"{self.root}: move the list to where its paths start, or write absolute paths{hint}"
        )

    def _listed(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} images")
        paths = self._tables.paths
        start, end = int(paths.offsets[position]), int(paths.offsets[position + 1])
        if not 0 <= start < end <= min(len(paths.data), start + MAX_LINE_BYTES):
            raise UserError(f"{self.cache}: damaged list index (path {position}); delete it to have it rebuilt")
        return paths[position]

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the file's bytes and the label.

        Raises:
            OSError: the file is missing, may not be read, or is not a regular file.
            BrokenImageError: more than 256 MiB.
        """
        try:
            descriptor = open_regular(self.image_path(position))
        except ValueError:  # a NUL byte: the cached index is damaged
            raise OSError(errno.EINVAL, "not a path") from None
        return read_image(descriptor), int(self._tables.labels[position])

    def where(self, position: int) -> str:
        """Return the path as the list has it, in printable form."""
        return printable(self._listed(position))


def open_list(path: str, *, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> ListStore:
    """Return the store of a list whose images are there. Raises UserError."""
    listed = ListStore(path, cache=cache, progress=progress)
    listed.refuse_missing()
    return listed


def _digest(status: os.stat_result) -> str:
    # The inode's own change time too: data sets unpacked from archives share sizes and modification times.
    facts = f"{_FORMAT} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


class _NamesMetError(Exception):
    """A label that is a name, in a pass that reads numbers."""


def _parse(path: Path, descriptor: int, status: os.stat_result, progress: Progress | None) -> _ListTables:
    scanned_ns = time.time_ns()
    labels: _Numbers | _Names = _Numbers(path)
    try:
        paths = _pass(path, descriptor, status.st_size, labels, progress)
    except _NamesMetError:
        labels = _Names(path)
        paths = _pass(path, descriptor, status.st_size, labels, progress)
    if not len(paths):
        raise UserError(f"{path}: no images: a line `path label` for each is expected")
    dense, known = labels.finished()
    return _ListTables(IdentityIndex.from_labels(dense), known, paths, scanned_ns, None, dense)


def _pass(path: Path, descriptor: int, size: int, labels: "_Numbers | _Names", progress: Progress | None) -> NameTable:
    """Hand each block's labels to `labels` and return the paths."""
    packed = bytearray()  # grows in place: the paths of 42 M images are not held twice
    lengths = array("q")
    layout = ListLayout(path)
    for block in line_blocks(path, descriptor):
        found = layout.columns(block)
        layout.refuse(block, found.label_starts >= found.label_ends, "has no label")
        labels.take(block, found.label_starts, found.label_ends)
        edges = np.zeros(len(block.data) + 1, np.int8)
        edges[found.path_starts] += 1
        edges[found.path_ends] -= 1
        layout.refuse(block, found.path_starts >= found.path_ends, "has no path")
        packed += block.data[np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)].tobytes()
        lengths.frombytes((found.path_ends - found.path_starts).tobytes())
        if progress is not None:
            progress(min(block.offset + len(block.data), size), size)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.frombuffer(lengths, np.int64) if lengths else [], out=offsets[1:])
    return NameTable(np.frombuffer(packed, np.uint8), offsets)


class _Numbers:
    """Labels that are whole numbers, as far as the list shows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken = array("q")

    def take(self, block: LineBlock, starts: Int64, ends: Int64) -> None:
        numbers, sound = whole_numbers(block.data, starts, ends)
        wrong = np.flatnonzero(~sound)
        for row in wrong.tolist():
            label = block.data[starts[row] : ends[row]].tobytes()
            if not _looks_like_a_number(label):
                raise _NamesMetError
        if wrong.size:
            row = int(wrong[0])
            shown = printable(block.data[starts[row] : ends[row]].tobytes()[:40])
            raise UserError(
                f"{ListLayout(self._path).line(block, row)}: label {shown} is not a whole number from 0 to 10^18 - 1 (labels may be "
                "names, but other lines have numbers)"
            )
        self._taken.frombytes(numbers.tobytes())

    def finished(self) -> tuple[Int64, Int64]:
        """Labels dense from 0, and the list's number of each."""
        taken: Int64 = np.frombuffer(self._taken, np.int64)
        if int(taken.max()) > 8 * len(taken) + 1_000_000:
            known, dense = np.unique(taken, return_inverse=True)
            return dense.astype(np.int64, copy=False), known
        present = np.zeros(int(taken.max()) + 1, np.bool_)  # no sorting where the numbers are nearly dense
        present[taken] = True
        known = np.flatnonzero(present)
        if len(known) == len(present):
            return taken.copy(), known
        return (np.cumsum(present) - 1)[taken], known


def _looks_like_a_number(label: bytes) -> bool:
    with contextlib.suppress(ValueError):
        float(label)
        return True
    return False


class _Names:
    """Labels that are names: numbered as they come, then in the order of their bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number_of: dict[bytes, int] = {}
        self._taken = array("q")

    def take(self, block: LineBlock, starts: Int64, ends: Int64) -> None:
        lengths = ends - starts
        numbers = np.empty(len(starts), np.int64)
        for length in np.unique(lengths).tolist():  # labels of one length are a matrix, whose rows numpy can compare
            rows = np.flatnonzero(lengths == length)
            letters = block.data[starts[rows, None] + np.arange(length)]
            names, first, places = np.unique(
                letters.reshape(-1).view(f"S{length}"), return_index=True, return_inverse=True
            )
            of_names = np.empty(len(names), np.int64)
            for place, name in enumerate(names.tolist()):
                number = self._number_of.get(name)
                if number is None:
                    if name.lower().endswith(IMAGE_ENDINGS):
                        raise UserError(
                            f"{ListLayout(self._path).line(block, int(rows[first[place]]))} ends in an image file where the label is due: "
                            "a line is `path label`: swap the columns"
                        )
                    number = self._number_of[name] = len(self._number_of)
                of_names[place] = number
            numbers[rows] = of_names[places]
        self._taken.frombytes(numbers.tobytes())

    def finished(self) -> tuple[Int64, NameTable]:
        """Labels dense from 0, and the name of each."""
        ordered = sorted(self._number_of)
        rank = np.empty(len(ordered), np.int64)
        rank[[self._number_of[name] for name in ordered]] = np.arange(len(ordered))
        return rank[np.frombuffer(self._taken, np.int64)], NameTable.pack(ordered)
