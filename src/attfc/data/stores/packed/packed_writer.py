"""Writer of packed folders (`packed`): append-only, identity by identity, and continued after a kill at any moment.

Every file only grows. From time to time (64 MiB of images or a minute) all of them are flushed to the disk and then
`unfinished.json` is replaced by one that holds their sizes: the durable point. Whoever continues cuts the files back to those
sizes, so nothing that a crash left half-written survives, and the result equals an uninterrupted one byte for byte. `packed.json`
appears last, by rename: a folder that has it is whole. Cost: one pass, 12 bytes of index an image, no memory an image.

A shard is closed at the end of the identity with which it reaches `shard_bytes`; only an identity larger than a shard is
spread over several. Not taken: a log of records with a checksum each, which would have to be read again to continue.
"""

import contextlib
import errno
import json
import os
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attfc.data.people.name_table import printable
from attfc.data.stores.packed.packed_store import (
    ABOUT,
    CHECKSUMS,
    ENDS,
    FORMAT,
    HEADER_BYTES,
    IMAGE_NAMES,
    LEFT_OUT,
    MAX_NAME_BYTES,
    OFFSETS,
    PER_IDENTITY,
    PER_IMAGE,
    UNFINISHED,
    VERSION,
    file_crc32,
    npy_header,
    shard_name,
)
from attfc.errors import UserError

__all__ = ["AppendFile", "Journal", "PackedWriter", "write_failure"]

_BUFFER = 1 << 20
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


def write_failure(folder: Path, error: OSError) -> UserError:
    """Return the one error for anything that keeps a conversion from writing; what was written so far is kept."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return UserError(f"{folder}: {what}: make room and give the same command again, it continues where it stopped")
    name = os.path.basename(os.fsdecode(error.filename)) if error.filename else ""
    where = f"{folder / name}" if name and name != folder.name else f"{folder}"
    return UserError(
        f"{where}: cannot be written ({error.strerror or error}): mend that and give the same command again, "
        "it continues where it stopped"
    )


class AppendFile:
    """A file that grows at its end through a buffer; its size at the last `sync` survives a crash.

    Args:
        path: the file.
        size: what is kept of it: the size at the last durable point.

    Raises:
        UserError: the file is shorter than that.
        OSError: it cannot be opened or written (all methods).
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self._written = size
        self._buffer = bytearray()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(path, flags, 0o666)
        found = os.fstat(self._descriptor).st_size
        if found < size:
            self.close()
            raise UserError(
                f"{path}: {found} bytes but {UNFINISHED} says {size}: the unfinished conversion is damaged; "
                "delete its folder and convert again"
            )
        os.ftruncate(self._descriptor, size)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand the buffer to the system."""
        self._write(self._buffer, self._written)
        self._written = self.size
        self._buffer = bytearray()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        self.flush()
        os.fsync(self._descriptor)

    def rewrite_start(self, data: bytes) -> None:
        """Replace the first bytes."""
        self._write(data, 0)

    def _write(self, data: bytes | bytearray, at: int) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], at + done)

    def close(self) -> None:
        """Close; what was not flushed is dropped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """The durable state of a conversion: one JSON file, replaced whole; and the lock that keeps a second process out.

    Args:
        folder: the folder to write into; made if it is missing.
        name: the file's name.
        begun_with: what must be the same when the conversion is continued, e.g. {"source_digest": ..., "shard_bytes": ...}.
        hint: what to do when it is not.

    Attributes:
        state: what the last `save` was given; None at the beginning.

    Raises:
        UserError: the folder cannot be made or is in use, or holds a conversion that was begun otherwise or is damaged.
    """

    def __init__(self, folder: Path, name: str, begun_with: dict[str, Any], hint: str) -> None:
        self.folder, self._name, self._begun_with = folder, name, begun_with
        self.state: dict[str, Any] | None = None
        self._lock = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_folder(folder)
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self.close()
            raise write_failure(folder, error) from None
        except BaseException:
            self.close()
            raise
        try:
            saved = json.loads(content)
            found, state = dict(saved["begun_with"]), dict(saved["state"])
        except (KeyError, TypeError, ValueError, RecursionError):
            self.close()
            raise self.damaged() from None
        for key, value in begun_with.items():
            if found.get(key) != value:
                self.close()
                was = "" if key.endswith("digest") else f" {found.get(key)!r}, now {value!r}"
                raise UserError(
                    f"{folder}: holds an unfinished conversion that began with another {key.replace('_', ' ')}{was}: {hint}"
                )
        self.state = state

    def number(self, key: str) -> int:
        """Return a count of the state; 0 at the beginning."""
        value = (self.state or {}).get(key, 0)
        if not isinstance(value, int) or not 0 <= value <= 2**62:
            raise self.damaged()
        return value

    def damaged(self) -> UserError:
        """Return the error for a file that cannot be used."""
        return UserError(
            f"{self.folder / self._name}: damaged: delete {self.folder} (an unfinished conversion) and convert again"
        )

    def save(self, state: dict[str, Any]) -> None:
        """Make a state durable. Everything it speaks of must be on the disk already. Raises OSError."""
        replace_file(self.folder / self._name, {"begun_with": self._begun_with, "state": state})
        self.state = state

    def remove(self) -> None:
        """Remove the file: the conversion is finished."""
        (self.folder / self._name).unlink(missing_ok=True)
        sync_folder(self.folder)

    def close(self) -> None:
        """Let other processes in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def replace_file(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to a temporary name, flush it, and rename it: there is the old file or the new one. Raises OSError."""
    draft = path.with_name(path.name + ".new")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock_folder(folder: Path) -> int:
    """Return a descriptor that holds the folder's lock until it is closed, or the process ends in whatever way."""
    try:
        import fcntl
    except ImportError:  # a system without it: two conversions into one folder at once are the user's to avoid
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise UserError(f"{folder}: another process is converting into it: wait for it or stop it") from None
        # A network file system without locks: as above.
    return descriptor


