"""The index of a RecordIO file: where each image's record begins and whose it is. `record_layouts` makes it.

Kept: 12 bytes per image, 8 more for the key in im2rec files, and 24 bytes per identity, all mapped.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, open_array
from attfc.data.index_cache import read_about
from attfc.data.people.name_table import printable
from attfc.errors import UserError
from attfc.typing import Array, Int64, Json

__all__ = ["IGNORED", "RecordIndex", "open_record_index", "save_record_index"]

IGNORED = ("unowned_images", "empty_identities", "other_records")
_PLAIN = ("layout", "compare_labels", "ignored", "notes", "rec_bytes", "mtime_ns")


@dataclass(frozen=True)
class RecordIndex:
    """Where the images of a `.rec` file lie; images are numbered identity by identity.

    Attributes:
        index: the identity index; position = slot.
        offsets: int64 (images,) the byte at which each image's record begins.
        spans: uint32 (images,) bytes from there to where the next listed record begins.
        numbers: int64 (identities,) each identity's number in the file, which need not be dense.
        layout: "insightface" or "im2rec".
        keys: int64 (images,) the records' keys; or, where those of an identity are consecutive, (identities,) the first of each.
        compare_labels: whether an image's own label must be its identity's number.
        ignored: what was left out, by kind.
        notes: sentences about oddities that do no harm.
        rec_bytes, mtime_ns: size and time of the `.rec` file.
        folder: where the arrays are mapped from; None: memory.
    """

    index: IdentityIndex
    offsets: Int64
    spans: npt.NDArray[np.uint32]
    numbers: Int64
    layout: str
    keys: Int64
    compare_labels: bool = True
    ignored: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rec_bytes: int = 0
    mtime_ns: int = 0
    folder: Path | None = None

    def key(self, position: int) -> int:
        """Return the key of an image's record."""
        if len(self.keys) == self.index.images:
            return int(self.keys[position])
        label = int(self.index.offsets.searchsorted(position, side="right")) - 1
        return int(self.keys[label]) + position - int(self.index.offsets[label])


def save_record_index(found: RecordIndex, draft: Path) -> None:
    """Write an index into an existing folder."""
    found.index.save(draft)
    each = len(found.keys) == found.index.images
    arrays: dict[str, Array] = {
        "record_offsets": found.offsets,
        "record_spans": found.spans,
        "numbers": found.numbers,
        "record_keys" if each else "first_keys": found.keys,
    }
    for name, values in arrays.items():
        np.save(draft / f"{name}.npy", values, allow_pickle=False)
    about = {"keys": each} | {name: getattr(found, name) for name in _PLAIN}
    (draft / "about.json").write_text(json.dumps(about), "utf-8")


def open_record_index(folder: Path) -> RecordIndex:
    """Map what `save_record_index` wrote; nothing kept per image is read.

    Raises:
        UserError: it is damaged: it may have come with somebody's data set.
    """

    def read(about: Json) -> RecordIndex:
        return RecordIndex(
            IdentityIndex.open(folder, consecutive=True),
            open_array(folder / "record_offsets.npy", np.int64),
            open_array(folder / "record_spans.npy", np.uint32),
            open_array(folder / "numbers.npy", np.int64),
            printable(str(about["layout"]).encode()),
            open_array(folder / ("record_keys.npy" if about["keys"] else "first_keys.npy"), np.int64),
            bool(about["compare_labels"]),
            {kind: int(about["ignored"][kind]) for kind in IGNORED},
            [printable(str(note).encode()) for note in about["notes"]],
            int(about["rec_bytes"]),
            int(about["mtime_ns"]),
            folder,
        )

    found = read_about(folder, "record", read)
    images, identities = found.index.images, len(found.index)
    lengths = [len(found.offsets), len(found.spans), len(found.numbers), len(found.keys)]
    fits = lengths in ([images, images, identities, images], [images, images, identities, identities])
    if not fits or not (found.index.counts() > 0).all():
        raise UserError(
            f"{folder}: damaged record index (its arrays contradict each other); delete it to have it rebuilt"
        )
    return found
