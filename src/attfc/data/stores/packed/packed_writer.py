"""Writer of packed folders (`packed_store`): append-only, identity by identity, and continued after a kill (`ContinuedWriter`).

`packed.json` appears last, by rename: a folder that has it is whole. Cost: one pass, 12 bytes of index an image, no memory an image.
A shard is closed at the end of the identity with which it reaches `shard_bytes`; only an identity larger than a shard is
spread over several.
"""

import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.people.name_table import printable
from attfc.data.stores.packed.packed_format import (
    ABOUT,
    CHECKSUMS,
    ENDS,
    FORMAT,
    HEADER_BYTES,
    IMAGE_NAMES,
    MAX_NAME_BYTES,
    OFFSETS,
    PER_IDENTITY,
    PER_IMAGE,
    VERSION,
    npy_header,
    shard_name,
)
from attfc.data.stores.writer import LEFT_OUT, UNFINISHED, ContinuedWriter, replace_json
from attfc.errors import UserError
from attfc.files import crc32_of, sync, sync_folder
from attfc.typing import PathLike

__all__ = ["PackedWriter"]

_SHARD = re.compile(r"shard-[0-9]{5,}\.bin")
_DTYPES: dict[str, Any] = {
    OFFSETS: np.int64,
    ENDS: np.int64,
    CHECKSUMS: np.uint32,
    PER_IDENTITY[1]: np.uint8,
    PER_IDENTITY[2]: np.int64,
    IMAGE_NAMES[0]: np.uint8,
    IMAGE_NAMES[1]: np.int64,
}
_BEGIN_WITH_ZERO = (OFFSETS, ENDS, PER_IDENTITY[2], IMAGE_NAMES[1])


class PackedWriter(ContinuedWriter):
    """Writes a packed folder.

    Args:
        folder: the folder: missing, empty, or an unfinished one of the same source and options.
        source: the source's name, for people.
        source_digest: names the source's state; another one is not continued.
        shard_bytes: size at which a shard is closed.
        image_names: whether to keep image names.
        options: what else must not change between the runs.

    Raises:
        UserError: as `ContinuedWriter`, or the folder is a finished conversion.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        source: str,
        source_digest: str,
        shard_bytes: int = 1 << 30,
        image_names: bool = True,
        options: dict[str, Any] | None = None,
    ) -> None:
        if shard_bytes < 1:
            raise UserError(f"shard_bytes = {shard_bytes}: set it to 1 or more; the default is {1 << 30} (1 GiB)")
        self.source, self.shard_bytes, self.image_names = source, shard_bytes, image_names
        self._shards: list[str] = []
        begun_with = {
            "format": f"{FORMAT} {VERSION}, unfinished",
            "source_digest": source_digest,
            "shard_bytes": shard_bytes,
            "image_names": image_names,
            **(options or {}),
        }
        target = Path(os.path.abspath(folder))
        super().__init__(target, target, begun_with)

    def _check_entries(self, entries: set[str]) -> None:
        if UNFINISHED in entries:
            return
        if ABOUT in entries:
            raise UserError(
                f"{self.folder}: holds a finished conversion: delete it first, or give another folder for this one"
            )
        if entries:
            raise UserError(
                f"{self.folder}: holds other files ({printable(min(entries))} ...): give a folder that is empty or "
                "does not exist yet"
            )

    def _begin(self) -> None:
        begun = [name for name in self._sizes if _SHARD.fullmatch(name)]
        self.encoded_bytes = sum(self._sizes[name] for name in begun)
        if (self.folder / ABOUT).exists():
            self._end()
            return
        for name in PER_IDENTITY + PER_IMAGE + (IMAGE_NAMES if self.image_names else ()):
            self._grow(name, npy_header(_DTYPES[name], 0) + bytes(8 * (name in _BEGIN_WITH_ZERO)))
        self._grow(LEFT_OUT)
        for name in os.listdir(self.folder):
            if _SHARD.fullmatch(name) and name not in begun:
                os.unlink(self.folder / name)
        for _ in begun:
            self._next_shard()

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin an identity; `label` is its number in the source."""
        super().start_identity(label, name)
        self._name = name

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Append one image of the identity at hand, with its file name if it has one."""
        files = self._files
        most = self.shard_bytes * (2 if self._started else 1)
        with self.failures():
            if not self._shards or files[self._shards[-1]].tell() >= most:
                self._next_shard()
            files[self._shards[-1]].write(encoded)
            super().add(encoded)
            files[ENDS].write(self.encoded_bytes.to_bytes(8, "little"))
            files[CHECKSUMS].write(zlib.crc32(encoded).to_bytes(4, "little"))
            if self.image_names:
                self._add_name(IMAGE_NAMES, name)

    def _add_name(self, table: tuple[str, ...], name: bytes) -> None:
        data, ends = (self._files[file] for file in table)
        data.write(name[:MAX_NAME_BYTES])
        ends.write((data.tell() - HEADER_BYTES).to_bytes(8, "little"))

    def _next_shard(self) -> None:
        if self._shards:
            full = self._files.pop(self._shards[-1])
            sync(full)
            self._sizes[self._shards[-1]] = full.tell()
            full.close()
        self._shards.append(shard_name(len(self._shards)))
        self._grow(self._shards[-1])

    def end_identity(self, done: int) -> None:
        """End the identity at hand; without images it is left out."""
        if self._started:
            with self.failures():
                self._files[OFFSETS].write((self.images + self._started).to_bytes(8, "little"))
                self._add_name(PER_IDENTITY[1:], self._name)
        super().end_identity(done)

    def _finish(self) -> None:
        self._commit()
        arrays = [name for name in self._files if name in _DTYPES]
        for name in arrays:
            count = (self._sizes[name] - HEADER_BYTES) // np.dtype(_DTYPES[name]).itemsize
            self._files[name].seek(0)
            self._files[name].write(npy_header(_DTYPES[name], count))
            sync(self._files[name])
        about = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "identities": self.identities,
            "images": self.images,
            "image_names": self.image_names,
            "left_out": {"images": self.left_out_images, "identities": self.left_out_identities},
            "crc32": {name: crc32_of(self.folder / name) for name in arrays},
            "shards": [self._sizes[name] for name in self._shards],
        }
        if not self._sizes[LEFT_OUT]:
            (self.folder / LEFT_OUT).unlink()
        replace_json(self.folder / ABOUT, about)
        self._end()

    def _end(self) -> None:
        """Remove the last sign of the conversion."""
        self._unfinished.unlink(missing_ok=True)
        sync_folder(self.folder)
        self.finished = True
