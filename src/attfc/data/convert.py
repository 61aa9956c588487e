"""Conversion of any store into a packed folder, RecordIO or an image folder. Lossless: the images' bytes are not touched.

Images are taken identity by identity in the order of the store's index, some 8 MiB at once, so memory does not depend on the
data. What cannot be read is left out, counted and listed; bytes that can be read but not decoded are kept unless
`check=True`. A conversion that was killed, or ran out of disk, continues where it stopped. Cost: one read and one write of
everything; with `check` also a decode.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from attfc.data.images import BrokenImageError, decode_image, reason_of
from attfc.data.index import spread
from attfc.data.stores.folder import EXTENSIONS, FolderStore, refuse_links_out
from attfc.data.stores.folder_writer import FolderWriter
from attfc.data.stores.list_file import ListStore
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.packed.packed_writer import PackedWriter
from attfc.data.stores.store import Store
from attfc.data.stores.writer import LEFT_OUT, StoreWriter
from attfc.errors import UserError, nearest
from attfc.typing import Json, PathLike, Progress

__all__ = ["Conversion", "convert_store"]

KINDS = ("packed", "rec", "folder")

Encoded = bytes | Exception

_CHUNK_BYTES = 8 << 20
_CHUNK_IMAGES = 512
_EXAMPLES = 20
_SAMPLES = 4096


@dataclass
class Conversion:
    """What `convert_store` did.

    Attributes:
        kind, destination: as asked.
        images, identities, encoded_bytes: what the destination holds.
        left_out: images of the source that could not be read (or, with `check`, decoded).
        examples: "where: reason" of the first 20 of those left out in this run.
        left_out_file: the list of all of them: position, where, reason, tab separated; None if there are none.
        continued_at: source identities that an earlier, unfinished run had done.
        notes: sentences for the user.
    """

    kind: str
    destination: Path
    images: int = 0
    identities: int = 0
    encoded_bytes: int = 0
    left_out: int = 0
    examples: list[str] = field(default_factory=list)
    left_out_file: Path | None = None
    continued_at: int = 0
    notes: list[str] = field(default_factory=list)


def convert_store(
    store: Store,
    destination: PathLike,
    *,
    kind: str = "packed",
    progress: Progress | None = None,
    check: bool = False,
    shard_bytes: int = 1 << 30,
    keep_names: bool = True,
    follow_links: bool = False,
    give_up_after: int = 1000,
    sync_bytes: int | None = None,
) -> Conversion:
    """Convert a store; called again after a kill or a full disk, it continues (kind="rec" begins anew).

    Args:
        store: the source, of any kind.
        destination: the folder to make: missing, empty, or an unfinished conversion of the same source and options.
        kind: "packed" (this project's format), "rec" (`train.rec`, `train.idx`, `property` in the InsightFace layout, `train.names`), or
            "folder" (`destination/<identity>/<image>`).
        progress: called as (images done, images of the source).
        check: decode every image and leave out those that cannot be decoded.
        shard_bytes: packed: the size from which a shard is closed.
        keep_names: packed: keep the images' file names, so that they come back with kind="folder"; rec: keep the identities'
            names beside the records.
        follow_links: also take images that links reach outside the source's folder; False refuses such a folder.
        give_up_after: stop after so many unreadable images in a row: the source itself has gone.
        sync_bytes: images' bytes after which progress is made durable; None: 64 MiB packed, 256 MiB folder.

    Returns:
        Conversion: counts, what was left out, notes.

    Raises:
        UserError: the destination holds something else, is a finished conversion, or lies in the source. The source has no image, has
            links out of its folder, has changed since the conversion began, or cannot be read. The disk is full or fails.
    """
    target = Path(os.path.abspath(destination))
    if kind not in KINDS:
        raise UserError(f"kind = {kind!r}: use one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if store.identities.images == 0:
        raise UserError(f"{store.name}: holds no image: nothing to convert")
    _check_apart(store, target)
    if not follow_links:
        refuse_links_out(store)
    with _writer(store, target, kind, check, shard_bytes, keep_names) as writer:
        writer.sync_bytes = sync_bytes or writer.sync_bytes
        result = Conversion(kind, target, continued_at=writer.done if writer.continued else 0)
        if not writer.finished:
            _copy(store, writer, result, progress, check, give_up_after)
            writer.finish()
    result.images, result.identities = writer.images, writer.identities
    result.encoded_bytes, result.left_out = writer.encoded_bytes, writer.left_out_images
    if result.left_out:
        result.left_out_file = target / LEFT_OUT
        result.notes.append(f"{result.left_out:,} images could not be taken and are left out: {result.left_out_file}")
    if writer.left_out_identities:
        result.notes.append(
            f"{writer.left_out_identities:,} identities without an image are left out: later labels are smaller than in the source"
        )
    result.notes += writer.notes()
    return result


def _writer(store: Store, target: Path, kind: str, check: bool, shard_bytes: int, keep_names: bool) -> StoreWriter:
    if kind == "rec":
        from attfc.data.stores.rec.record_writer import RecordSetWriter  # not needed by those who pack

        return RecordSetWriter(target, store.name, len(store.identities), store.identity_name if keep_names else None)
    same: Json = {"source_digest": source_digest(store), "options": {"check": check}}
    if kind == "folder":
        names = [identity_name_bytes(store, label) for label in range(len(store.identities))]
        return FolderWriter(target, identity_names=names, **same)
    first = int(store.identities.of(int(np.argmax(store.identities.counts() > 0)))[0])
    image_names = keep_names and bool(image_name(store, first))
    return PackedWriter(target, source=store.name, shard_bytes=shard_bytes, image_names=image_names, **same)


def _copy(
    store: Store, writer: StoreWriter, result: Conversion, progress: Progress | None, check: bool, give_up_after: int
) -> None:
    index = store.identities
    at, current, failures = int(index.offsets[writer.done]), writer.done, 0
    if progress is not None:
        progress(at, index.images)

    def begin(label: int) -> None:
        if label < len(index):
            writer.start_identity(label, identity_name_bytes(store, label))

    def go_on(label: int) -> None:
        """End identities up to the one of this label, and begin that."""
        nonlocal current
        while current < label:
            current += 1
            writer.end_identity(current)
            begin(current)

    begin(current)
    for block in _blocks(store, current):
        for label, position, encoded in block:
            go_on(label)
            reason = _reason(encoded, check, writer)
            if reason is None:
                writer.add(cast(bytes, encoded), image_name(store, position))
                failures = 0
                continue
            # Bytes that arrive but do not decode say nothing about whether the source is there.
            failures += isinstance(encoded, Exception)
            if failures >= give_up_after:
                raise UserError(
                    f"{store.name}: {failures:,} images in a row cannot be read (the last: {store.where(position)}: {reason}): "
                    f"check that the source is there{writer.again}"
                )
            writer.leave_out(position, store.where(position), reason)
            if len(result.examples) < _EXAMPLES:
                result.examples.append(f"{store.where(position)}: {reason}")
        at += len(block)
        if progress is not None:
            progress(at, index.images)
    go_on(len(index))


def _reason(encoded: Encoded, check: bool, writer: StoreWriter) -> str | None:
    """Why an image is left out; None: it is not."""
    if isinstance(encoded, Exception):
        return reason_of(encoded) if isinstance(encoded, OSError) else str(encoded)
    reason = writer.refusal(encoded)
    if check and reason is None:
        try:
            decode_image(encoded)
        except BrokenImageError as error:
            return str(error)
    return reason


def _blocks(store: Store, first: int) -> Iterator[list[tuple[int, int, Encoded]]]:
    """Yield (label, position, bytes or error) of every image from identity `first` on, in the order of the index."""
    index = store.identities
    slot, end = int(index.offsets[first]), index.images
    count = 16
    while slot < end:
        stop = min(slot + count, end)
        slots = np.arange(slot, stop)
        positions = index.positions_of_slots(slots).tolist()
        encoded = store.read_many(positions)
        size = sum(len(image) for image in encoded if not isinstance(image, Exception))
        yield list(zip(index.labels_of_slots(slots).tolist(), positions, encoded, strict=True))
        slot = stop
        count = min(max(_CHUNK_BYTES * len(encoded) // max(size, 1), 1), 2 * count, _CHUNK_IMAGES)


def image_name(store: Store, position: int) -> bytes:
    """Return the image's file name where the store has one, else b"" (a record, a rendered face)."""
    if isinstance(store, FolderStore):
        return os.path.basename(store.image_path(position))
    if isinstance(store, PackedStore):
        return store.image_name(position)
    if isinstance(store, ListStore):
        return os.path.basename(store.image_path(position).replace(b"\\", b"/"))
    last = store.where(position).replace("\\", "/").rpartition("/")[2].encode("utf-8", "backslashreplace")
    return last if last.lower().endswith(EXTENSIONS) else b""


def identity_name_bytes(store: Store, label: int) -> bytes:
    """Return the identity's name as bytes: the folder's own where it need not be UTF-8."""
    if isinstance(store, FolderStore):
        return os.path.basename(os.path.dirname(store.image_path(int(store.identities.of(label)[0]))))
    if isinstance(store, PackedStore):
        return store.identity_name_bytes(label)
    return store.identity_name(label).encode("utf-8", "backslashreplace")


def source_digest(store: Store) -> str:
    """Name a source's state: its counts, how many images each identity has, and 4,096 evenly spread images' places and labels."""
    index = store.identities
    hasher = hashlib.blake2b(f"{index.images} {len(index)} ".encode(), digest_size=16)
    hasher.update(np.ascontiguousarray(index.offsets, dtype="<i8").tobytes())
    positions = spread(len(store), _SAMPLES)
    for position, label in zip(positions.tolist(), store.labels(positions).tolist(), strict=True):
        hasher.update(f"{position} {label} {store.where(position)}\0".encode("utf-8", "backslashreplace"))
    return hasher.hexdigest()


def _check_apart(store: Store, target: Path) -> None:
    """Refuse the source as destination, and one in an image folder: it would become one of the source's identities."""
    for below in getattr(store, "stores", ()):  # of an edited or a combined store
        _check_apart(below, target)
    real = Path(os.path.realpath(target))
    for place in (getattr(store, attribute, None) for attribute in ("root", "path", "folder")):
        if isinstance(place, Path):
            source = Path(os.path.realpath(place))
            if real == source or (isinstance(store, FolderStore) and source in real.parents):
                raise UserError(f"{target}: lies in the source {place}: give a destination outside of it")
