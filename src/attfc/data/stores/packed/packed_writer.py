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
from attfc.data.stores.writer import LEFT_OUT, UNFINISHED, ContinuedWriter, GrowingFile, replace_json
from attfc.errors import UserError
from attfc.files import crc32_of, sync_folder

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
        sync_bytes, sync_seconds: how much, and how long, a crash may cost.

    Raises:
        UserError: as `ContinuedWriter`, or the folder is a finished conversion.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        source: str,
        source_digest: str,
        shard_bytes: int = 1 << 30,
        image_names: bool = True,
        options: dict[str, Any] | None = None,
        sync_bytes: int = 64 << 20,
        sync_seconds: float = 60.0,
    ) -> None:
        if shard_bytes < 1:
            raise UserError(f"shard_bytes = {shard_bytes}: set it to 1 or more; the default is {1 << 30} (1 GiB)")
        self.source, self.shard_bytes, self.image_names = source, shard_bytes, image_names
        self._shards: list[int] = []  # their sizes; that of the last one as far as it is durable
        self._shard: GrowingFile | None = None
        begun_with = {
            "format": f"{FORMAT} {VERSION}, unfinished",
            "source_digest": source_digest,
            "shard_bytes": shard_bytes,
            "image_names": image_names,
            **(options or {}),
        }
        target = Path(os.path.abspath(folder))
        super().__init__(target, target, begun_with, sync_bytes, sync_seconds)

    def _check_entries(self, entries: set[str]) -> None:
        if UNFINISHED in entries:
            return
        if ABOUT in entries:
            raise UserError(
                f"{self.folder}: holds a finished conversion: delete it first, or give another folder for this one"
            )
        if entries:
            raise UserError(
                f"{self.folder}: holds other files ({printable(os.fsencode(min(entries)))} ...): give a folder that is empty or "
                "does not exist yet"
            )

    def _begin(self, state: dict[str, Any], sizes: dict[str, int]) -> None:
        try:
            self._shards = [self._whole(size) for size in state.get("shards", [])]
        except TypeError:
            raise self._damaged() from None
        self.encoded_bytes = sum(self._shards)
        if (self.folder / ABOUT).exists():
            self._end()
            return
        for name in PER_IDENTITY + PER_IMAGE + (IMAGE_NAMES if self.image_names else ()):
            file = self._files[name] = GrowingFile(self.folder / name, sizes.get(name, 0))
            if not file.size:
                file.append(npy_header(_DTYPES[name], 0) + bytes(8 * (name in _BEGIN_WITH_ZERO)))
        self._files[LEFT_OUT] = GrowingFile(self.folder / LEFT_OUT, sizes.get(LEFT_OUT, 0))
        for name in os.listdir(self.folder):
            if _SHARD.fullmatch(name) and int(name[6:-4]) >= len(self._shards):
                os.unlink(self.folder / name)
        for number, size in enumerate(self._shards):
            if self._shard is not None:
                self._shard.close()
            self._shard = GrowingFile(self.folder / shard_name(number), size)

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin an identity; `label` is its number in the source."""
        super().start_identity(label, name)
        self._name = name[:MAX_NAME_BYTES]

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Append one image of the identity at hand, with its file name if it has one."""
        files = self._files
        try:
            shard = self._shard
            if shard is None or shard.size >= self.shard_bytes * (2 if self._started else 1):
                shard = self._next_shard()
            shard.append(encoded)
            super().add(encoded)
            files[ENDS].append(self.encoded_bytes.to_bytes(8, "little"))
            files[CHECKSUMS].append(zlib.crc32(encoded).to_bytes(4, "little"))
            if self.image_names:
                self._add_name(IMAGE_NAMES, name[:MAX_NAME_BYTES])
        except OSError as error:
            raise self.failure(error) from None

    def _add_name(self, table: tuple[str, ...], name: bytes) -> None:
        data, ends = (self._files[file] for file in table)
        data.append(name)
        ends.append((data.size - HEADER_BYTES).to_bytes(8, "little"))

    def _next_shard(self) -> GrowingFile:
        if self._shard is not None:
            self._shard.sync()
            self._shards[-1] = self._shard.size
            self._shard.close()
        self._shard = GrowingFile(self.folder / shard_name(len(self._shards)))
        self._shards.append(0)
        return self._shard

    def end_identity(self, done: int) -> None:
        """End the identity at hand; without images it is left out."""
        if self._started:
            with self.failures():
                self._files[OFFSETS].append((self.images + self._started).to_bytes(8, "little"))
                self._add_name(PER_IDENTITY[1:], self._name)
        super().end_identity(done)

    def _state(self) -> dict[str, Any]:
        if self._shard is not None:
            self._shard.sync()
            self._shards[-1] = self._shard.size
        return {"shards": self._shards}

    def _finish(self) -> None:
        self._commit()
        arrays = [name for name in self._files if name != LEFT_OUT]
        for name in arrays:
            file = self._files[name]
            count = (file.size - HEADER_BYTES) // np.dtype(_DTYPES[name]).itemsize
            file.rewrite_start(npy_header(_DTYPES[name], count))
        about = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "identities": self.identities,
            "images": self.images,
            "image_names": self.image_names,
            "left_out": {"images": self.left_out_images, "identities": self.left_out_identities},
            "crc32": {name: crc32_of(self.folder / name) for name in arrays},
            "shards": self._shards,
        }
        if self._files[LEFT_OUT].size == 0:
            self._files[LEFT_OUT].path.unlink()
        replace_json(self.folder / ABOUT, about)
        self._end()

    def _end(self) -> None:
        """Remove the last sign of the conversion."""
        self._unfinished.unlink(missing_ok=True)
        sync_folder(self.folder)
        self.finished = True

    def close(self) -> None:
        """Close the files. Without `finish` the folder stays unfinished, to be continued."""
        super().close()
        if self._shard is not None:
            self._shard.close()
