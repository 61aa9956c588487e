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
import os
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, checked_positions, offsets_of, spread
from attfc.data.index_cache import RACY_NS, IndexCache, Tables
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.image_files import ImageFiles, read_image
from attfc.data.stores.list_columns import IMAGE_ENDINGS, ListLayout
from attfc.data.text_lines import MAX_LINE_BYTES, LineBlock, line_blocks, open_regular, opened, whole_numbers
from attfc.errors import UserError
from attfc.typing import Int64, PathLike, Progress

__all__ = ["ListStore", "open_list"]

_FORMAT = "attfc list index 2"


@dataclass(frozen=True)
class _ListTables(Tables):
    """Of a list: `identities` are its own labels, numbers or names."""

    source = "list"
    path_kind = "path"
    rows = ("labels",)

    labels: Int64

    def sound(self) -> bool:
        """Whether the tables fit one another; each path and label is checked where it is used."""
        known, paths = self.identities, self.paths
        return (
            super().sound()
            and len(self.labels) == len(paths)
            and paths.offsets[-1] == len(paths.data)
            and (not isinstance(known, NameTable) or known.sound(forbidden=b"\0"))
        )


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
        UserError: no such file, not a regular file, no line at all, or columns in another order. A line without label, with a NUL byte
            or longer than 16 KiB. A label that is a number outside 0 to 10^18 - 1, or not a whole one.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        root: PathLike | None = None,
        cache: PathLike | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(path, Path(path).parent if root is None else root)
        with opened(self.path, "list cannot be read") as descriptor:
            self._tables: _ListTables = self._opened(descriptor, cache, progress)

    def _opened(self, descriptor: int, cache: PathLike | None, progress: Progress | None) -> _ListTables:
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
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.identities):
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
        looked_at = spread(len(self), 10).tolist()
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


def open_list(path: str, *, cache: PathLike | None = None, progress: Progress | None = None) -> ListStore:
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
    known: NameTable | Int64
    try:
        paths, numbers = _pass(path, descriptor, status.st_size, _whole, progress)
        labels, known = _without_gaps(numbers)
    except _NamesMetError:
        number_of: dict[bytes, int] = {}
        paths, numbers = _pass(path, descriptor, status.st_size, partial(_numbered, number_of), progress)
        names = sorted(number_of)
        rank = np.empty(len(names), np.int64)
        rank[[number_of[name] for name in names]] = np.arange(len(names))
        labels, known = rank[numbers], NameTable.pack(names)
    if not len(paths):
        raise UserError(f"{path}: no images: a line `path label` for each is expected")
    return _ListTables(IdentityIndex.from_labels(labels), known, paths, scanned_ns, None, labels)


def _pass(
    path: Path,
    descriptor: int,
    size: int,
    number: Callable[[LineBlock, Int64, Int64], Int64],
    progress: Progress | None,
) -> tuple[NameTable, Int64]:
    """Return the paths, and what `number` makes of the labels of each block, which lie between starts and ends."""
    packed = bytearray()  # grows in place: the paths of 42 M images are not held twice
    lengths, numbers = array("q"), array("q")
    layout = ListLayout()
    for block in line_blocks(path, descriptor):
        found = layout.columns(block)
        block.refuse(found.label_starts >= found.label_ends, "has no label")
        numbers.frombytes(number(block, found.label_starts, found.label_ends).tobytes())
        edges = np.zeros(len(block.data) + 1, np.int8)
        edges[found.path_starts] += 1
        edges[found.path_ends] -= 1
        block.refuse(found.path_starts >= found.path_ends, "has no path")
        packed += block.data[np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)].tobytes()
        lengths.frombytes((found.path_ends - found.path_starts).tobytes())
        if progress is not None:
            progress(min(block.offset + len(block.data), size), size)
    paths = NameTable(np.frombuffer(packed, np.uint8), offsets_of(np.asarray(lengths)))
    return paths, np.array(numbers, np.int64)


def _whole(block: LineBlock, starts: Int64, ends: Int64) -> Int64:
    """Return labels that are whole numbers, as far as the list shows."""
    numbers, sound = whole_numbers(block.data, starts, ends)
    wrong = np.flatnonzero(~sound).tolist()
    if not all(_looks_like_a_number(block.data[starts[row] : ends[row]].tobytes()) for row in wrong):
        raise _NamesMetError
    if wrong:
        label = block.data[starts[wrong[0]] : ends[wrong[0]]].tobytes()[:40]
        raise UserError(
            f"{block.where(wrong[0])}: label {printable(label)} is not a whole number from 0 to 10^18 - 1 (labels may be "
            "names, but other lines have numbers)"
        )
    return numbers


def _without_gaps(numbers: Int64) -> tuple[Int64, Int64]:
    """Return labels dense from 0, and the list's number of each."""
    highest = int(numbers.max(initial=0))
    if highest > 8 * len(numbers) + 1_000_000:
        known, labels = np.unique(numbers, return_inverse=True)
        return labels.astype(np.int64, copy=False), known
    present = np.zeros(highest + 1, np.bool_)  # no sorting where the numbers are nearly dense
    present[numbers] = True
    return (np.cumsum(present) - 1)[numbers], np.flatnonzero(present)


def _looks_like_a_number(label: bytes) -> bool:
    with contextlib.suppress(ValueError):
        float(label)
        return True
    return False


def _numbered(number_of: dict[bytes, int], block: LineBlock, starts: Int64, ends: Int64) -> Int64:
    """Return labels that are names as numbers, given out as the names come."""
    lengths = ends - starts
    numbers = np.empty(len(starts), np.int64)
    for length in np.unique(lengths).tolist():  # labels of one length are a matrix, whose rows numpy can compare
        rows = np.flatnonzero(lengths == length)
        letters = block.data[starts[rows, None] + np.arange(length)]
        names, first, places = np.unique(letters.reshape(-1).view(f"S{length}"), return_index=True, return_inverse=True)
        for place, name in enumerate(names.tolist()):
            if name not in number_of and name.lower().endswith(IMAGE_ENDINGS):
                raise UserError(
                    f"{block.where(int(rows[first[place]]))} ends in an image file where the label is due: "
                    "a line is `path label`: swap the columns"
                )
        of_names = np.array([number_of.setdefault(name, len(number_of)) for name in names.tolist()], np.int64)
        numbers[rows] = of_names[places]
    return numbers
