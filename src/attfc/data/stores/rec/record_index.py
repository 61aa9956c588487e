"""The index of a RecordIO file: where each image's record begins and whose it is. `record_layouts` makes it.

Kept: 12 bytes per image, 8 more for the key in im2rec files, and 24 bytes per identity, all mapped.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.data.index import IdentityIndex, open_array
from attfc.data.people.name_table import printable
from attfc.errors import UserError
from attfc.typing import Int64

__all__ = ["IGNORED", "RecordIndex", "open_record_index", "save_record_index"]

IGNORED = ("unowned_images", "empty_identities", "other_records")
_NONE: Int64 = np.zeros(0, np.int64)
_PLAIN = ("layout", "compare_labels", "ignored", "notes", "rec_bytes", "mtime_ns")


@dataclass(frozen=True)
class RecordIndex:
    """Where the images of a `.rec` file lie; images are numbered identity by identity.

    Attributes:
        index: the identity index; position = slot.
        offsets: int64 (images,) the byte at which each image's record begins.
        spans: uint32 (images,) bytes from there to where the next listed record begins.
        keys: int64 (images,) the records' keys; None: they follow from first_keys.
        first_keys: int64 (identities,) the key of each identity's first image, whose keys are consecutive; empty if keys are held.
        numbers: int64 (identities,) each identity's number in the file, which need not be dense.
        layout: "insightface" or "im2rec".
        compare_labels: whether an image's own label must be its identity's number.
        ignored: what was left out, by kind.
        notes: sentences about oddities that do no harm.
        rec_bytes, mtime_ns: size and time of the `.rec` file.
        folder: where the arrays are mapped from; None: memory.
    """

    index: IdentityIndex
    offsets: Int64
    spans: npt.NDArray[np.uint32]
    keys: Int64 | None
    first_keys: Int64
    numbers: Int64
    layout: str
    compare_labels: bool
    ignored: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rec_bytes: int = 0
    mtime_ns: int = 0
    folder: Path | None = None

    def key(self, position: int) -> int:
        """Return the key of an image's record."""
        if self.keys is not None:
            return int(self.keys[position])
        label = int(self.index.offsets.searchsorted(position, side="right")) - 1
        return int(self.first_keys[label]) + position - int(self.index.offsets[label])


def save_record_index(found: RecordIndex, draft: Path) -> None:
    """Write an index into an existing folder."""
    found.index.save(draft)
    arrays: dict[str, npt.NDArray[Any]] = {
        "record_offsets": found.offsets,
        "record_spans": found.spans,
        "numbers": found.numbers,
        **({"first_keys": found.first_keys} if found.keys is None else {"record_keys": found.keys}),
    }
    for name, values in arrays.items():
        np.save(draft / f"{name}.npy", values, allow_pickle=False)
    about = {"keys": found.keys is not None} | {name: getattr(found, name) for name in _PLAIN}
    (draft / "about.json").write_text(json.dumps(about), "utf-8")


def open_record_index(folder: Path) -> RecordIndex:
    """Map what `save_record_index` wrote; nothing kept per image is read.

    Raises:
        UserError: it is damaged: it may have come with somebody's data set.
    """
    try:
        with open(folder / "about.json", "rb") as file:
            about = json.loads(file.read(1 << 20))
        found = RecordIndex(
            IdentityIndex.open(folder, consecutive=True),
            open_array(folder / "record_offsets.npy", np.int64),
            open_array(folder / "record_spans.npy", np.uint32),
            open_array(folder / "record_keys.npy", np.int64) if about["keys"] else None,
            _NONE if about["keys"] else open_array(folder / "first_keys.npy", np.int64),
            open_array(folder / "numbers.npy", np.int64),
            printable(str(about["layout"]).encode()),
            bool(about["compare_labels"]),
            {kind: int(about["ignored"][kind]) for kind in IGNORED},
            [printable(str(note).encode()) for note in about["notes"]],
            int(about["rec_bytes"]),
            int(about["mtime_ns"]),
            folder,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder}: damaged record index ({error}); delete it to have it rebuilt") from None
    images, identities = found.index.images, len(found.index)
    per_image = len(found.offsets), len(found.spans), images if found.keys is None else len(found.keys)
    per_identity = len(found.numbers), identities if found.keys is not None else len(found.first_keys)
    if set(per_image) != {images} or set(per_identity) != {identities} or not bool((found.index.counts() > 0).all()):
        raise UserError(
            f"{folder}: damaged record index (its arrays contradict each other); delete it to have it rebuilt"
        )
    return found
