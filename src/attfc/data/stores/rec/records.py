"""MXNet RecordIO as a store: `train.rec` with `train.idx`, in the InsightFace and the im2rec layout, without MXNet.

Images are numbered identity by identity; of each, 12 bytes of index are mapped (`record_index`), and one `pread` fetches the record.
What that read shows is compared each time: the magic, the length against the place where the next record begins, the
image's own label against its identity, and the file's size and time against those of the index. A record that was overwritten, moved
or cut off is therefore a broken image and not somebody else's face.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex, checked_label, checked_positions
from attfc.data.index_cache import IndexCache
from attfc.data.people.name_table import NameTable, printable
from attfc.data.stores.rec.record_file import (
    FRAME,
    HEADER,
    BadRecordError,
    RecordFile,
    read_header,
)
from attfc.data.stores.rec.record_index import RecordIndex, open_record_index, save_record_index
from attfc.data.stores.rec.record_layouts import LabelSource, build_record_index
from attfc.data.stores.rec.record_names import read_record_names
from attfc.data.stores.store import IndexedStore
from attfc.errors import UserError, nearest
from attfc.typing import Int64, PathLike, Progress

__all__ = ["RecordStore", "digest_of"]

_FORMAT = "attfc record index 1"
_SOURCES = ("identities", "images")


class RecordStore(IndexedStore):
    """A Store over a `.rec` file.

    Args:
        path: the file, or a folder that holds `train.rec` or a single `.rec`. `train.idx` beside it is used; without it the
            frames are walked. `property` is compared and never relied on.
        label_source: for the InsightFace layout, whose labels count: "identities": the identity records' ranges; "images": each
            image's own label, as arcface_torch does (one pass over all headers). The other layout has own labels only.
        cache: folder for the index; None: `attfc` in the user's cache folder; where nothing can be written, memory.
        progress: called as (done, total), from the beginning again for each stage; not called when the cached index is used.

    Raises:
        UserError: no such file, damaged records or index, ranges or labels that contradict each other.
    """

    length_slack = 11  # two labels of 4 bytes, and the padding to 4
    file_kind = RecordFile
    _file: RecordFile

    def __init__(
        self,
        path: PathLike,
        *,
        label_source: LabelSource = "identities",
        cache: PathLike | None = None,
        progress: Progress | None = None,
    ) -> None:
        if label_source not in _SOURCES:
            hint = nearest(str(label_source), _SOURCES)
            raise UserError(f"label_source = {label_source!r}: use one of {', '.join(_SOURCES)}{hint}")
        found = _find(Path(os.path.abspath(path)))
        idx = found.with_suffix(".idx")
        digest = digest_of([found, idx, found.with_name("property")], f"{_FORMAT} {label_source}")
        self._open(
            found,
            IndexCache(found, "records", digest, cache=cache),
            lambda: build_record_index(self._file, idx, label_source=label_source, progress=progress),
        )
        self._names_and_note  # noqa: B018  (names that cannot be understood are an error now)

    def _open(self, path: Path, places: IndexCache, build: Callable[[], RecordIndex]) -> None:
        """Open the file, and its index from the cache or by building it."""
        self.path = path
        self._file = self.file_kind(path)

        def whole() -> RecordIndex:
            built = build()
            if self._file.changed():
                raise UserError(f"{self.path}: was written to while it was being indexed; open it when it is complete")
            return built

        self._index = places.get(open_record_index, whole, save_record_index, self._is_current)

    def _is_current(self, index: RecordIndex) -> bool:
        """Whether an index is about the open file."""
        return (index.rec_bytes, index.mtime_ns) == (self._file.size, self._file.mtime_ns)

    @cached_property
    def _names_and_note(self) -> tuple[NameTable | None, str | None]:
        """What `train.names` says; a worker reads it when it first names somebody."""
        return read_record_names(self.path, self._file.size, self._index.numbers)

    @property
    def folder(self) -> Path:
        """The folder of the `.rec` file."""
        return self.path.parent

    @property
    def name(self) -> str:
        """The folder's name for `train.rec` and `data.mdb`, else the file's."""
        name = self.folder.name if self.path.name in ("train.rec", "data.mdb") and self.folder.name else self.path.stem
        return printable(name)

    @property
    def identities(self) -> IdentityIndex:
        """The identity index; position = slot, since images are numbered identity by identity."""
        return self._index.index

    @property
    def ignored(self) -> dict[str, int]:
        """What was left out: unowned_images (in no identity's range), empty_identities, other_records (beyond both)."""
        return dict(self._index.ignored)

    @property
    def notes(self) -> list[str]:
        """Sentences about oddities that do no harm: a `property` that disagrees, a missing `.idx`, names of another file."""
        _, note = self._names_and_note
        return [*self._index.notes, *([note] if note else [])]

    @property
    def layout(self) -> str:
        """Either "insightface" or "im2rec"."""
        return self._index.layout

    @property
    def cache(self) -> Path | None:
        """Folder of the cached index; None if it is held in memory."""
        return self._index.folder

    def read_many(self, positions: Sequence[int]) -> list[bytes | Exception]:
        """Return each record's image, or the error met; in the order of the file, which is checked for changes once.

        The error is an OSError where the file cannot be read. It is a BrokenImageError where the record is damaged, empty, or of another
        identity, or the file was changed since it was opened.

        Raises:
            IndexError: a position outside 0 ... len - 1.
        """
        asked = checked_positions(positions, len(self))
        labels = self.labels(asked).tolist()
        found: list[bytes | Exception] = [b""] * len(asked)
        for row in self._index.offsets[asked].argsort(kind="stable").tolist():
            try:
                found[row] = self._image(int(asked[row]), labels[row])
            except (OSError, BrokenImageError) as error:
                found[row] = error
        if self._file.changed():  # after reading: what was written before is seen in the file's time
            stale = BrokenImageError(f"{self.path.name} was written to while in use: start again when it is complete")
            return [image if isinstance(image, Exception) else stale for image in found]
        return found

    def byte_lengths(self, positions: Int64) -> Int64:
        """Return the byte length of records behind frame and header: up to two labels and the padding to 4 are counted in."""
        return np.asarray(self._index.spans[positions], np.int64) - (FRAME.size + HEADER.size)

    def _image(self, position: int, label: int) -> bytes:
        index = self._index
        try:
            buffer, begin, end = self._file.locate(int(index.offsets[position]), int(index.spans[position]))
            _, own, _, image_at = read_header(buffer, begin, end)
        except BadRecordError as error:
            raise BrokenImageError(str(error)) from None
        if index.compare_labels and own != index.numbers[label]:
            raise BrokenImageError(f"the record's own label {own:g} is not {int(index.numbers[label])}, its identity")
        if image_at >= end:
            raise BrokenImageError("the record holds no image")
        return buffer[image_at:end]

    def where(self, position: int) -> str:
        """Return "train.rec record KEY at byte OFFSET"."""
        checked_positions(position, len(self))
        name = printable(self.path.name)
        return f"{name} record {self._index.key(position)} at byte {int(self._index.offsets[position])}"

    def identity_name(self, label: int) -> str:
        """Return the identity's name where `train.names` has one, else its number in the file, which need not be dense."""
        checked_label(label, len(self._index.numbers))
        names, _ = self._names_and_note
        name = b"" if names is None else names[label]
        return printable(name) if name else str(int(self._index.numbers[label]))

    def identity_names(self, labels: Int64) -> NameTable:
        """Return the names of many identities, or their numbers in the file."""
        known, _ = self._names_and_note
        names = NameTable.of(self._index.numbers if known is None else known, labels)
        if np.diff(names.offsets).all():  # of some records a file of names may say nothing
            return names
        return NameTable.pack(
            self.identity_name(label).encode("utf-8", "backslashreplace") for label in labels.tolist()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths alone where the index is on disk: a worker maps the same pages."""
        return {"path": self.path, "index": self._index.folder or self._index, "images": len(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reopen what `__getstate__` left."""
        self.path, index = state["path"], state["index"]
        self._file = self.file_kind(self.path)
        self._index = index if isinstance(index, RecordIndex) else open_record_index(index)
        if not self._is_current(self._index):
            raise UserError(f"{self.path}: was replaced or written to while a worker started; start again")
        if len(self) != state["images"]:
            raise UserError(f"{index}: the index changed while a worker started; start again")


def _find(path: Path) -> Path:
    """Return the `.rec` file that is meant."""
    if path.suffix == ".idx" and path.with_suffix(".rec").is_file():
        return path.with_suffix(".rec")
    if not path.is_dir():
        return path
    if (path / "train.rec").is_file():
        return path / "train.rec"
    files = sorted(entry.name for entry in path.iterdir() if entry.suffix == ".rec" and entry.is_file())
    if len(files) == 1:
        return path / files[0]
    if files:
        raise UserError(f"{path}: holds {len(files)} .rec files ({', '.join(files[:5])}): give the path of one")
    raise UserError(f"{path}: holds no .rec file")


def digest_of(files: list[Path], about: str) -> str:
    """Return 32 hexadecimal digits that name the state of some files (name, size, time) and what an index of them is `about`."""
    hasher = hashlib.blake2b(about.encode(), digest_size=16)
    for file in files:
        try:
            status = file.stat()
            hasher.update(f"\0{file.name} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        except OSError:
            hasher.update(b"\0missing")
    return hasher.hexdigest()
