"""Conversion of any store into a packed folder, RecordIO or an image folder. Lossless: the images' bytes are not touched.

Images are taken identity by identity in the order of the store's index, some 8 MiB at once, so memory does not depend on the
data. What cannot be read is left out, counted and listed; bytes that can be read but not decoded are kept unless
`check=True`. A conversion that was killed, or ran out of disk, continues where it stopped. Cost: one read and one write of
everything; with `check` also a decode.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from attfc.data.images import BrokenImageError, decode_image
from attfc.data.stores.folder import EXTENSIONS, FolderStore, refuse_links_out
from attfc.data.stores.folder_writer import FolderWriter
from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.data.stores.list_file import ListStore
from attfc.data.stores.packed.packed_store import LEFT_OUT, PackedStore
from attfc.data.stores.packed.packed_writer import PackedWriter
from attfc.data.stores.store import Store
from attfc.errors import UserError, nearest

__all__ = ["KINDS", "Conversion", "convert_store", "image_name", "source_digest"]

KINDS = ("packed", "rec", "folder")

Progress = Callable[[int, int], None]
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
    destination: str | os.PathLike[str],
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
        give_up_after: this many unreadable images in a row are no broken images but a source that has gone: stop.
        sync_bytes: images' bytes after which progress is made durable; None: 64 MiB packed, 256 MiB folder.

    Returns:
        Conversion: counts, what was left out, notes.

    Raises:
        UserError: the destination holds something else, is a finished conversion, or lies in the source; the source has no image,
            has links out of its folder, has changed since the conversion began, or cannot be read any more; the disk is full or fails.
    """
    target = Path(os.path.abspath(destination))
    if kind not in KINDS:
        raise UserError(f"kind = {kind!r}: use one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if store.identities.images == 0:
        raise UserError(f"{store.name}: holds no image: nothing to convert")
    _check_apart(store, target)
    if not follow_links:
        refuse_links_out(store)
    if kind == "rec":
        return _convert_to_records(store, target, progress, check, keep_names, give_up_after)
    sink = _sink(store, target, kind, check, shard_bytes, keep_names, sync_bytes)
    with sink:
        result = Conversion(kind, target, continued_at=sink.done if sink.continued else 0)
        if not sink.finished:
            _copy(store, sink, result, progress, check, give_up_after)
            sink.finish()
    result.images, result.identities = sink.images, sink.identities
    result.encoded_bytes = sink.encoded_bytes
    result.left_out = sink.left_out_images
    if sink.left_out_images:
        result.left_out_file = target / LEFT_OUT
    result.notes = _left_out_notes(sink.left_out_images, sink.left_out_identities, result.left_out_file)
    if isinstance(sink, FolderWriter):
        if sink.renamed_identities:
            result.notes.append(
                f"{sink.renamed_identities:,} identities got a folder of another name, because theirs is taken or is no file name"
            )
        if sink.unknown_formats:
            result.notes.append(f"{sink.unknown_formats:,} images of no known format are kept and named .jpg")
    return result


def _sink(
    store: Store, target: Path, kind: str, check: bool, shard_bytes: int, keep_names: bool, sync_bytes: int | None
) -> PackedWriter | FolderWriter:
    durable = {} if sync_bytes is None else {"sync_bytes": sync_bytes}
    if kind == "folder":
        return FolderWriter(
            target,
            source_digest=source_digest(store),
            identity_names=_identity_names(store),
            options={"check": check},
            **durable,
        )
    first = int(store.identities.of(int(np.argmax(store.identities.counts() > 0)))[0])
    return PackedWriter(
        target,
        source=store.name,
        source_digest=source_digest(store),
        shard_bytes=shard_bytes,
        image_names=keep_names and bool(image_name(store, first)),
        options={"check": check},
        **durable,
    )


class _Sink(Protocol):
    """What `_copy` writes to: `PackedWriter`, `FolderWriter`."""

    done: int

    def start_identity(self, label: int, name: bytes) -> None: ...
    def add(self, encoded: bytes, name: bytes = b"") -> None: ...
    def leave_out(self, position: int, where: str, reason: str) -> None: ...
    def end_identity(self, done: int) -> None: ...


def _copy(
    store: Store, sink: _Sink, result: Conversion, progress: Progress | None, check: bool, give_up_after: int
) -> None:
    index = store.identities
    images = index.images
    at = int(index.offsets[sink.done])
    current = first = sink.done
    failures = 0
    if progress is not None:
        progress(at, images)
    if first < len(index):
        sink.start_identity(first, identity_name_bytes(store, first))
    for block in _blocks(store, first):
        for label, position, encoded in block:
            while current < label:
                sink.end_identity(current + 1)
                current += 1
                sink.start_identity(current, identity_name_bytes(store, current))
            reason = _reason(encoded, check)
            if reason is None:
                sink.add(cast(bytes, encoded), image_name(store, position))
                failures = 0
                continue
            # Bytes that arrive but do not decode say nothing about whether the source is there.
            failures += isinstance(encoded, Exception)
            if failures >= give_up_after:
                raise UserError(
                    f"{store.name}: {failures:,} images in a row cannot be read (the last: {store.where(position)}: {reason}): "
                    "check that the source is there, then give the same command again, it continues"
                )
            sink.leave_out(position, store.where(position), reason)
            if len(result.examples) < _EXAMPLES:
                result.examples.append(f"{store.where(position)}: {reason}")
        at += len(block)
        if progress is not None:
            progress(at, images)
    while current < len(index):
        sink.end_identity(current + 1)
        current += 1
        if current < len(index):
            sink.start_identity(current, identity_name_bytes(store, current))


def _reason(encoded: Encoded, check: bool) -> str | None:
    """Why an image is left out; None: it is not."""
    if isinstance(encoded, OSError):
        return f"cannot be read ({encoded.strerror or encoded})"
    if isinstance(encoded, Exception):
        return str(encoded)
    if len(encoded) > MAX_FILE_BYTES:
        return f"image of {len(encoded):,} bytes, more than the limit of {MAX_FILE_BYTES:,}"
    if check:
        try:
            decode_image(encoded)
        except BrokenImageError as error:
            return str(error)
    return None


def _blocks(store: Store, first: int) -> Iterator[list[tuple[int, int, Encoded]]]:
    """Yield (label, position, bytes or error) of every image from identity `first` on, in the order of the index."""
    index = store.identities
    slot, end = int(index.offsets[first]), index.images
    count = 16
    while slot < end:
        stop = min(slot + count, end)
        labels = index.labels_of_slots(np.arange(slot, stop))
        positions: list[int] = []
        for label in range(int(labels[0]), int(labels[-1]) + 1):
            start = int(index.offsets[label])
            positions += index.of(label)[max(slot - start, 0) : stop - start].tolist()
        encoded = store.read_many(positions)
        size = sum(len(image) for image in encoded if not isinstance(image, Exception))
        yield list(zip(labels.tolist(), positions, encoded, strict=True))
        slot = stop
        count = min(max(_CHUNK_BYTES * len(encoded) // max(size, 1), 1), 2 * count, _CHUNK_IMAGES)


def image_name(store: Store, position: int) -> bytes:
    """Return the image's file name where the store has one, else b"" (a record, a rendered face)."""
    if isinstance(store, FolderStore):
        return os.path.basename(store.path(position))
    if isinstance(store, PackedStore):
        return store.image_name(position)
    if isinstance(store, ListStore):
        return os.path.basename(store.image_path(position).replace(b"\\", b"/"))
    last = store.where(position).replace("\\", "/").rpartition("/")[2].encode("utf-8", "backslashreplace")
    return last if last.lower().endswith(EXTENSIONS) else b""


def identity_name_bytes(store: Store, label: int) -> bytes:
    """Return the identity's name as bytes: the folder's own where it need not be UTF-8."""
    if isinstance(store, FolderStore):
        return os.path.basename(os.path.dirname(store.path(int(store.identities.of(label)[0]))))
    if isinstance(store, PackedStore):
        return store.identity_name_bytes(label)
    return store.identity_name(label).encode("utf-8", "backslashreplace")


def _identity_names(store: Store) -> Iterator[bytes]:
    return (identity_name_bytes(store, label) for label in range(len(store.identities)))


def source_digest(store: Store) -> str:
    """Name a source's state: its counts, how many images each identity has, and 4,096 evenly spread images' places and labels."""
    index = store.identities
    hasher = hashlib.blake2b(f"{index.images} {len(index)} ".encode(), digest_size=16)
    hasher.update(np.ascontiguousarray(index.offsets, dtype="<i8").tobytes())
    positions = np.unique(np.linspace(0, len(store) - 1, min(_SAMPLES, len(store)), dtype=np.int64))
    for position, label in zip(positions.tolist(), store.labels(positions).tolist(), strict=True):
        hasher.update(f"{position} {label} {store.where(position)}\0".encode("utf-8", "backslashreplace"))
    return hasher.hexdigest()


def _check_apart(store: Store, target: Path) -> None:
    """Refuse the source as destination, and one in an image folder: it would become one of the source's identities."""
    real = Path(os.path.realpath(target))
    for below in (getattr(store, "store", None), *getattr(store, "stores", ())):  # of an edited or a combined store
        if below is not None:
            _check_apart(below, target)
    for attribute in ("root", "path", "folder"):
        place = getattr(store, attribute, None)
        if isinstance(place, Path):
            source = Path(os.path.realpath(place))
            if real == source or (isinstance(store, FolderStore) and source in real.parents):
                raise UserError(f"{target}: lies in the source {place}: give a destination outside of it")


def _convert_to_records(
    store: Store, target: Path, progress: Progress | None, check: bool, keep_names: bool, give_up_after: int
) -> Conversion:
    from attfc.data.stores.rec.records import write_insightface_rec  # its reader is not needed by those who pack

    written = write_insightface_rec(
        store, target, progress, check=check, keep_names=keep_names, give_up_after=give_up_after
    )
    return Conversion(
        "rec",
        target,
        images=written.images,
        identities=written.identities,
        encoded_bytes=written.encoded_bytes,
        left_out=written.left_out,
        examples=written.examples,
        left_out_file=written.left_out_file,
        notes=_left_out_notes(written.left_out, written.left_out_identities, written.left_out_file),
    )


def _left_out_notes(images: int, identities: int, file: Path | None) -> list[str]:
    notes = []
    if images:
        notes.append(f"{images:,} images could not be taken and are left out: {file}")
    if identities:
        notes.append(
            f"{identities:,} identities without an image are left out: later labels are smaller than in the source"
        )
    return notes
