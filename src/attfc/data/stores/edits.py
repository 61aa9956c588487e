"""Edit lists: which images of a data set are left out and which get another label, as a text file; the data stay untouched.

    # attfc edits 1<TAB>images=15664<TAB>identities=2360<TAB>changes=2<TAB>store=faces
    17<TAB>-<TAB>Ann Lee/0018.jpg: same bytes as Ann Lee/0003.jpg
    20<TAB>311

Cleaning and the noise generators write them, `EditedStore` shows a store as a list describes it. A list holds changes only: 16
bytes each in memory, and a view costs no array of the store's size until its identity index is asked for (8 bytes an
image). Not taken: a complete list of all images, which is as long as the data set for a single removed duplicate.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, checked_label, checked_positions
from attfc.data.people.identity_names import joined_names, names_of
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.store import Store, StoreView
from attfc.data.text_lines import MAX_LINE_BYTES, LineBlock, line_blocks, opened, read_head, whole_numbers
from attfc.errors import UserError
from attfc.files import replacing
from attfc.typing import Bools, Int64, PathLike

__all__ = ["LEFT_OUT", "EditedStore", "Edits", "compose", "read_edits", "write_edits"]

LEFT_OUT = -1
"""The label of an image that is left out."""

_FORMAT = "# attfc edits 1"
_LARGEST = 10**18 - 1
_WRITE_LINES = 100_000


@dataclass
class Edits:
    """Changes to a data set of `images` images of `identities` identities.

    Attributes:
        images, identities: the counts of the data set that the list is about.
        positions: int64 (n,) rising: the changed images.
        labels: int64 (n,) their new labels; -1: left out. Labels from `identities` up are new identities.
        comments: n lines of text, where the image is and why it was changed; or None.

    Raises:
        UserError: positions or labels out of range, not rising, or lengths that differ.

    >>> Edits(3, 2, np.array([1]), np.array([-1])).apply(np.array([0, 0, 1]))
    array([ 0, -1,  1])
    """

    images: int
    identities: int
    positions: Int64
    labels: Int64
    comments: list[str] | None = None

    def __post_init__(self) -> None:
        """Check what a list promises: everyone who applies it relies on it."""
        self.positions = np.ascontiguousarray(self.positions, np.int64)
        self.labels = np.ascontiguousarray(self.labels, np.int64)
        positions, labels = self.positions, self.labels
        comments = positions if self.comments is None else self.comments
        if not len(positions) == len(labels) == len(comments):
            raise UserError(
                f"edits of {len(positions)} positions, {len(labels)} labels and {len(self.comments or [])} comments: one each"
            )
        if not 0 <= self.images <= _LARGEST or not 0 <= self.identities <= _LARGEST:
            raise UserError(
                f"edits about {self.images} images of {self.identities} identities: counts from 0 are needed"
            )
        if not (positions[1:] > positions[:-1]).all():
            raise UserError("edits: positions must rise, each listed once")
        for place in (*positions[:1].tolist(), *positions[-1:].tolist()):
            if not 0 <= place < self.images:
                raise UserError(f"edits: position {place} is not one of {self.images} images")
        for label in (int(labels.min(initial=0)), int(labels.max(initial=0))):
            if not LEFT_OUT <= label <= _LARGEST:
                raise UserError(f"edits: label {label}: a number from 0 is needed, or -1 to leave the image out")

    def __len__(self) -> int:
        """Return the number of changes."""
        return len(self.positions)

    @property
    def removed(self) -> int:
        """How many images are left out."""
        return int(np.count_nonzero(self.labels == LEFT_OUT))

    def apply(self, labels: npt.ArrayLike) -> Int64:
        """Return the edited labels of all images: int64 (images,), a new array; -1: left out.

        Args:
            labels: (images,) integers, the labels of positions 0, 1, 2 ... before the edits.

        Raises:
            UserError: another number of labels than the list is about.
        """
        edited = np.array(labels, np.int64)
        if edited.shape != (self.images,):
            raise UserError(f"edits are about {self.images} images and got labels of shape {edited.shape}")
        edited[self.positions] = self.labels
        return edited

    def check(self, store: Store) -> None:
        """Raise UserError unless the list can be about this store."""
        images, identities = len(store), len(store.identities)
        if (images, identities) != (self.images, self.identities):
            raise UserError(
                f"the edit list is about {self.images} images of {self.identities} identities, {store.name} holds "
                f"{images} of {identities}: it was made for other data; make it again"
            )


def read_edits(path: PathLike, *, comments: bool = True) -> Edits:
    """Read an edit list; its lines may come in any order.

    Args:
        path: the file.
        comments: False leaves them out: a Python string per line, which millions of lines and a training run do not need.

    Raises:
        UserError: no such file, not an edit list, a line that cannot be understood, a position listed twice, or a position or
            label out of range. Another number of lines than the header says.
    """
    with opened(path, "edit list cannot be read") as descriptor:
        header = _header(path, read_head(path, descriptor))
        parts = [_parse(path, block, header["images"], comments) for block in line_blocks(path, descriptor)]
    nothing = np.zeros(0, np.int64)
    positions, labels, numbers = (np.concatenate([nothing, *(part[column] for part in parts)]) for column in range(3))
    if header.get("changes", len(positions)) != len(positions):
        raise UserError(
            f"{os.fspath(path)}: holds {len(positions)} changes, its first line says {header['changes']}: cut short? If you "
            f"added or removed lines yourself, remove 'changes={header['changes']}' from the first line"
        )
    texts = [text for part in parts for text in part[3]]
    order = np.argsort(positions, kind="stable")
    positions, labels, numbers = positions[order], labels[order], numbers[order]
    again = np.flatnonzero(positions[1:] == positions[:-1])
    if again.size:
        first, second = numbers[again[0] : again[0] + 2].tolist()
        raise UserError(
            f"{os.fspath(path)}: lines {first} and {second} both change position {int(positions[again[0]])}"
        )
    if any(texts):
        return Edits(header["images"], header["identities"], positions, labels, [texts[row] for row in order.tolist()])
    return Edits(header["images"], header["identities"], positions, labels)


def _header(path: PathLike, line: str) -> dict[str, int]:
    fields = line.split("\t")
    if fields[0] != _FORMAT:
        newer = line.startswith("# attfc edits ")
        what = f"edit list of a version that is not known ({fields[0][2:40]!r})" if newer else "not an edit list"
        raise UserError(f"{os.fspath(path)}: {what}: the first line must be '{_FORMAT}<TAB>images=N<TAB>identities=N'")
    header: dict[str, int] = {}
    for field in fields[1:]:
        key, _, value = field.partition("=")
        if key in ("images", "identities", "changes"):
            if not (value.isascii() and value.isdigit() and len(value) <= 18):
                raise UserError(f"{os.fspath(path)}: line 1: {key}={value[:40]!r} must be a whole number")
            header[key] = int(value)
    for key in ("images", "identities"):
        if key not in header:
            raise UserError(f"{os.fspath(path)}: line 1 lacks {key}=N")
    return header


def _parse(path: PathLike, block: LineBlock, images: int, comments: bool) -> tuple[Int64, Int64, Int64, list[str]]:
    """Positions, labels, line numbers and comments of a block; a comment that is not there is ""."""
    data, ends = block.data, block.ends
    tabs = np.append(np.flatnonzero(data == 0x09), len(data))

    def field_end(starts: Int64) -> Int64:
        end: Int64 = np.minimum(tabs[np.searchsorted(tabs, starts)], ends)
        return end

    def refuse(wrong: Bools, what: str) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            shown = printable(block.text(row)[:80])
            raise UserError(
                f"{os.fspath(path)}: line {int(block.numbers[row])} holds no {what} where one is due: {shown!r}; "
                "a line is POSITION<TAB>LABEL<TAB>comment"
            )

    position_ends = field_end(block.starts)
    label_starts = np.minimum(position_ends + 1, ends)
    label_ends = field_end(label_starts)
    positions, sound = whole_numbers(data, block.starts, position_ends)
    refuse(~sound, "position")
    refuse(positions >= images, f"position, of {images} images,")
    labels, sound = whole_numbers(data, label_starts, label_ends)
    left_out = (label_ends - label_starts == 1) & (data[np.minimum(label_starts, len(data) - 1)] == 0x2D)
    refuse(~(sound | left_out), "label (a whole number, or - to leave the image out)")
    labels[left_out] = LEFT_OUT
    texts: list[str] = []
    if comments:
        spans = zip(np.minimum(label_ends + 1, ends).tolist(), ends.tolist(), strict=True)
        texts = [data[start:end].tobytes().decode("utf-8", "backslashreplace") for start, end in spans]
    return positions, labels, block.numbers, texts


def write_edits(path: PathLike, edits: Edits, store_name: str = "") -> None:
    """Write an edit list, whole or not at all; about a million lines/s.

    Args:
        path: the file; replaced if it is there.
        edits: what to write; tabs and line ends in comments become escapes, long ones are cut.
        store_name: noted in the header for the reader; not checked.

    Raises:
        UserError: the file cannot be written.
    """
    target = Path(path)
    name = f"\tstore={_one_line(store_name)[:1000]}" if store_name else ""
    counts = f"images={edits.images}\tidentities={edits.identities}\tchanges={len(edits)}"
    try:
        with replacing(target) as file:
            file.write(f"{_FORMAT}\t{counts}{name}\n".encode("utf-8", "backslashreplace"))
            for start in range(0, len(edits), _WRITE_LINES):
                part = slice(start, start + _WRITE_LINES)
                texts = map(_comment, edits.comments[part]) if edits.comments is not None else repeat("")
                labels = ("-" if label == LEFT_OUT else label for label in edits.labels[part].tolist())
                lines = zip(edits.positions[part].tolist(), labels, texts, strict=False)
                file.write("".join(map("%d\t%s%s\n".__mod__, lines)).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None


def _comment(text: str) -> str:
    shown = _one_line(text)
    return "\t" + shown[: MAX_LINE_BYTES // 8] if shown else ""


def _one_line(text: str) -> str:
    return printable(text.encode("utf-8", "surrogatepass")).strip()


def compose(first: Edits, second: Edits) -> Edits:
    """Join two lists about the same data set into one, e.g. cleaning and noise.

    An image that either leaves out is left out; else the label of `second` counts where it names the image. (A list made for
    an `EditedStore` is about other positions: put an `EditedStore` over it instead.)

    Raises:
        UserError: the two are about data sets of other counts.
    """
    if (first.images, first.identities) != (second.images, second.identities):
        raise UserError(
            f"edit lists about {first.images} images of {first.identities} identities and about {second.images} of "
            f"{second.identities} cannot be joined: both must be about the same data"
        )
    positions = np.union1d(first.positions, second.positions)
    labels = np.empty(len(positions), np.int64)
    of_first = np.searchsorted(positions, first.positions)
    of_second = np.searchsorted(positions, second.positions)
    labels[of_first] = first.labels
    labels[of_second] = second.labels
    labels[of_first[first.labels == LEFT_OUT]] = LEFT_OUT
    comments: list[str] | None = None
    if first.comments is not None or second.comments is not None:
        comments = [""] * len(positions)
        for places, edits in ((of_first, first), (of_second, second)):
            for place, text in zip(places.tolist(), edits.comments or (), strict=False):
                comments[place] = f"{comments[place]}; {text}" if comments[place] and text else comments[place] or text
    return Edits(first.images, first.identities, positions, labels, comments)


class EditedStore(StoreView):
    """A store as an edit list describes it: the images that are left, renumbered; labels dense again, in their order.

    An identity that loses its images vanishes, and every later label moves up. Memory: the edits, 8 bytes per identity, and 8
    per image left out or left, whichever are fewer. The identity index, 8 bytes per image left, is built when first asked for
    and is not pickled.

    Args:
        store: the data; its positions must be those the list was made for.
        edits: from `read_edits`, cleaning or a noise generator.
        name: for messages; None: the store's name and "(edited)".

    Raises:
        UserError: the list is about data of other counts, or leaves no image.
    """

    def __init__(self, store: Store, edits: Edits, *, name: str | None = None) -> None:
        edits.check(store)
        self.store, self.stores = store, (store,)
        self.name = f"{store.name} (edited)" if name is None else name
        out = edits.positions[edits.labels == LEFT_OUT]
        if len(out) == len(store):
            raise UserError(f"{store.name}: the edit list leaves none of its {len(store)} images")
        self._length = len(store) - len(out)
        # Rank of each left-out image among those left: position p of the view is p + (left-out ones of rank <= p) below.
        self._gaps = out - np.arange(len(out), dtype=np.int64)
        self._left: Int64 | None = None
        if self._length < len(out):
            left = np.ones(len(store), np.bool_)
            left[out] = False
            self._left, self._gaps = np.flatnonzero(left), out[:0]
        moved = edits.labels != LEFT_OUT
        self._moved, self._moved_labels = edits.positions[moved], edits.labels[moved]
        self._used = _used_labels(store.identities, store.labels(edits.positions), self._moved_labels)

    @cached_property
    def identities(self) -> IdentityIndex:
        """The identity index of the images that are left, built on first use."""
        labels = self.store.identities.labels()
        labels[self._moved] = self._moved_labels
        if self._left is not None:
            labels = labels[self._left]
        elif len(self._gaps):
            labels = np.delete(labels, self._gaps + np.arange(len(self._gaps), dtype=np.int64))
        return IdentityIndex.from_labels(self._dense(labels), identities=len(self._used))

    @property
    def ignored(self) -> dict[str, int]:
        """What the store ignored, and `left_out`: what the list leaves out."""
        below: dict[str, int] = getattr(self.store, "ignored", {})
        return {**below, "left_out": below.get("left_out", 0) + len(self.store) - self._length}

    @property
    def notes(self) -> list[str]:
        """The store's notes."""
        return list(getattr(self.store, "notes", ()))

    def __len__(self) -> int:
        """Return the number of images left."""
        return self._length

    def positions_in_store(self, positions: npt.ArrayLike) -> Int64:
        """Return where images of the view lie in the store: int64, shaped as `positions`.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        asked = checked_positions(positions, self._length)
        if self._left is not None:
            return np.asarray(self._left[asked], np.int64)
        return asked + np.searchsorted(self._gaps, asked, side="right")

    def source_of(self, positions: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return 0, the number of the one store, and `positions_in_store`."""
        below = self.positions_in_store(positions)
        return np.zeros_like(below), below

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the edited labels of positions: int64."""
        below = self.positions_in_store(positions)
        labels = np.array(self.store.labels(below), np.int64)
        if len(self._moved):
            rows = np.minimum(np.searchsorted(self._moved, below), len(self._moved) - 1)
            labels = np.where(self._moved[rows] == below, self._moved_labels[rows], labels)
        return self._dense(labels)

    def _dense(self, edited: Int64) -> Int64:
        if not len(self._used) or self._used[-1] == len(self._used) - 1:
            return edited
        return np.searchsorted(self._used, edited).astype(np.int64, copy=False)

    def identity_name(self, label: int) -> str:
        """Return the identity's name in the store, or "new-<label in the list>" for one that the list made."""
        edited = int(self._used[checked_label(label, len(self._used))])
        return self.store.identity_name(edited) if edited < len(self.store.identities) else f"new-{edited}"

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities."""
        below = self._used[labels]
        old = below < len(self.store.identities)
        if old.all():
            return names_of(self.store, below)
        made = NameTable.pack(f"new-{label}".encode() for label in below[~old].tolist())
        return joined_names([np.flatnonzero(old), np.flatnonzero(~old)], [names_of(self.store, below[old]), made])

    def __repr__(self) -> str:
        """Return the store and what the list does to it."""
        out = len(self.store) - self._length
        return f"EditedStore({self.store!r}, {out:,} left out, {len(self._moved):,} relabelled)"


def _used_labels(index: IdentityIndex, before: Int64, after: Int64) -> Int64:
    """Labels that have an image after the edits, rising; `before`: of all changed images, `after`: of those not left out."""
    counts = index.counts()
    counts -= np.bincount(before, minlength=len(index))
    old = after < len(index)
    counts += np.bincount(after[old], minlength=len(index))
    return np.concatenate([np.flatnonzero(counts), np.unique(after[~old])])