class PackedWriter:
    """Writes a packed folder: `start_identity`, `add` for each image, `end_identity`, ..., `finish`.

    Opened on an unfinished folder of the same source it continues: `done` says with how many of the source's identities. Close it
    (or leave its `with` block) in any case; what was not durable by then is written again by the next one.

    Args:
        folder: the folder: missing, empty, or an unfinished one of the same source and options.
        source: the source's name, for people.
        source_digest: names the source's state; another one is not continued.
        shard_bytes: size at which a shard is closed.
        image_names: whether to keep image names.
        options: what else must not change between the runs.
        sync_bytes, sync_seconds: how much, and how long, a crash may cost.

    Attributes:
        done: source identities that are written, those without images included.
        images, identities, left_out_images, left_out_identities: counts so far.
        continued: whether an unfinished conversion was found.
        finished: the folder is complete (it was killed on its very last step): only `close` is left to do.

    Raises:
        UserError: the folder is a finished conversion, holds something else, is in use, cannot be written to, or began otherwise;
            while writing: the disk is full or fails. It can be continued after that.
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
        self.folder = Path(os.path.abspath(folder))
        self.source = source
        self.shard_bytes, self.image_names = shard_bytes, image_names
        self._sync_bytes, self._sync_seconds = sync_bytes, sync_seconds
        self.finished = False
        self._check_folder()
        begun_with = {
            "format": f"{FORMAT} {VERSION}, unfinished",
            "source_digest": source_digest,
            "shard_bytes": shard_bytes,
            "image_names": image_names,
            **(options or {}),
        }
        hint = "give the options and the source that it began with, or delete the folder to begin anew"
        self._journal = Journal(self.folder, UNFINISHED, begun_with, hint)
        self._files: dict[str, AppendFile] = {}
        self._shard: AppendFile | None = None
        try:
            self.continued = self._journal.state is not None
            if (self.folder / ABOUT).exists():
                self._journal.remove()
                self.finished = True
            self._begin()
        except OSError as error:
            self.close()
            raise write_failure(self.folder, error) from None
        except BaseException:
            self.close()
            raise

    def _check_folder(self) -> None:
        try:
            entries = set(os.listdir(self.folder))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: is a file; give a folder that does not exist yet") from None
        except OSError as error:
            raise write_failure(self.folder, error) from None
        if UNFINISHED in entries:
            return
        if ABOUT in entries:
            raise UserError(
                f"{self.folder}: holds a finished conversion: delete it first, or give another folder for this one"
            )
        if entries - {UNFINISHED + ".new"}:
            raise UserError(
                f"{self.folder}: holds other files ({printable(os.fsencode(min(entries)))} ...): give a folder that is empty or "
                "does not exist yet"
            )

    def _begin(self) -> None:
        """Cut the files back to the last durable point, or begin with none."""
        journal = self._journal
        self.done = journal.number("done")
        self.images = journal.number("images")
        self.identities = journal.number("identities")
        self.left_out_images = journal.number("left_out_images")
        self.left_out_identities = journal.number("left_out_identities")
        state = journal.state or {}
        try:
            self._shards = [int(size) for size in state.get("shards", [])]
            sizes = {str(name): int(size) for name, size in state.get("sizes", {}).items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise journal.damaged() from None
        self._closed_bytes = sum(self._shards[:-1])
        self._started = 0  # images of the identity at hand
        self._name = b""
        if self.finished:
            return
        if not self.continued:
            journal.save({})  # the folder is ours from here on
        names = PER_IDENTITY + PER_IMAGE + (IMAGE_NAMES if self.image_names else ())
        for name in names:
            self._files[name] = AppendFile(self.folder / name, sizes.get(name, 0))
            if name not in sizes:
                self._files[name].append(npy_header(_DTYPES[name], 0) + bytes(8 * (name in _BEGIN_WITH_ZERO)))
        self._files[LEFT_OUT] = AppendFile(self.folder / LEFT_OUT, sizes.get(LEFT_OUT, 0))
        kept = [shard_name(number) for number in range(len(self._shards))]
        for name in os.listdir(self.folder):
            if _SHARD.fullmatch(name) and int(name[6:-4]) >= len(kept):
                os.unlink(self.folder / name)
        for name, size in zip(kept[:-1], self._shards, strict=False):
            AppendFile(self.folder / name, size).close()
        if self._shards:
            self._open_shard()
        self._committed()

    def _open_shard(self) -> None:
        number = len(self._shards) - 1
        self._shard = AppendFile(self.folder / shard_name(number), self._shards[number])

    @property
    def encoded_bytes(self) -> int:
        """Bytes of images written so far."""
        return self._closed_bytes + (self._shard.size if self._shard is not None else 0)

    def start_identity(self, label: int, name: bytes) -> None:
        """Begin an identity; `label` is its number in the source."""
        self._started = 0
        self._name = name[:MAX_NAME_BYTES]

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Append one image of the identity at hand, with its file name if it has one."""
        try:
            self._add(encoded, name[:MAX_NAME_BYTES])
        except OSError as error:
            raise write_failure(self.folder, error) from None

    def _add(self, encoded: bytes, name: bytes) -> None:
        shard = self._shard
        if (
            shard is None
            or (shard.size >= self.shard_bytes and not self._started)
            or shard.size >= 2 * self.shard_bytes
        ):
            shard = self._next_shard()
        shard.append(encoded)
        self._started += 1
        files = self._files
        files[ENDS].append(self.encoded_bytes.to_bytes(8, "little"))
        files[CHECKSUMS].append(zlib.crc32(encoded).to_bytes(4, "little"))
        if self.image_names:
            self._add_name(IMAGE_NAMES, name)

    def _add_name(self, table: tuple[str, ...], name: bytes) -> None:
        data, ends = (self._files[file] for file in table)
        data.append(name)
        ends.append((data.size - HEADER_BYTES).to_bytes(8, "little"))

    def _next_shard(self) -> AppendFile:
        if self._shard is not None:
            self._shard.sync()
            self._closed_bytes += self._shard.size
            self._shards[-1] = self._shard.size
            self._shard.close()
        self._shards.append(0)
        self._open_shard()
        assert self._shard is not None
        return self._shard

    def leave_out(self, position: int, where: str, reason: str) -> None:
        """Note an image of the source that could not be taken."""
        try:
            self._files[LEFT_OUT].append(f"{position}\t{_one_line(where)}\t{_one_line(reason)}\n".encode())
        except OSError as error:
            raise write_failure(self.folder, error) from None
        self.left_out_images += 1

    def end_identity(self, done: int) -> None:
        """End the identity at hand; without images it is left out.

        Args:
            done: source identities done with it: the number that is continued with.
        """
        try:
            if self._started:
                self.images += self._started
                self.identities += 1
                self._files[OFFSETS].append(self.images.to_bytes(8, "little"))
                self._add_name(PER_IDENTITY[1:], self._name)
            else:
                self.left_out_identities += 1
            self.done = done
            if self.encoded_bytes - self._synced_bytes >= self._sync_bytes or time.monotonic() >= self._sync_at:
                self._commit()
        except OSError as error:
            raise write_failure(self.folder, error) from None

    def _commit(self) -> None:
        """Make everything up to here durable; between two identities only."""
        for file in self._files.values():
            file.sync()
        if self._shard is not None:
            self._shard.sync()
            self._shards[-1] = self._shard.size
        self._journal.save(
            {
                "done": self.done,
                "images": self.images,
                "identities": self.identities,
                "left_out_images": self.left_out_images,
                "left_out_identities": self.left_out_identities,
                "shards": self._shards,
                "sizes": {name: file.size for name, file in self._files.items()},
            }
        )
        self._committed()

    def _committed(self) -> None:
        self._synced_bytes = self.encoded_bytes
        self._sync_at = time.monotonic() + self._sync_seconds

    def finish(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Write the headers and `packed.json`: from here on the folder opens.

        Raises:
            UserError: no image was written, or the disk is full or fails.
        """
        if self.images == 0:
            raise UserError(f"{self.folder}: none of {self.source}'s images could be read: nothing to write")
        try:
            self._finish()
        except OSError as error:
            raise write_failure(self.folder, error) from None

    def _finish(self) -> None:
        self._commit()
        left_out = self._files.pop(LEFT_OUT)
        for name, file in self._files.items():
            count = (file.size - HEADER_BYTES) // np.dtype(_DTYPES[name]).itemsize
            file.rewrite_start(npy_header(_DTYPES[name], count))
            file.sync()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "identities": self.identities,
            "images": self.images,
            "image_names": self.image_names,
            "left_out": {"images": self.left_out_images, "identities": self.left_out_identities},
            "crc32": {name: file_crc32(self.folder / name) for name in self._files},
            "shards": self._shards,
        }
        left_out.close()
        if left_out.size == 0:
            left_out.path.unlink()
        replace_file(self.folder / ABOUT, about)
        self._journal.remove()
        self.finished = True

    def close(self) -> None:
        """Close the files. Without `finish` the folder stays unfinished, to be continued."""
        for file in self._files.values():
            file.close()
        if self._shard is not None:
            self._shard.close()
        self._journal.close()

    def __enter__(self) -> "PackedWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _one_line(text: str) -> str:
    return " ".join(text.split())
